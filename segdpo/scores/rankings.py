"""Scores of K masks of an image and of rankings."""

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from segdpo.checks import check_finite, check_labels
from segdpo.kernels import (
    MaskIndex,
    Measure,
    Planes,
    Steps,
    choose_backend,
    fused_chosen,
    log_sum_exp_cancels,
    mask_index,
    scores_by,
    step_factor,
    sums_of,
)
from segdpo.scores.measures import Masks, RegionChoice, even_weights, is_even
from segdpo.scores.pairs import PairScores, Score, score_pairs_by, unless_written


def score_masks(
    logits: Tensor,
    masks: Tensor,
    pairs: Tensor,
    mask_image: Tensor,
    *,
    valid: Tensor | None = None,
    quantity: str = "log_likelihood",
    region: str = "image",
    reduction: str = "mean",
    index: MaskIndex | None = None,
    check: bool | None = None,
    backend: str = "auto",
) -> PairScores:
    """Score pairs of masks that occur in several pairs: the numbers of `score_pairs`, each mask paid for once.

    Args:
        logits: [images, 1, *spatial] (sigmoid) or [images, classes, *spatial] (softmax).
        masks: class ids [masks, *spatial], 255 = ignore.
        pairs: int64 [pairs, 2], the numbers of the chosen and the rejected mask; both of one image.
        mask_image: [masks], the image of each mask.
        valid: bool [images, *spatial]; False = do not judge this pixel.
        quantity: as for `score_pairs`, like region, reduction, check and backend.
        region: "image", "disagreement" or "boundary".
        reduction: "sum", "mean" or "class_balanced".
        index: where the masks differ, from `mask_index` of the same masks; left out: found on the spot.
        check: look at the values.
        backend: which kernels.

    >>> masks = torch.tensor([[[1, 1]], [[0, 1]], [[0, 0]]]).byte()
    >>> logits, everyone = torch.tensor([[[[1.0, 3.0]]]]), torch.tensor([[0, 1], [0, 2], [1, 2]])
    >>> score_masks(logits, masks, everyone, torch.zeros(3).long(), reduction="sum").margin
    tensor([1., 4., 3.])
    """
    score = Score(quantity, region, reduction)
    found = score_masks_by(
        [score], logits, masks, pairs, mask_image, valid=valid, index=index, check=check, backend=backend
    )
    return found[score]


def score_masks_by(
    scores: Iterable[Score],
    logits: Tensor,
    masks: Tensor,
    pairs: Tensor,
    mask_image: Tensor,
    *,
    wants_chosen: Collection[Score] = (),
    valid: Tensor | None = None,
    index: MaskIndex | None = None,
    check: bool | None = None,
    backend: str = "auto",
    in_place: bool = False,
) -> dict[Score, PairScores]:
    """Score the pairs under several Scores together; see `score_masks` and `score_pairs_by`."""
    scores, wanted = list(scores), [score for score in scores if score in wants_chosen]
    _check_pairs(masks, pairs, mask_image, index)
    if backend == "auto":
        backend = choose_backend(logits, wants_chosen=bool(wanted), index=index is not None, meets=True)
    many = _ManyMasks(logits, masks, pairs, mask_image.long(), valid, check, backend)
    if backend == "sparse" and all(many.is_sum(score) for score in scores):
        found = mask_index(masks, pairs, mask_image, valid) if index is None else index
        if found.shared and all(score.region == "image" for score in wanted):
            return many.from_sums(scores, wanted, found, many.each(index), in_place)
    return many.by_pairs(scores, wanted, in_place)


@dataclass(frozen=True, eq=False)
class _ManyMasks:
    """What was asked, and the two ways to answer."""

    logits: Tensor
    masks: Tensor
    pairs: Tensor
    mask_image: Tensor
    valid: Tensor | None
    check: bool | None
    backend: str

    def is_sum(self, score: Score) -> bool:
        """Whether the score's margins are differences of sums that several pairs share."""
        return log_sum_exp_cancels(score.quantity, self.logits.shape[1]) and is_even(score.region, score.reduction)

    def by_pairs(self, scores: list[Score], wanted: list[Score], in_place: bool = False) -> dict[Score, PairScores]:
        """Score each pair by itself."""
        chosen, rejected = (self.masks.index_select(0, side) for side in self.pairs.unbind(1))
        return score_pairs_by(
            scores,
            self.logits,
            chosen,
            rejected,
            wants_chosen=wanted,
            valid=self.valid,
            image_index=self.mask_image.index_select(0, self.pairs[:, 0]),
            check=self.check,
            backend=self.backend,
            in_place=in_place,
        )

    def from_sums(
        self, scores: list[Score], wanted: list[Score], index: MaskIndex, each: Masks, in_place: bool
    ) -> dict[Score, PairScores]:
        """Score every mask, and every difference, once: masks of an image are judged at the same pixels."""
        steps, planes = Steps(index.rows, index.row_image, [None]), None
        if wanted and self.logits.device.type == "cpu":  # elsewhere chosen scores come when they are asked for
            each.check_chosen()
            planes = Planes(each.label(0), [each.measure(score.quantity, "image", "sum") for score in wanted])
        sums, whole = sums_of(self.logits.flatten(2), steps, planes, in_place=in_place)
        assert sums is not None
        found = {}
        for score in scores:
            weight = even_weights(str(score.region), score.reduction, index.valid, index.differing, each.dtype)[:, 0]
            margin = index.margins(sums[0]) * weight * step_factor(score.quantity)
            later = partial(self._chosen_later, score, each, weight)
            chosen: Tensor | Callable[[], Tensor] = unless_written(self.logits, later)
            if whole is not None and score in wanted:
                chosen = self._of_pairs(whole[wanted.index(score)], weight)
            found[score] = PairScores(chosen=chosen, margin=margin.to(each.dtype))
        if each.looks:
            check_finite([pairs.margin for pairs in found.values()], self.logits)
        return found

    def each(self, given: MaskIndex | None) -> Masks:
        """Return the masks one by one, looked at as far as no index was given that says it has been done."""
        masks = Masks(
            self.logits,
            {"masks": self.masks},
            valid=self.valid,
            image_index=self.mask_image,
            check=self.check,
            trusted=given is not None,
        )
        if masks.looks and given is not None:
            check_labels({"masks": given.rows.plus}, self.logits.shape[1])
            check_labels({"masks": given.rows.minus}, self.logits.shape[1])
        return masks

    def _chosen_later(self, score: Score, each: Masks, weight: Tensor) -> Tensor:
        if score.region != "image":
            return self.by_pairs([score], [])[score].chosen
        each.check_chosen()
        measure = each.measure(score.quantity, "image", "sum")
        return self._of_pairs(fused_chosen(self.logits.flatten(2), each.label(0), measure), weight)

    def _of_pairs(self, sums: Tensor, weight: Tensor) -> Tensor:
        return (sums.index_select(0, self.pairs[:, 0]) * weight).to(weight.dtype)


def _check_pairs(masks: Tensor, pairs: Tensor, mask_image: Tensor, index: MaskIndex | None) -> None:
    """Refuse pairs that are no pairs of these masks, without a look at values on a device."""
    if pairs.ndim != 2 or pairs.shape[1] != 2 or pairs.dtype != torch.int64 or not len(pairs):
        raise ValueError(
            "Expected pairs as int64 [pairs, 2], the numbers of the chosen and the rejected mask, but got "
            f"{str(pairs.dtype).removeprefix('torch.')} of shape {tuple(pairs.shape)}."
        )
    if tuple(mask_image.shape) != (len(masks),):
        raise ValueError(
            f"Expected mask_image of shape ({len(masks)},), the image of each mask, but got {tuple(mask_image.shape)}."
        )
    if pairs.device.type == "cpu" and not torch.compiler.is_compiling():
        low, high = int(pairs.min()), int(pairs.max())
        if low < 0 or high >= len(masks):
            raise ValueError(f"pairs name mask {low if low < 0 else high} but there are {len(masks)} masks.")
        if not torch.equal(mask_image[pairs[:, 0]], mask_image[pairs[:, 1]]):
            raise ValueError("Expected both masks of a pair to be of one image, but mask_image says otherwise.")
    if index is not None:
        index.check_fits(pairs=len(pairs), pixels=masks[0].numel(), device=masks.device)


def score_ranking(
    logits: Tensor,
    ranking: Tensor,
    *,
    valid: Tensor | None = None,
    image_index: Tensor | None = None,
    quantity: str = "log_likelihood",
    region: RegionChoice = "image",
    reduction: str = "mean",
    check: bool | None = None,
) -> PairScores:
    """Score rankings of K masks, `ranking` [lists, K, *spatial], best first; for `plackett_luce`.

    All K masks share one set of pixels and the weights of the best one, so that differences are exact margins.
    `chosen` and `rejected` of the result are the best and the worst mask, so that anchors work on rankings too.
    The region "disagreement" holds the pixels where any two masks differ; a region function sees best and worst.
    """
    if ranking.ndim != logits.ndim or ranking.shape[1] < 2:
        raise ValueError(
            "Expected a ranking of shape [lists, K, *spatial] with K of at least 2 masks, best first, "
            f"but got {tuple(ranking.shape)} for logits {tuple(logits.shape)}."
        )
    masks = Masks(
        logits,
        {f"ranking[:, {k}]": mask for k, mask in enumerate(ranking.unbind(1))},
        valid=valid,
        image_index=image_index,
        check=check,
    )
    measure = masks.measure(quantity, region, reduction)
    flat, (*better, worst), others = logits.flatten(2), masks.labels, len(masks.labels) - 1
    # Relative to the worst mask: K − 1 exact margins say all that a ranking loss can see. As pairs of their images,
    # so that one pass over the logits makes them all.
    lists = torch.arange(len(worst), device=worst.device)
    image = lists if measure.image_index is None else measure.image_index
    every = Measure(
        measure.inside.repeat(others, 1),
        measure.weights.repeat(others, 1),
        measure.weigh_by.repeat(others, 1),
        image.repeat(others),
        quantity,
    )
    margins, _ = scores_by(choose_backend(logits), flat, torch.cat(better), worst.repeat(others, 1), [every], [False])
    by_rank = margins[0].unflatten(0, (others, len(worst)))
    return PairScores(
        chosen=unless_written(logits, lambda: fused_chosen(flat, better[0], measure)),
        margin=by_rank[0],
        ranked=torch.cat([by_rank, torch.zeros_like(by_rank[:1])]).T,
    )

"""Scores of K masks of an image: pairs that share masks (`score_masks`) and rankings (`score_ranking`)."""

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from segdpo.checks import check_finite, ignored_value, scored_pairs
from segdpo.kernels import (
    Backend,
    Disagreement,
    MaskIndex,
    Measure,
    Planes,
    choose_backend,
    chosen_score,
    difference_factor,
    log_sum_exp_cancels,
    mask_index,
    scores_by,
    sums_of,
)
from segdpo.scores.masks import MaskPairs, Prepared, Rankings, even_weights
from segdpo.scores.outputs import ModelOutput, logits_in
from segdpo.scores.pairs import given_region, score_pairs_by, unless_changed
from segdpo.scores.score import PairScores, Quantity, Reduction, RegionChoice, Score


def score_masks(
    logits: ModelOutput,
    masks: Tensor,
    pairs: Tensor,
    mask_image: Tensor,
    *,
    valid: Tensor | None = None,
    quantity: Quantity = "log_likelihood",
    region: Literal["image", "disagreement", "boundary"] = "image",
    reduction: Reduction = "mean",
    ignore: int | None = None,
    index: MaskIndex | None = None,
    check: bool | None = None,
    backend: Backend = "auto",
) -> PairScores:
    """Score pairs that share masks: the same numbers as `score_pairs`, with each mask read once.

    Args:
        logits: as for `score_pairs`.
        masks: class ids [masks, *spatial], 255 = ignore.
        pairs: int64 [pairs, 2], the numbers of the chosen and the rejected mask; both of one image.
        mask_image: [masks], the image of each mask.
        valid: bool [images, *spatial]; False = the pixel does not count. For a mask of its own for each pair, see
            `score_pairs`.
        quantity: as for `score_pairs`, like region, reduction, check and backend.
        region: "image", "disagreement" or "boundary".
        reduction: "sum", "mean" or "class_balanced".
        ignore: as for `score_pairs`.
        index: where the masks differ, from `mask_index` of the same masks; None: computed if needed.
        check: read the values and raise an error for illegal ones.
        backend: the kernel.

    Returns:
        PairScores with `chosen`, `rejected` and `margin` [pairs].

    >>> masks = torch.tensor([[[1, 1]], [[0, 1]], [[0, 0]]]).byte()
    >>> logits, pairs = torch.tensor([[[[1.0, 3.0]]]]), torch.tensor([[0, 1], [0, 2], [1, 2]])
    >>> score_masks(logits, masks, pairs, torch.zeros(3).long(), reduction="sum").margin
    tensor([1., 4., 3.])
    """
    score, among = Score(quantity, region, reduction), MaskPairs(masks, pairs, mask_image, valid, index, ignore)
    return score_masks_by([score], logits_in(logits), among, check=check, backend=backend)[score]


def score_masks_by(
    scores: Iterable[Score],
    logits: Tensor,
    masks: MaskPairs,
    *,
    wants_chosen: Collection[Score] = (),
    check: bool | None = None,
    backend: Backend = "auto",
) -> dict[Score, PairScores]:
    """Score pairs that share masks under several Scores; the arguments are those of `score_pairs_by`."""
    scores, wanted = list(scores), [score for score in scores if score in wants_chosen]
    masks.check()
    if backend == "auto":
        backend = choose_backend(logits, wants_chosen=bool(wanted), index=masks.index is not None, overlaps=True)
    if backend == "sparse" and all(score.is_even and _cancels(score, logits) for score in scores):
        index = masks.index
        if index is None:
            ignore = ignored_value(masks.ignore, logits.shape[1])
            index = mask_index(masks.masks, masks.pairs, masks.mask_image.long(), masks.valid, ignore=ignore)
        if index.shared and all(score.region == "image" for score in wanted):
            return _SharedSums(logits, masks, masks.prepare_masks(logits, check), index, check).scores(scores, wanted)
    return score_pairs_by(scores, logits, masks.split(), wants_chosen=wanted, check=check, backend=backend)


def _cancels(score: Score, logits: Tensor) -> bool:
    return log_sum_exp_cancels(score.quantity, logits.shape[1])


@dataclass(frozen=True, eq=False)
class _SharedSums:
    """Margins as differences of sums, and chosen scores of single masks, each computed once for all pairs.

    The masks of an image must be valid at the same pixels.
    """

    logits: Tensor
    given: MaskPairs
    masks: Prepared
    index: MaskIndex
    check: bool | None

    def scores(self, scores: list[Score], wanted: list[Score]) -> dict[Score, PairScores]:
        differing, planes = Disagreement(self.index.rows, self.index.row_image, [None]), None
        if wanted and self.logits.device.type == "cpu":  # on other devices chosen scores are computed when read
            self.masks.check_chosen()
            planes = Planes(self.masks.label(0), [self._whole_mask(score) for score in wanted])
        sums, whole = sums_of(self.logits.flatten(2), differing, planes)
        assert sums is not None
        found, scored = {}, scored_pairs(self.index.valid, self.masks.checks)
        for score in scores:
            weight = even_weights(score, self.index.valid, self.index.differing, self.masks.dtype)[:, 0]
            margin = self.index.margins(sums[0]) * weight * difference_factor(score.quantity)
            chosen: Tensor | Callable[[], Tensor] = unless_changed(
                self.logits, partial(self._chosen_later, score, weight)
            )
            if whole is not None and score in wanted:
                chosen = self._of_pairs(whole[wanted.index(score)], weight)
            found[score] = PairScores(chosen=chosen, margin=margin.to(self.masks.dtype), scored=scored)
        if self.masks.checks:
            check_finite([pairs.margin for pairs in found.values()], self.logits)
        return found

    def _whole_mask(self, score: Score) -> Measure:
        return self.masks.measure(Score(score.quantity, "image", "sum"))

    def _chosen_later(self, score: Score, weight: Tensor) -> Tensor:
        if score.region != "image":
            pairs = self.given.split()
            return score_pairs_by([score], self.logits, pairs, check=self.check, backend="sparse")[score].chosen
        self.masks.check_chosen()
        measure = self._whole_mask(score)
        return self._of_pairs(chosen_score(self.logits.flatten(2), self.masks.label(0), measure), weight)

    def _of_pairs(self, sums: Tensor, weight: Tensor) -> Tensor:
        return (sums.index_select(0, self.given.pairs[:, 0]) * weight).to(weight.dtype)


def score_ranking(
    logits: ModelOutput,
    ranking: Tensor,
    *,
    valid: Tensor | None = None,
    pair_valid: Tensor | None = None,
    image_index: Tensor | None = None,
    quantity: Quantity = "log_likelihood",
    region: RegionChoice = "image",
    pair_region: Tensor | None = None,
    reduction: Reduction = "mean",
    ignore: int | None = None,
    check: bool | None = None,
) -> PairScores:
    """Score rankings of K masks, for `plackett_luce`.

    All K masks share one set of pixels and the weights of the best one, so that differences are exact margins.

    Args:
        logits: as for `score_pairs`.
        ranking: class ids [lists, K, *spatial], best first, 255 = ignore.
        valid: bool [images, *spatial]; False = the pixel does not count, in any ranking of the image.
        pair_valid: bool [lists, *spatial]; False = the pixel does not count in this ranking.
        image_index: [lists], the image of each ranking; None: ranking i belongs to image i.
        quantity: as for `score_pairs`, like reduction and check.
        region: as for `score_pairs`. "disagreement" holds the pixels where any two masks differ; a function is called
            with the best and the worst mask.
        pair_region: bool [lists, *spatial], a region for each ranking.
        reduction: "sum", "mean" or "class_balanced".
        ignore: as for `score_pairs`.
        check: read the values and raise an error for illegal ones.

    Returns:
        PairScores with `ranked` [lists, K], each up to a constant of its list. `chosen` and `rejected` are the best and
        the worst mask, so that anchors work on rankings too.
    """
    region_name, region_mask = given_region(region, pair_region)
    score = Score(quantity, region_name, reduction)
    rankings = Rankings(ranking, valid, image_index, region_mask, pair_valid, pair_region, ignore)
    return score_rankings_by([score], logits_in(logits), rankings, check=check)[score]


def score_rankings_by(
    scores: Iterable[Score], logits: Tensor, rankings: Rankings, *, check: bool | None = None
) -> dict[Score, PairScores]:
    """Score rankings under several Scores, as `score_ranking` does."""
    masks = rankings.prepare(logits, check)
    return {score: _ranking_scores(score, logits, masks) for score in scores}


def _ranking_scores(score: Score, logits: Tensor, masks: Prepared) -> PairScores:
    measure = masks.measure(score)
    flat, (*better, worst), others = logits.flatten(2), masks.labels, len(masks.labels) - 1
    # A ranking loss needs only the K − 1 margins to the worst mask. They are passed as pairs of their images, so that
    # one pass over the logits computes all of them.
    lists = torch.arange(len(worst), device=worst.device)
    image = lists if measure.image_index is None else measure.image_index
    repeated = Measure(
        measure.inside.repeat(others, 1),
        measure.weights.repeat(others, 1),
        measure.weigh_by.repeat(others, 1),
        image.repeat(others),
        measure.quantity,
    )
    backend, best = choose_backend(logits), better[0]
    margins, _ = scores_by(backend, flat, torch.cat(better), worst.repeat(others, 1), [repeated], [False])
    by_rank = margins[0].unflatten(0, (others, len(worst)))
    return PairScores(
        chosen=unless_changed(logits, lambda: chosen_score(flat, best, measure)),
        margin=by_rank[0],
        ranked=torch.cat([by_rank, torch.zeros_like(by_rank[:1])]).T,
        scored=masks.scored,
    )

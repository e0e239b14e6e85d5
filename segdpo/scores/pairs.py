"""Scores of pairs of masks: `score_pairs`, `PairScores`, and `Score`, a configured score."""

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from segdpo.checks import check_choice, check_finite, check_same_shape
from segdpo.kernels import BACKENDS, Measure, PairIndex, choose_backend, fused_chosen, scores_by, whole_score
from segdpo.scores.measures import QUANTITIES, Masks, RegionChoice
from segdpo.scores.regions import REDUCTIONS, REGIONS, RegionFunction


class PairScores:
    """Scores of the chosen and the rejected masks under one network, one number a pair each.

    `margin` is s⁺ − s⁻, computed on its own. `chosen` is computed when first asked for, and `rejected` is
    chosen − margin. `ranked` [lists, K] holds the scores of whole rankings, best first, each up to a constant of its
    list; for a plain pair that is (margin, 0).

    Whoever brings scores of their own writes `PairScores(chosen=…, rejected=…)`.

    >>> scores = PairScores(chosen=torch.tensor([-1.0]), rejected=torch.tensor([-3.0]))
    >>> scores.margin
    tensor([2.])
    """

    __slots__ = ("_chosen", "_grad", "_ranked", "_rejected", "margin")

    def __init__(
        self,
        chosen: Tensor | Callable[[], Tensor],
        rejected: Tensor | None = None,
        margin: Tensor | None = None,
        ranked: Tensor | None = None,
    ) -> None:
        if margin is None:
            if rejected is None or callable(chosen):
                raise ValueError("Expected PairScores(chosen, rejected) or PairScores(chosen, margin=…).")
            check_same_shape("rejected", rejected, "chosen", chosen)
            margin = chosen - rejected
        self.margin = margin
        self._chosen = chosen
        self._rejected = rejected
        self._ranked = ranked
        self._grad = torch.is_grad_enabled()

    @property
    def chosen(self) -> Tensor:
        """s⁺: the score of the chosen mask."""
        if callable(self._chosen):
            # Whoever asks first may be a logger under no_grad; the next one still needs the gradient.
            with torch.set_grad_enabled(self._grad):
                self._chosen = self._chosen()
        return self._chosen

    @property
    def rejected(self) -> Tensor:
        """s⁻: the score of the rejected mask, s⁺ − margin."""
        return self.chosen - self.margin if self._rejected is None else self._rejected

    @property
    def ranked(self) -> Tensor:
        """Scores of K masks, best first, up to a constant of their list: [lists, K]."""
        if self._ranked is None:
            return torch.stack([self.margin, torch.zeros_like(self.margin)], dim=1)
        return self._ranked

    def detach(self) -> "PairScores":
        """Return the same numbers without their history; computes `chosen`, and lets go of the logits."""
        ranked = None if self._ranked is None else self._ranked.detach()
        return PairScores(self.chosen.detach(), self.rejected.detach(), self.margin.detach(), ranked)

    def __repr__(self) -> str:
        chosen = "not asked for yet" if callable(self._chosen) else self._chosen
        return f"PairScores(margin={self.margin}, chosen={chosen})"


MeasureChoice = tuple[str, RegionChoice, str]
"""Quantity, region and reduction."""


def score_pairs(
    logits: Tensor,
    chosen: Tensor,
    rejected: Tensor,
    *,
    valid: Tensor | None = None,
    image_index: Tensor | None = None,
    quantity: str = "log_likelihood",
    region: RegionChoice = "image",
    reduction: str = "mean",
    index: PairIndex | None = None,
    check: bool | None = None,
    backend: str = "auto",
) -> PairScores:
    """Score the chosen and the rejected masks of pairs under one network's logits.

    Args:
        logits: [images, 1, *spatial] (sigmoid) or [images, classes, *spatial] (softmax), any floating dtype.
        chosen: class ids [pairs, *spatial], 255 = ignore; a pixel ignored in either mask is ignored in both.
        rejected: like `chosen`.
        valid: bool, [images, *spatial] or [pairs, *spatial]; False = do not judge this pixel.
        image_index: [pairs], the image of each pair, so that many pairs share one forward; left out: one pair an image.
        quantity: "log_likelihood" (log p of the mask's class) or "log_odds" (log p/(1−p)).
        region: "image", "disagreement", "boundary", a function of (chosen, rejected), or a bool mask like `valid`.
        reduction: "sum", "mean", or "class_balanced" (each class of the chosen mask weighs the same).
        index: where the masks differ, from `pair_index` of the same masks and `valid`; left out: found on the spot.
        check: look at the values (classes in range, finite logits, something valid). Left out: on a CPU yes, on
            other devices no, since looking waits for the device. With an index, masks and logits have been looked at
            as far as margins are made of them only.
        backend: "auto" (the fastest), "sparse", "compiled", "triton", or "reference": every pixel by log-softmax and
            gather, the truth to test against.

    >>> square, diagonal = torch.ones(1, 2, 2).byte(), torch.eye(2).byte()[None]
    >>> scores = score_pairs(torch.zeros(1, 1, 2, 2), chosen=square, rejected=diagonal)
    >>> scores.margin, scores.chosen
    (tensor([0.]), tensor([-0.6931]))
    """
    masks = Masks(
        logits,
        {"chosen": chosen, "rejected": rejected},
        valid=valid,
        image_index=image_index,
        index=index,
        check=check,
    )
    return scores_of(logits, masks, [(quantity, region, reduction)], [False], backend=backend)[0]


def scores_of(
    logits: Tensor,
    masks: Masks,
    choices: Sequence[MeasureChoice],
    wants_chosen: Sequence[bool],
    *,
    backend: str = "auto",
    in_place: bool = False,
) -> list[PairScores]:
    """Score the pairs under each choice; a chosen score that is wanted comes along, another when it is asked for."""
    check_choice("backend", backend, ("auto", *BACKENDS))
    if backend == "auto":
        meets = masks.image_index is not None
        backend = choose_backend(logits, wants_chosen=any(wants_chosen), index=masks.has_index, meets=meets)
    sparse = backend == "sparse"
    measures = [masks.measure(*choice, sparse=sparse) for choice in choices]
    if any(wants_chosen):
        masks.check_chosen()
    margins, chosen = scores_by(
        backend,
        logits.flatten(2),
        # Whole masks are made legal, which passes over them, only for who reads them.
        masks.flat(0) if sparse and not any(wants_chosen) else masks.label(0),
        masks.flat(1) if sparse else masks.label(1),
        measures,
        wants_chosen,
        index=masks.index if sparse else None,
        in_place=in_place,
    )
    if masks.looks:
        check_finite([*margins, *(score for score in chosen if score is not None)], logits)
    return [
        PairScores(chosen=_later(backend, logits, masks, measure) if whole is None else whole, margin=margin)
        for measure, margin, whole in zip(measures, margins, chosen, strict=True)
    ]


def unless_written(logits: Tensor, compute: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """Return `compute`, which fails in words if the logits have been written to since."""
    if torch.compiler.is_compiling() or logits.is_inference():
        return compute
    version = logits._version

    def chosen() -> Tensor:
        if logits._version != version:
            raise RuntimeError(
                "Expected the logits that were scored but they have been written to since (in_place=True, or an "
                "in-place operation); ask for .chosen before that."
            )
        return compute()

    return chosen


def _later(backend: str, logits: Tensor, masks: Masks, measure: Measure) -> Callable[[], Tensor]:
    def chosen() -> Tensor:
        masks.check_chosen()
        return (whole_score if backend == "reference" else fused_chosen)(logits.flatten(2), masks.label(0), measure)

    return unless_written(logits, chosen)


@dataclass(frozen=True)
class Score:
    """What is measured: quantity, region and reduction by name. Equal Scores are computed once a step.

    `region` is "image", "disagreement", "boundary", a function of (chosen, rejected) such as `Boundary(width=5)`,
    or "given": the mask that the data brings with each batch (`region_mask`).
    """

    quantity: str = "log_likelihood"
    region: str | RegionFunction = "image"
    reduction: str = "mean"

    def __post_init__(self) -> None:
        """Refuse misspelt names here rather than at the first step."""
        check_choice("quantity", self.quantity, QUANTITIES)
        check_choice("reduction", self.reduction, REDUCTIONS)
        if not callable(self.region):
            check_choice("region", self.region, [*REGIONS, "given"])

    def __call__(
        self,
        logits: Tensor,
        chosen: Tensor,
        rejected: Tensor,
        *,
        valid: Tensor | None = None,
        image_index: Tensor | None = None,
        region_mask: Tensor | None = None,
        index: PairIndex | None = None,
    ) -> PairScores:
        """Score the pairs; see `score_pairs`."""
        found = score_pairs_by(
            [self],
            logits,
            chosen,
            rejected,
            valid=valid,
            image_index=image_index,
            region_mask=region_mask,
            index=index,
        )
        return found[self]

    def choice(self, region_mask: Tensor | None = None) -> MeasureChoice:
        """Return quantity, region and reduction, with the mask that the batch brought for "given"."""
        if self.region != "given":
            return self.quantity, self.region, self.reduction
        if region_mask is None:
            raise ValueError('Expected a region_mask for region="given" but the batch brought none.')
        return self.quantity, region_mask, self.reduction


def score_pairs_by(
    scores: Iterable[Score],
    logits: Tensor,
    chosen: Tensor,
    rejected: Tensor,
    *,
    wants_chosen: Collection[Score] = (),
    valid: Tensor | None = None,
    image_index: Tensor | None = None,
    region_mask: Tensor | None = None,
    index: PairIndex | None = None,
    check: bool | None = None,
    backend: str = "auto",
    in_place: bool = False,
) -> dict[Score, PairScores]:
    """Score pairs under several Scores together: one pass over the logits, and one over their gradient.

    Args:
        scores: what to measure.
        logits: as for `score_pairs`, like chosen, rejected, valid, image_index, index, check and backend.
        chosen: class ids.
        rejected: class ids.
        wants_chosen: the Scores whose s⁺ will be read: computed in the same pass. Others compute theirs if asked.
        valid: the pixels to judge.
        image_index: the image of each pair.
        region_mask: for region="given".
        index: where the masks differ.
        check: look at the values.
        backend: which kernels.
        in_place: write the gradient over the logits in the backward, which then needs no memory of its own. Nobody may
            read the logits afterwards; whoever saved them for a backward of their own gets PyTorch's error.
    """
    scores = list(scores)
    masks = Masks(
        logits,
        {"chosen": chosen, "rejected": rejected},
        valid=valid,
        image_index=image_index,
        index=index,
        check=check,
    )
    choices = [score.choice(region_mask) for score in scores]
    wants = [score in wants_chosen for score in scores]
    return dict(zip(scores, scores_of(logits, masks, choices, wants, backend=backend, in_place=in_place), strict=True))

"""What is measured, as a value: a Score, and several of them from one pass over the logits."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from torch import Tensor

from segdpo.checks import check_choice
from segdpo.kernels.pair_index import PairIndex
from segdpo.measures import QUANTITIES, Masks
from segdpo.regions import REDUCTIONS, REGIONS, RegionFunction
from segdpo.scores.pair_scores import PairScores
from segdpo.scores.pairs import MeasureChoice, scores_of


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

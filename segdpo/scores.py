"""How well a network likes a mask: scores of pairs and rankings of masks, from logits.

A score is a sum over pixels, s = Σ_i w_i q_i, of a quantity q (log p, or log p/(1−p), of the mask's class), over a
region (which pixels), with a reduction (which weights w). DESIGN: one shared set of pixels and weights for all masks
of a pair, so that the margin s⁺ − s⁻ is a sum over the disagreeing pixels alone and is computed as one.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from segdpo.checks import check_choice, check_same_shape
from segdpo.kernels.drift import agreement_drift
from segdpo.kernels.margin import dense_margin, margin
from segdpo.kernels.pixels import whole_score
from segdpo.measures import QUANTITIES, RegionChoice, prepare
from segdpo.regions import REDUCTIONS, REGIONS, RegionFunction


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
    ) -> PairScores:
        """Score the pairs; see `score_pairs`."""
        region: RegionChoice = self.region
        if region == "given":
            if region_mask is None:
                raise ValueError('Expected a region_mask for region="given" but the batch brought none.')
            region = region_mask
        return score_pairs(
            logits,
            chosen,
            rejected,
            valid=valid,
            image_index=image_index,
            quantity=self.quantity,
            region=region,
            reduction=self.reduction,
        )


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
        check: look at the values (classes in range, finite logits, something valid). Left out: on a CPU yes, on
            other devices no, since looking waits for the device.
        backend: "auto", or "reference": every pixel by log-softmax and gather, the truth to test against.

    >>> square, diagonal = torch.ones(1, 2, 2).byte(), torch.eye(2).byte()[None]
    >>> scores = score_pairs(torch.zeros(1, 1, 2, 2), chosen=square, rejected=diagonal)
    >>> scores.margin, scores.chosen
    (tensor([0.]), tensor([-0.6931]))
    """
    check_choice("backend", backend, ("auto", "reference"))
    labels, measure = prepare(
        logits,
        {"chosen": chosen, "rejected": rejected},
        valid=valid,
        image_index=image_index,
        quantity=quantity,
        region=region,
        reduction=reduction,
        check=check,
    )
    flat = logits.flatten(2)
    take_margin = dense_margin if backend == "reference" else margin
    return PairScores(
        chosen=lambda: whole_score(flat, labels[0], measure),
        margin=take_margin(flat, labels[0], labels[1], measure),
    )


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
    labels, measure = prepare(
        logits,
        {f"ranking[:, {k}]": mask for k, mask in enumerate(ranking.unbind(1))},
        valid=valid,
        image_index=image_index,
        quantity=quantity,
        region=region,
        reduction=reduction,
        check=check,
    )
    flat = logits.flatten(2)
    # Relative to the worst mask: K − 1 exact margins say all that a ranking loss can see.
    margins = [margin(flat, mask, labels[-1], measure) for mask in labels[:-1]]
    return PairScores(
        chosen=lambda: whole_score(flat, labels[0], measure),
        margin=margins[0],
        ranked=torch.stack([*margins, torch.zeros_like(margins[0])], dim=1),
    )


def score_drift(
    policy_logits: Tensor,
    reference_logits: Tensor,
    chosen: Tensor,
    rejected: Tensor,
    *,
    valid: Tensor | None = None,
    image_index: Tensor | None = None,
    check: bool | None = None,
) -> Tensor:
    """Return the mean KL(π_ref ‖ π_θ) over the valid pixels where the two masks agree, one number a pair.

    What nobody judged should stay as it was: `hold_anchor` keeps this small. 0 where the masks agree nowhere.
    """
    check_same_shape("policy_logits", policy_logits, "reference_logits", reference_logits)
    labels, measure = prepare(
        policy_logits,
        {"chosen": chosen, "rejected": rejected},
        valid=valid,
        image_index=image_index,
        check=check,
    )
    agree = measure.inside & (labels[0] == labels[1])
    return agreement_drift(policy_logits.flatten(2), reference_logits.flatten(2), agree, measure.image_index)

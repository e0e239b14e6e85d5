"""How well a network likes a mask: scores of pairs and rankings of masks, from logits.

A score is a sum over pixels, s = Σ_i w_i q_i, of a quantity q (log p, or log p/(1−p), of the mask's class), over a
region (which pixels), with a reduction (which weights w). DESIGN: one shared set of pixels and weights for all masks
of a pair, so that the margin s⁺ − s⁻ is a sum over the disagreeing pixels alone and is computed as one.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from segdpo.checks import check_choice, check_shapes, check_values
from segdpo.kernels.drift import agreement_drift
from segdpo.kernels.margin import dense_margin, margin, pixel_weight_map
from segdpo.kernels.pixels import Quantity, pixel_scores, score_dtype
from segdpo.regions import IGNORE, REDUCTIONS, REGIONS, RegionFunction, pixel_weights

QUANTITIES = ("log_likelihood", "log_odds")

PerPair = Float[Tensor, "pairs"]


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

    __slots__ = ("_chosen", "_ranked", "margin")

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
            _check_same_shape("rejected", rejected, "chosen", chosen)
            margin = chosen - rejected
        self.margin = margin
        self._chosen = chosen
        self._ranked = ranked

    @property
    def chosen(self) -> Tensor:
        """s⁺: the score of the chosen mask."""
        if callable(self._chosen):
            self._chosen = self._chosen()
        return self._chosen

    @property
    def rejected(self) -> Tensor:
        """s⁻ = s⁺ − margin."""
        return self.chosen - self.margin

    @property
    def ranked(self) -> Tensor:
        """Scores of K masks, best first, up to a constant of their list: [lists, K]."""
        if self._ranked is None:
            return torch.stack([self.margin, torch.zeros_like(self.margin)], dim=1)
        return self._ranked

    def detach(self) -> "PairScores":
        """Return the same numbers without their history; computes `chosen`, and lets go of the logits."""
        ranked = None if self._ranked is None else self._ranked.detach()
        return PairScores(self.chosen.detach(), margin=self.margin.detach(), ranked=ranked)

    def __repr__(self) -> str:
        chosen = "not asked for yet" if callable(self._chosen) else self._chosen
        return f"PairScores(margin={self.margin}, chosen={chosen})"


@dataclass(frozen=True)
class Score:
    """What is measured: quantity, region and reduction by name. Equal Scores are computed once a step.

    `region` is "image", "disagreement", "boundary", a function of (chosen, rejected) such as `Boundary(width=5)`,
    or "given": the mask that the data brings with each batch (`region_mask`).
    """

    quantity: Quantity = "log_likelihood"
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
        region: str | RegionFunction | Tensor = self.region
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
    quantity: Quantity = "log_likelihood",
    region: str | RegionFunction | Tensor = "image",
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
        image_index: [pairs], the image of each pair, so that many pairs share one forward; left out: pair i is image i.
        quantity: "log_likelihood" (log p of the mask's class) or "log_odds" (log p/(1−p)).
        region: "image", "disagreement", "boundary", a function of (chosen, rejected), or a bool mask like `valid`.
        reduction: "sum", "mean", or "class_balanced" (each class of the chosen mask weighs the same).
        check: look at the values (classes in range, finite logits, something valid). Left out: on a CPU yes, on
            other devices no, since looking waits for the device.
        backend: "auto", or "reference": every pixel by log-softmax and gather, the truth to test against.

    >>> logits = torch.zeros(1, 1, 2, 2)
    >>> scores = score_pairs(logits, torch.ones(1, 2, 2, dtype=torch.uint8), torch.zeros(1, 2, 2, dtype=torch.uint8))
    >>> scores.margin, scores.chosen
    (tensor([0.]), tensor([-0.6931]))
    """
    check_choice("backend", backend, ("auto", "reference"))
    labels, inside = _prepare(logits, (chosen, rejected), valid, image_index, region, check)
    weights = _weights(logits, labels[0], inside, reduction)
    flat, index = logits.flatten(2), image_index
    take_margin = dense_margin if backend == "reference" else margin
    return PairScores(
        chosen=lambda: _whole_score(flat, labels[0], labels[0], inside, weights, index, quantity),
        margin=take_margin(flat, *labels, labels[0], inside & (labels[0] != labels[1]), weights, index, quantity),
    )


def score_ranking(
    logits: Tensor,
    ranking: Tensor,
    *,
    valid: Tensor | None = None,
    image_index: Tensor | None = None,
    quantity: Quantity = "log_likelihood",
    region: str | RegionFunction | Tensor = "image",
    reduction: str = "mean",
    check: bool | None = None,
) -> PairScores:
    """Score rankings of K masks, `ranking` [lists, K, *spatial], best first; for `plackett_luce`.

    All K masks share one set of pixels and the weights of the best one, so that differences are exact margins.
    `chosen` and `rejected` of the result are the best and the worst mask, so that anchors work on rankings too.
    A pixel disagrees when any mask differs from the last; a region function sees the best and the last mask.
    """
    if ranking.ndim != logits.ndim or ranking.shape[1] < 2:
        raise ValueError(
            "Expected a ranking of shape [lists, K, *spatial] with K of at least 2 masks, best first, "
            f"but got {tuple(ranking.shape)} for logits {tuple(logits.shape)}."
        )
    labels, inside = _prepare(logits, ranking.unbind(1), valid, image_index, region, check)
    weights = _weights(logits, labels[0], inside, reduction)
    flat, last = logits.flatten(2), labels[-1]
    margins = [
        margin(flat, mask, last, labels[0], inside & (mask != last), weights, image_index, quantity)
        for mask in labels[:-1]
    ]
    return PairScores(
        chosen=lambda: _whole_score(flat, labels[0], labels[0], inside, weights, image_index, quantity),
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
) -> PerPair:
    """Return the mean KL(π_ref ‖ π_θ) over the valid pixels where the two masks agree, one number a pair.

    What nobody judged should stay as it was: `hold_anchor` keeps this small. 0 where the masks agree nowhere.
    """
    _check_same_shape("policy_logits", policy_logits, "reference_logits", reference_logits)
    labels, inside = _prepare(policy_logits, (chosen, rejected), valid, image_index, "image", check)
    agree = inside & (labels[0] == labels[1])
    return agreement_drift(policy_logits.flatten(2), reference_logits.flatten(2), agree, image_index)


def _prepare(
    logits: Tensor,
    masks: tuple[Tensor, ...],
    valid: Tensor | None,
    image_index: Tensor | None,
    region: str | RegionFunction | Tensor,
    check: bool | None,
) -> tuple[list[Tensor], Tensor]:
    """Return flat labels, legal wherever they are ignored, and which pixels are inside the region and valid."""
    names = ("chosen", "rejected") if len(masks) == 2 else tuple(f"ranking[:, {k}]" for k in range(len(masks)))
    check_shapes(logits, dict(zip(names, masks, strict=True)), valid, image_index)
    judged = torch.stack([mask != IGNORE for mask in masks]).all(0)
    if valid is not None:
        judged = judged & _one_a_pair("valid", valid, judged, len(logits), image_index)
    labels = [mask.masked_fill(~judged, 0).flatten(1) for mask in masks]
    if check is None:
        check = logits.device.type == "cpu" and not torch.compiler.is_compiling()
    if check:
        check_values(dict(zip(names, labels, strict=True)), judged, logits)
    inside = judged & _region_mask(region, masks, judged, len(logits), image_index)
    return labels, inside.flatten(1)


def _region_mask(
    region: str | RegionFunction | Tensor,
    masks: tuple[Tensor, ...],
    judged: Tensor,
    images: int,
    image_index: Tensor | None,
) -> Tensor:
    if isinstance(region, Tensor):
        return _one_a_pair("region", region, judged, images, image_index)
    if not callable(region):
        check_choice("region", region, REGIONS)
        if region == "disagreement":
            return torch.stack([mask != masks[-1] for mask in masks[:-1]]).any(0)
        region = REGIONS[region]
    return region(masks[0], masks[-1])


def _one_a_pair(name: str, mask: Tensor, like: Tensor, images: int, image_index: Tensor | None) -> Tensor:
    """Bring a mask that is given per image to one per pair."""
    if mask.dtype != torch.bool or mask.shape[1:] != like.shape[1:] or len(mask) not in (images, len(like)):
        raise ValueError(
            f"Expected {name} to be a bool mask of shape {(images, *like.shape[1:])} (one an image) or "
            f"{tuple(like.shape)} (one a pair) but got {mask.dtype} of shape {tuple(mask.shape)}."
        )
    if image_index is None or len(mask) != images:
        return mask
    return mask.index_select(0, image_index)


def _weights(logits: Tensor, labels: Tensor, inside: Tensor, reduction: str) -> Tensor:
    check_choice("reduction", reduction, REDUCTIONS)
    divisor = REDUCTIONS[reduction](labels, inside, max(2, logits.shape[1]))
    return pixel_weights(divisor, score_dtype(logits))


def _whole_score(
    logits: Tensor,
    labels: Tensor,
    weigh_by: Tensor,
    inside: Tensor,
    weights: Tensor,
    image_index: Tensor | None,
    quantity: Quantity,
) -> Tensor:
    score = torch.where(inside, pixel_scores(logits, labels, image_index, quantity), 0.0)
    return (score * pixel_weight_map(weights, weigh_by)).sum(1)


def _check_same_shape(name: str, tensor: Tensor, other_name: str, other: Tensor) -> None:
    if tensor.shape != other.shape:
        raise ValueError(
            f"Expected {name} of the shape of {other_name}, {tuple(other.shape)}, but got {tuple(tensor.shape)}; "
            "broadcasting would silently pair every score with every other."
        )

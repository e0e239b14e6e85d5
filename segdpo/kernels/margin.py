"""The margin s⁺ − s⁻ as a sum over the disagreeing pixels alone.

With one shared set of pixels and one weight for both masks, log-sum-exp cancels:

    s⁺ − s⁻ = Σ_{i: y⁺ ≠ y⁻} w_i (z_i[y⁺_i] − z_i[y⁻_i])

So the gradient needs no logits, agreeing pixels get exactly zero, and two large sums are never subtracted.
"""

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor
from torch.autograd.function import once_differentiable

from segdpo.kernels.pixels import (
    ImageIndex,
    Labels,
    Logits,
    Quantity,
    log_odds_rows,
    pixel_scores,
    score_dtype,
)

Weights = Float[Tensor, "pairs classes_or_1"]
Position = Integer[Tensor, "differing"]
PerPair = Float[Tensor, "pairs"]


def margin(
    logits: Logits,
    chosen: Labels,
    rejected: Labels,
    weigh_by: Labels,
    differs: Bool[Tensor, "pairs pixels"],
    weights: Weights,
    image_index: ImageIndex | None,
    quantity: Quantity,
) -> PerPair:
    """Return Σ over `differs` of weight · (score of chosen − score of rejected), one number a pair.

    `weights[p, weigh_by]` is a pixel's weight; `differs` holds the pixels that count and disagree.
    """
    if torch.compiler.is_compiling():
        # A compiler fuses the dense form into one pass; the sparse form's data-dependent sizes break its graph.
        return dense_margin(logits, chosen, rejected, weigh_by, differs, weights, image_index, quantity)
    position = differs.flatten().nonzero()[:, 0]
    pair = position // differs.shape[1]
    weight = _weight(weights, weigh_by, position, pair)
    if quantity == "log_odds" and logits.shape[1] > 1:
        return _log_odds_margin(logits, chosen, rejected, position, weight, image_index)
    scale = 2.0 if quantity == "log_odds" else 1.0
    result: PerPair = _SparseMargin.apply(logits, chosen, rejected, position, weight * scale, image_index)
    return result


def dense_margin(
    logits: Logits,
    chosen: Labels,
    rejected: Labels,
    weigh_by: Labels,
    differs: Bool[Tensor, "pairs pixels"],
    weights: Weights,
    image_index: ImageIndex | None,
    quantity: Quantity,
) -> PerPair:
    """The same number by the plain path: every pixel scored under both masks."""
    difference = pixel_scores(logits, chosen, image_index, quantity) - pixel_scores(
        logits, rejected, image_index, quantity
    )
    weight = pixel_weight_map(weights, weigh_by)
    return (torch.where(differs, difference, 0.0) * weight).sum(1)


def pixel_weight_map(weights: Weights, weigh_by: Labels) -> Float[Tensor, "pairs pixels_or_1"]:
    """Spread the table of weights by class over the pixels; a table with one column broadcasts by itself."""
    return weights if weights.shape[1] == 1 else weights.gather(1, weigh_by.long())


def _weight(weights: Weights, weigh_by: Labels, position: Position, pair: Position) -> Float[Tensor, "differing"]:
    if weights.shape[1] == 1:
        return weights[:, 0][pair]
    return weights[pair, weigh_by.flatten()[position].long()]


def _log_odds_margin(
    logits: Logits,
    chosen: Labels,
    rejected: Labels,
    position: Position,
    weight: Float[Tensor, "differing"],
    image_index: ImageIndex | None,
) -> PerPair:
    # Here log-sum-exp does not cancel (each class is left out of its own), but agreeing pixels still do.
    pair, pixel = position // chosen.shape[1], position % chosen.shape[1]
    image = pair if image_index is None else image_index[pair]
    rows = logits.movedim(1, -1)[image, pixel].to(score_dtype(logits))
    difference = log_odds_rows(rows, chosen.flatten()[position]) - log_odds_rows(rows, rejected.flatten()[position])
    return _sum_by_pair(weight * difference, pair, len(chosen))


class _SparseMargin(torch.autograd.Function):
    """Gather, subtract, sum by pair. Saves where the masks differ, never a logit."""

    @staticmethod
    def forward(
        ctx: Any,
        logits: Logits,
        chosen: Labels,
        rejected: Labels,
        position: Position,
        weight: Float[Tensor, "differing"],
        image_index: ImageIndex | None,
    ) -> PerPair:
        ctx.save_for_backward(chosen, rejected, position, weight, image_index)
        ctx.blueprint = torch.empty_like(logits, device="meta")  # shape, dtype and strides without the memory
        pair = position // chosen.shape[1]
        value = torch.zeros_like(weight, dtype=score_dtype(logits))
        for sign, index in _entries(logits.shape, chosen, rejected, position, image_index):
            value.addcmul_(sign, torch.take(logits, index).to(value.dtype))
        return _sum_by_pair(weight * value, pair, len(chosen))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_margin: PerPair) -> tuple[Tensor | None, ...]:
        chosen, rejected, position, weight, image_index = ctx.saved_tensors
        slope = grad_margin[position // chosen.shape[1]] * weight
        # Several pairs may meet in one pixel of an image: then add, and in fp32, or bf16 would drop small terms.
        shared = image_index is not None
        dtype = slope.dtype if shared else ctx.blueprint.dtype
        grad = torch.zeros_like(ctx.blueprint, device=slope.device, dtype=dtype)
        for sign, index in _entries(grad.shape, chosen, rejected, position, image_index):
            grad.put_(index, (sign * slope).to(dtype), accumulate=shared)
        return grad.to(ctx.blueprint.dtype), None, None, None, None, None


def _entries(
    shape: torch.Size, chosen: Labels, rejected: Labels, position: Position, image_index: ImageIndex | None
) -> Iterator[tuple[Tensor, Position]]:
    """Yield (sign, flat index into the logits) such that the pixel's margin is Σ sign · logit."""
    channels, pixels = shape[1], shape[2]
    pair, pixel = position // pixels, position % pixels
    image = pair if image_index is None else image_index[pair]
    first = image * channels * pixels + pixel
    plus, minus = chosen.flatten()[position], rejected.flatten()[position]
    if channels == 1:
        yield (plus > 0).float() - (minus > 0).float(), first
        return
    one = torch.ones((), device=position.device)
    yield one, first + plus.long() * pixels
    yield -one, first + minus.long() * pixels


def _sum_by_pair(values: Float[Tensor, "differing"], pair: Position, pairs: int) -> PerPair:
    # index_add_ adds one by one: in fp32 that loses what the identity has just saved. MPS has no float64.
    wide = torch.float32 if values.device.type == "mps" else torch.float64
    total = torch.zeros(pairs, dtype=wide, device=values.device).index_add(0, pair, values.to(wide))
    return total.to(values.dtype)

"""The margin s⁺ − s⁻ as a sum over the disagreeing pixels alone.

With one shared set of pixels and one weight for both masks, log-sum-exp cancels:

    s⁺ − s⁻ = Σ_{i: y⁺ ≠ y⁻} w_i (z_i[y⁺_i] − z_i[y⁻_i])

So the gradient needs no logits, agreeing pixels get exactly zero, and two large sums are never subtracted.
"""

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float, Integer
from torch import Tensor
from torch.autograd.function import once_differentiable

from segdpo.kernels.pixels import ImageIndex, Labels, Logits, Measure, PerPair, log_odds_rows, pixel_scores, score_dtype

Position = Integer[Tensor, "differing"]
Weight = Float[Tensor, "differing"]


def margin(logits: Logits, chosen: Labels, rejected: Labels, measure: Measure) -> PerPair:
    """Return s⁺ − s⁻ = Σ weight · (score of chosen − score of rejected) over the disagreeing pixels inside."""
    if torch.compiler.is_compiling():
        # A compiler fuses the dense form into one pass; the sparse form's data-dependent sizes break its graph.
        return dense_margin(logits, chosen, rejected, measure)
    position = (measure.inside & (chosen != rejected)).flatten().nonzero()[:, 0]
    weight = _weight(measure, position)
    if measure.quantity == "log_odds" and logits.shape[1] > 1:
        return _log_odds_margin(logits, chosen, rejected, position, weight, measure.image_index)
    # One channel: log-odds are ±z, and swapping the class moves them by 2z.
    scale = 2.0 if measure.quantity == "log_odds" else 1.0
    result: PerPair = _SparseMargin.apply(logits, chosen, rejected, position, weight * scale, measure.image_index)
    return result


def dense_margin(logits: Logits, chosen: Labels, rejected: Labels, measure: Measure) -> PerPair:
    """Return the same number by the plain path: every pixel scored under both masks."""
    plus, minus = (pixel_scores(logits, labels, measure.image_index, measure.quantity) for labels in (chosen, rejected))
    return torch.where(chosen != rejected, measure.spread(plus - minus), 0.0).sum(1)


def _weight(measure: Measure, position: Position) -> Weight:
    pair = position // measure.inside.shape[1]
    if measure.weights.shape[1] == 1:
        return measure.weights[:, 0][pair]
    return measure.weights[pair, measure.weigh_by.flatten()[position].long()]


def _log_odds_margin(
    logits: Logits,
    chosen: Labels,
    rejected: Labels,
    position: Position,
    weight: Weight,
    image_index: ImageIndex | None,
) -> PerPair:
    # Here log-sum-exp does not cancel (each class is left out of its own), but agreeing pixels still do.
    pair, pixel = position // chosen.shape[1], position % chosen.shape[1]
    image = pair if image_index is None else image_index[pair]
    rows = logits.movedim(1, -1)[image, pixel].to(score_dtype(logits))
    plus, minus = (log_odds_rows(rows, labels.flatten()[position]) for labels in (chosen, rejected))
    return _sum_by_pair(weight * (plus - minus), pair, len(chosen))


class _SparseMargin(torch.autograd.Function):
    """Gather, subtract, sum by pair. Saves where the masks differ, never a logit."""

    @staticmethod
    def forward(
        ctx: Any,
        logits: Logits,
        chosen: Labels,
        rejected: Labels,
        position: Position,
        weight: Weight,
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
        # Without them every index is met once, and either way is deterministic; torch refuses one of them unseen.
        adds = shared or torch.are_deterministic_algorithms_enabled()
        dtype = slope.dtype if shared else ctx.blueprint.dtype
        grad = torch.zeros_like(ctx.blueprint, device=slope.device, dtype=dtype)
        for sign, index in _entries(grad.shape, chosen, rejected, position, image_index):
            grad.put_(index, (sign * slope).to(dtype), accumulate=adds)
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


def _sum_by_pair(values: Weight, pair: Position, pairs: int) -> PerPair:
    # index_add_ adds one by one: in fp32 that loses what the identity has just saved. MPS has no float64.
    wide = torch.float32 if values.device.type == "mps" else torch.float64
    total = torch.zeros(pairs, dtype=wide, device=values.device).index_add(0, pair, values.to(wide))
    return total.to(values.dtype)

"""The backend "sparse": all scores of a loss in one pass over the logits, and their gradient in one tensor.

Margins read logits only where masks differ. Any memory layout (NCHW, channels_last, a slice) is a set of places in one
flat piece of memory, and flat is what PyTorch gathers and scatters fastest.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Integer
from torch import Tensor

from segdpo.kernels.index import PairIndex, index_of
from segdpo.kernels.pixels import (
    EvenMeasure,
    ImageIndex,
    Labels,
    Logits,
    Measure,
    PerPair,
    Scores,
    difference_factor,
    log_sum_exp_cancels,
    score_dtype,
    whole_score,
    wide_dtype,
)
from segdpo.kernels.planes import Planes, plane_sums, write_plane_gradient

Place = Integer[Tensor, "entries"]


def sparse_scores(
    logits: Logits,
    chosen: Labels,
    rejected: Labels,
    measures: Sequence[Measure],
    wants_chosen: Sequence[bool],
    *,
    index: PairIndex | None = None,
) -> Scores:
    """Return the margin of every measure, and the chosen score of those that want it.

    For log-likelihood, and for log-odds of one channel, where log-sum-exp cancels. Whole masks are read only if a
    chosen score is wanted; they must then hold legal classes everywhere.
    """
    if index is None:
        index = index_of(chosen, rejected, torch.ones_like(chosen, dtype=torch.bool))
    weights: list[Tensor | None] = [
        entry_weights(measure, index) for measure in measures if not isinstance(measure, EvenMeasure)
    ]
    if len(weights) < len(measures):
        weights.append(None)  # even measures share one sum, which is weighted afterwards
    wanted = [measure for measure, wants in zip(measures, wants_chosen, strict=True) if wants]
    # Chunks are for a CPU's cache; on other devices PyTorch's own kernels are faster.
    planes = Planes(chosen, wanted) if wanted and logits.device.type == "cpu" else None
    sums, whole = sums_of(logits, Disagreement(index, measures[0].image_index, weights), planes)
    if whole is None:
        scores = iter([whole_score(logits, chosen, measure) for measure in wanted])
    else:
        scores = iter(whole.to(score_dtype(logits)).unbind(0))
    assert sums is not None
    margins = [margin.to(score_dtype(logits)) for margin in _margins(sums, measures)]
    return margins, [next(scores) if wants else None for wants in wants_chosen]


def chosen_score(logits: Logits, chosen: Labels, measure: Measure) -> PerPair:
    """Return the chosen score alone."""
    if logits.device.type != "cpu" or not log_sum_exp_cancels(measure.quantity, logits.shape[1]):
        return whole_score(logits, chosen, measure)
    _, whole = sums_of(logits, None, Planes(chosen, [measure]))
    assert whole is not None
    return whole[0].to(score_dtype(logits))


def _margins(sums: Tensor, measures: Sequence[Measure]) -> list[Tensor]:
    uneven = iter(sums.unbind(0))
    found = []
    for measure in measures:
        total = sums[-1] * measure.weights[:, 0] if isinstance(measure, EvenMeasure) else next(uneven)
        found.append(total * difference_factor(measure.quantity))
    return found


@dataclass(frozen=True, eq=False)
class Disagreement:
    """The pixels where masks differ, and their weights in each of the sums to compute.

    Attributes:
        index: the pixels, as rows; a row is a pair, or one comparison that several pairs share.
        image_index: the image of each row; None: row i belongs to image i.
        weights: one tensor of weights for each sum; None: every pixel weighs 1.
    """

    index: PairIndex
    image_index: ImageIndex | None
    weights: Sequence[Float[Tensor, "entries"] | None]


def sums_of(
    logits: Logits, differing: Disagreement | None, planes: Planes | None
) -> tuple[Float[Tensor, "kinds rows"] | None, Float[Tensor, "measures planes"] | None]:
    """Return Σ weight · (z[plus] − z[minus]) over each row of the index, and Σ weight · quantity of each plane.

    In fp64 where the device has it. The backward writes one gradient for all sums.
    """
    sums: tuple[Tensor | None, Tensor | None] = _Sums.apply(logits, differing, planes)
    return sums


class _Sums(torch.autograd.Function):
    """Saves where masks differ, and the logits only if whole masks are scored."""

    @staticmethod
    def forward(
        ctx: Any, logits: Logits, differing: Disagreement | None, planes: Planes | None
    ) -> tuple[Tensor | None, Tensor | None]:
        ctx.save_for_backward(logits if planes is not None else None)
        ctx.blueprint = torch.empty_like(logits, device="meta")  # shape, dtype and strides without the memory
        ctx.differing, ctx.planes, ctx.device = differing, planes, logits.device
        sums = ctx.places = None
        if differing is not None:
            index = differing.index
            ctx.places = places_in(logits, index, differing.image_index)
            values = read_differences(logits, ctx.places).add_(nan_if_illegal(index, logits.shape[1]))
            rows = [sum_rows(values if weight is None else values * weight, index) for weight in differing.weights]
            sums = torch.stack(rows)
        return sums, None if planes is None else plane_sums(logits, planes)

    @staticmethod
    def backward(ctx: Any, grad_sums: Tensor | None, grad_whole: Tensor | None) -> tuple[Tensor | None, ...]:
        create_graph = torch.is_grad_enabled()
        with torch.no_grad():
            grad = _gradient(ctx, grad_sums, grad_whole)
        if create_graph:
            grad = _Once.apply(grad, grad_sums, grad_whole)
        return grad, None, None


def _gradient(ctx: Any, grad_sums: Tensor | None, grad_whole: Tensor | None) -> Tensor:
    (logits,) = ctx.saved_tensors
    differing: Disagreement | None = ctx.differing
    # Where pairs, or a margin and a whole mask, share a pixel, half precision would drop the smaller terms.
    overlaps = ctx.planes is not None or (differing is not None and differing.image_index is not None)
    dtype = score_dtype(ctx.blueprint) if overlaps else ctx.blueprint.dtype
    grad = torch.empty_like(ctx.blueprint, device=ctx.device, dtype=dtype)
    if grad_whole is None:
        grad.zero_()
    else:
        write_plane_gradient(grad, logits, ctx.planes, grad_whole.to(score_dtype(grad)))
    if differing is not None and grad_sums is not None:
        same = grad.stride() == ctx.places.stride
        places = ctx.places if same else places_in(grad, differing.index, differing.image_index)
        add_differences(grad, _slopes(differing, grad_sums.to(score_dtype(grad))), places)
    return grad.to(ctx.blueprint.dtype)


def _slopes(differing: Disagreement, grad: Float[Tensor, "kinds rows"]) -> Float[Tensor, "entries"]:
    """Return the derivative of the loss with respect to each pixel's z[plus] − z[minus]."""
    slopes = [
        differing.index.spread(of_row) if weight is None else differing.index.spread(of_row).mul_(weight)
        for weight, of_row in zip(differing.weights, grad, strict=True)
    ]
    return slopes[0] if len(slopes) == 1 else torch.stack(slopes).sum(0)


class _Once(torch.autograd.Function):
    """A gradient that cannot be differentiated again and raises an error instead."""

    @staticmethod
    def forward(ctx: Any, grad: Tensor, *_: Tensor | None) -> Tensor:
        return grad.view_as(grad)

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> tuple[Tensor | None, ...]:
        raise RuntimeError(
            "Expected one derivative of a score but a second was requested (create_graph=True, then backward through "
            'the gradient); score with backend="reference", which PyTorch can differentiate twice.'
        )


@dataclass(frozen=True, eq=False)
class Places:
    """Where the memory of a tensor with these strides holds the logits of each pixel of an index.

    Attributes:
        plus: the place of z[plus].
        minus: the place of z[minus].
        sign: for one channel, ±1 such that the difference is sign · z; both places are then the same.
        stride: the strides of the tensor.
    """

    plus: Place
    minus: Place
    sign: Integer[Tensor, "entries"] | None
    stride: tuple[int, ...]


def places_in(logits: Logits, index: PairIndex, image_index: ImageIndex | None) -> Places:
    """Return the places of an index's pixels in logits, or in a gradient, of this layout."""
    of_image, of_channel, of_pixel = logits.stride()
    # Clamped, so that no other memory is read whatever the masks hold; see `nan_if_illegal`.
    plus, minus = (ids.clamp(0, max(2, logits.shape[1]) - 1).long() for ids in (index.plus, index.minus))
    row = torch.arange(len(index.differing), device=index.position.device)
    image = row if image_index is None else image_index
    # position = row · pixels + pixel, so the row is subtracted without a division.
    first = index.spread(image * of_image - row * index.pixels * of_pixel).add_(index.position, alpha=of_pixel)
    if logits.shape[1] == 1:
        return Places(first, first, plus.sub_(minus), logits.stride())
    return Places(plus.mul_(of_channel).add_(first), minus.mul_(of_channel).add_(first), None, logits.stride())


def read_differences(logits: Logits, places: Places) -> Float[Tensor, "entries"]:
    """Return z[plus] − z[minus] at every place."""
    flat = _flat(logits)
    difference = flat.index_select(0, places.plus).to(score_dtype(logits))
    if places.sign is not None:
        return difference.mul_(places.sign)
    return difference.sub_(flat.index_select(0, places.minus))


def add_differences(grad: Logits, slope: Float[Tensor, "entries"], places: Places) -> None:
    """Add slope · ∂(z[plus] − z[minus])/∂logits to a gradient; several pairs may share a pixel."""
    flat, slope = _flat(grad), slope.to(grad.dtype)
    if places.sign is not None:
        flat.scatter_add_(0, places.plus, slope * places.sign)
    else:
        flat.scatter_add_(0, places.plus, slope)
        flat.scatter_add_(0, places.minus, slope.neg())


def nan_if_illegal(index: PairIndex, channels: int) -> Float[Tensor, ""]:
    """Return 0, or NaN if the index holds a class that so many channels do not predict.

    Added to a score, it makes a wrong mask visible. Raising an error here would wait for the device.
    """
    wrong = torch.zeros((), dtype=torch.bool, device=index.position.device)
    for ids in (index.plus, index.minus) if len(index.position) else ():
        low, high = (end.long() for end in ids.aminmax())  # a uint8 is compared with 256 as if that were 0
        wrong = wrong | (low < 0) | (high >= max(2, channels))
    return torch.where(wrong, float("nan"), 0.0)


def sum_rows(values: Float[Tensor, "entries"], index: PairIndex) -> Float[Tensor, "rows"]:
    """Return the sum of each row's values, in fp64 where the device has it."""
    # `unsafe` skips a check of the lengths that would wait for a GPU.
    return torch.segment_reduce(values.to(wide_dtype(values)), "sum", lengths=index.differing, unsafe=True)


def entry_weights(measure: Measure, index: PairIndex) -> Float[Tensor, "entries"]:
    """Return the weight of each of the index's pixels."""
    if isinstance(measure, EvenMeasure):
        return index.spread(measure.weights[:, 0])
    inside = measure.inside.flatten().index_select(0, index.position)
    if measure.weights.shape[1] == 1:
        return inside * index.spread(measure.weights[:, 0])
    label = measure.weigh_by.flatten().index_select(0, index.position).long()
    return inside * measure.weights[index.pair(), label]


def _flat(logits: Logits) -> Float[Tensor, "memory"]:
    extent = 1 + sum((size - 1) * stride for size, stride in zip(logits.shape, logits.stride(), strict=True))
    return logits.as_strided((extent,), (1,))

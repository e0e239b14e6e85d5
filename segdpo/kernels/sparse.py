"""Reading logits, and adding to their gradient, at the pixels where masks differ: by their place in memory.

Any layout (NCHW, channels_last, a slice) is a set of places in one flat piece of memory, and flat is what PyTorch
gathers and scatters fastest.
"""

import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor

from segdpo.kernels.pair_index import PairIndex
from segdpo.kernels.pixels import EvenMeasure, ImageIndex, Logits, Measure, score_dtype


def step_values(logits: Logits, index: PairIndex, image_index: ImageIndex | None) -> Float[Tensor, "entries"]:
    """Return what each of the index's pixels adds to its margin: z[plus] − z[minus]; ±z where there is one channel.

    NaN for a class that the logits do not have, which costs less than to look, and never waits for a device.
    """
    (plus, wrong), (minus, also_wrong) = (legal(ids, logits.shape[1]) for ids in (index.plus, index.minus))
    flat, first = _flat(logits), _first(logits, index, image_index)
    if logits.shape[1] == 1:
        step = (plus - minus).to(score_dtype(logits)).mul_(flat.index_select(0, first))
    else:
        step = flat.index_select(0, _place(logits, first, plus)).to(score_dtype(logits))
        step -= flat.index_select(0, _place(logits, first, minus))
    return step.masked_fill_(wrong.logical_or_(also_wrong), float("nan"))


def add_steps(grad: Logits, slope: Float[Tensor, "entries"], index: PairIndex, image_index: ImageIndex | None) -> None:
    """Add slope · ∂step/∂logits to a gradient; several pairs may meet in one pixel."""
    (plus, _), (minus, _) = (legal(ids, grad.shape[1]) for ids in (index.plus, index.minus))
    flat, first = _flat(grad), _first(grad, index, image_index)
    slope = slope.to(grad.dtype)
    if grad.shape[1] == 1:
        flat.scatter_add_(0, first, (plus - minus).to(grad.dtype).mul_(slope))
        return
    flat.scatter_add_(0, _place(grad, first, plus), slope)
    flat.scatter_add_(0, _place(grad, first, minus), slope.neg())


def sum_rows(values: Float[Tensor, "entries"], index: PairIndex) -> Float[Tensor, "rows"]:
    """Return the sum of each row's values, in fp64 where the device has it."""
    # One by one in fp32 loses what the identity has just saved. MPS has no float64.
    wide = torch.float32 if values.device.type == "mps" else torch.float64
    # `unsafe` leaves out a look at the lengths, which a GPU would be waited for.
    return torch.segment_reduce(values.to(wide), "sum", lengths=index.differing, unsafe=True)


def entry_weights(measure: Measure, index: PairIndex) -> Float[Tensor, "entries"]:
    """Return how much each of the index's pixels counts."""
    if isinstance(measure, EvenMeasure):
        return index.spread(measure.weights[:, 0])
    inside = measure.inside.flatten().index_select(0, index.position)
    if measure.weights.shape[1] == 1:
        return inside * index.spread(measure.weights[:, 0])
    label = measure.weigh_by.flatten().index_select(0, index.position).long()
    return inside * measure.weights[index.pair(), label]


def legal(ids: Integer[Tensor, "entries"], channels: int) -> tuple[Integer[Tensor, "entries"], Bool[Tensor, "entries"]]:
    """Return the classes as int64, within the channels, and where they were not."""
    wide = ids.long()
    legal = wide.clamp(0, max(2, channels) - 1)
    return legal, legal != wide


def _flat(logits: Logits) -> Float[Tensor, "memory"]:
    extent = 1 + sum((size - 1) * stride for size, stride in zip(logits.shape, logits.stride(), strict=True))
    return logits.as_strided((extent,), (1,))


def _first(logits: Logits, index: PairIndex, image_index: ImageIndex | None) -> Integer[Tensor, "entries"]:
    """Return where in memory the first channel of each of the index's pixels is."""
    of_image, _, of_pixel = logits.stride()
    row = torch.arange(len(index.differing), device=index.position.device)
    image = row if image_index is None else image_index
    # position = row · pixels + pixel, so no division is needed to leave the row out.
    offset = index.spread(image * of_image - row * index.pixels * of_pixel)
    return offset.add_(index.position, alpha=of_pixel)


def _place(
    logits: Logits, first: Integer[Tensor, "entries"], channel: Integer[Tensor, "entries"]
) -> Integer[Tensor, "entries"]:
    return torch.add(first, channel, alpha=logits.stride(1))

"""Reading logits, and adding to their gradient, at the pixels where masks differ: by their places in memory.

Any layout (NCHW, channels_last, a slice) is a set of places in one flat piece of memory, and flat is what PyTorch
gathers and scatters fastest.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Integer
from torch import Tensor

from segdpo.kernels.index import PairIndex
from segdpo.kernels.pixels import EvenMeasure, ImageIndex, Logits, Measure, score_dtype, wide_dtype

Place = Integer[Tensor, "entries"]


@dataclass(frozen=True, eq=False)
class Places:
    """Where a tensor of some strides has what each of the index's pixels adds to its margin, z[plus] − z[minus].

    `sign`, of one channel: ±1 for ±z, which is then at both places.
    """

    plus: Place
    minus: Place
    sign: Integer[Tensor, "entries"] | None
    stride: tuple[int, ...]


def places_in(logits: Logits, index: PairIndex, image_index: ImageIndex | None) -> Places:
    """Return the places of an index's pixels in logits, or in a gradient, of this layout."""
    of_image, of_channel, of_pixel = logits.stride()
    # No memory but the pixel's own is read, whatever the masks hold; see `poison`.
    plus, minus = (ids.clamp(0, max(2, logits.shape[1]) - 1).long() for ids in (index.plus, index.minus))
    row = torch.arange(len(index.differing), device=index.position.device)
    image = row if image_index is None else image_index
    # position = row · pixels + pixel, so no division is needed to leave the row out.
    first = index.spread(image * of_image - row * index.pixels * of_pixel).add_(index.position, alpha=of_pixel)
    if logits.shape[1] == 1:
        return Places(first, first, plus.sub_(minus), logits.stride())
    return Places(plus.mul_(of_channel).add_(first), minus.mul_(of_channel).add_(first), None, logits.stride())


def read_steps(logits: Logits, places: Places) -> Float[Tensor, "entries"]:
    """Return z[plus] − z[minus] at every place."""
    flat = _flat(logits)
    step = flat.index_select(0, places.plus).to(score_dtype(logits))
    if places.sign is not None:
        return step.mul_(places.sign)
    return step.sub_(flat.index_select(0, places.minus))


def add_steps(grad: Logits, slope: Float[Tensor, "entries"], places: Places) -> None:
    """Add slope · ∂step/∂logits to a gradient; several pairs may meet in one pixel."""
    flat, slope = _flat(grad), slope.to(grad.dtype)
    if places.sign is not None:
        flat.scatter_add_(0, places.plus, slope * places.sign)
    else:
        flat.scatter_add_(0, places.plus, slope)
        flat.scatter_add_(0, places.minus, slope.neg())


def poison(index: PairIndex, channels: int) -> Float[Tensor, ""]:
    """Return 0, or NaN if the index holds a class that so many channels do not predict.

    Added to a score it keeps a wrong mask from becoming a wrong number; to stop there would be to wait for the device.
    """
    wrong = torch.zeros((), dtype=torch.bool, device=index.position.device)
    for ids in (index.plus, index.minus) if len(index.position) else ():
        low, high = ids.aminmax()
        wrong = wrong | (low < 0) | (high >= max(2, channels))
    return torch.where(wrong, float("nan"), 0.0)


def sum_rows(values: Float[Tensor, "entries"], index: PairIndex) -> Float[Tensor, "rows"]:
    """Return the sum of each row's values, in fp64 where the device has it."""
    # `unsafe` leaves out a look at the lengths, which a GPU would be waited for.
    return torch.segment_reduce(values.to(wide_dtype(values)), "sum", lengths=index.differing, unsafe=True)


def entry_weights(measure: Measure, index: PairIndex) -> Float[Tensor, "entries"]:
    """Return how much each of the index's pixels counts."""
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

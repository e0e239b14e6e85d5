"""Scores from logits before their bilinear upsampling: margins by its adjoint, whole masks band by band."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Integer
from torch import Tensor
from torch.autograd.function import once_differentiable

from segdpo.kernels.pixels import ImageIndex, Logits, PerPair, score_dtype, wide_dtype

Position = Integer[Tensor, "differing"]
Weight = Float[Tensor, "differing"]
SmallLogits = Float[Tensor, "images channels low_height low_width"]
Axis = tuple[Tensor, Tensor, Tensor]
"""For each pixel of an axis: its two low-resolution neighbours, and the weight of the second."""

# Disagreeing pixels processed at once: bounds the memory, and is small enough to stay in a cache.
CHUNK = 1 << 16


@dataclass(frozen=True, eq=False)
class LowResolution:
    """Logits before the bilinear upsampling to the size of the image.

    Args:
        logits: [images, channels, low height, low width], before the upsampling.
        grid: (height, width) after the upsampling.
        size: (height, width) of the image, the top left part of the grid; the rest is padding.
        align_corners: as in F.interpolate.
    """

    logits: Tensor
    grid: tuple[int, int]
    size: tuple[int, int]
    align_corners: bool = False

    def __post_init__(self) -> None:
        """Check the shapes."""
        if self.logits.ndim != 4 or not self.logits.is_floating_point():
            raise ValueError(
                "Expected floating-point logits of shape [images, channels, height, width] but got "
                f"{self.logits.dtype} of shape {tuple(self.logits.shape)}."
            )
        if any(not 1 <= side <= whole for side, whole in zip(self.size, self.grid, strict=True)):
            raise ValueError(f"Expected an image of at most {self.grid} pixels, the grid, but got {self.size}.")

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """The shape of the logits after upsampling and cropping."""
        images, channels = self.logits.shape[:2]
        return (images, channels, *self.size)

    def detach(self) -> "LowResolution":
        """Return the same logits, detached from the graph."""
        return LowResolution(self.logits.detach(), self.grid, self.size, self.align_corners)

    def axis(self, number: int, device: torch.device | None = None) -> Axis:
        """Return the neighbours of the rows (0) or columns (1) of the image, as F.interpolate selects them."""
        small, whole, kept = self.logits.shape[2 + number], self.grid[number], self.size[number]
        device = self.logits.device if device is None else device
        return neighbours(small, whole, kept, self.align_corners, score_dtype(self.logits), device)


def neighbours(
    small: int, whole: int, kept: int, align_corners: bool, dtype: torch.dtype, device: torch.device
) -> Axis:
    """Return two neighbours, among `small` pixels, and a share for each of the first `kept` of `whole` pixels.

    In the same order of operations and precision as F.interpolate. Otherwise shares would differ in the fifth digit,
    since a share is the fractional part of a position of up to a thousand pixels.
    """
    pixel = torch.arange(kept, device=device, dtype=dtype)
    if align_corners:
        place = pixel * _ratio(small - 1, whole - 1, dtype)
    else:
        place = ((pixel + 0.5) * _ratio(small, whole, dtype) - 0.5).clamp(min=0)
    first = place.long().clamp(max=small - 1)
    return first, (first + 1).clamp(max=small - 1), (place - first).clamp(0, 1)


def low_resolution_margin(
    low: LowResolution,
    position: Position,
    plus: Integer[Tensor, "differing"],
    minus: Integer[Tensor, "differing"],
    weight: Weight,
    *,
    pairs: int,
    image_index: ImageIndex | None = None,
) -> PerPair:
    """Return Σ weight · (logit of `plus` − logit of `minus`) for every pair, over its disagreeing pixels.

    For log-likelihood, or for log-odds of one channel with the weights doubled.

    Args:
        low: the logits.
        position: flat indices into [pairs, height · width] of the image, as a `PairIndex` holds them.
        plus: the chosen mask's class at each position.
        minus: the rejected mask's class at each position.
        weight: the weight of each position.
        pairs: the number of pairs.
        image_index: the image of each pair; None: pair i belongs to image i.
    """
    legal = [ids.clamp(0, max(2, low.shape[1]) - 1) for ids in (plus, minus)]
    # A class that the logits do not have gives NaN rather than the value of another class.
    weight = weight.masked_fill((plus != legal[0]) | (minus != legal[1]), float("nan"))
    result: PerPair = _LowResolutionMargin.apply(low.logits, low, position, *legal, weight, pairs, image_index)
    return result


class _LowResolutionMargin(torch.autograd.Function):
    """Gather four neighbours, subtract, sum by pair. Saves where the masks differ, and no logits."""

    @staticmethod
    def forward(
        ctx: Any,
        logits: SmallLogits,
        low: LowResolution,
        position: Position,
        plus: Tensor,
        minus: Tensor,
        weight: Weight,
        pairs: int,
        image_index: ImageIndex | None,
    ) -> PerPair:
        ctx.save_for_backward(position, plus, minus, weight, image_index)
        ctx.shape, ctx.dtype, ctx.device = logits.shape, logits.dtype, logits.device
        ctx.places = _Places(low)
        wide = wide_dtype(logits)
        total = torch.zeros(pairs, dtype=wide, device=logits.device)
        for some in range(0, len(position), CHUNK):
            part = slice(some, some + CHUNK)
            pair, corners = ctx.places.of(position[part], image_index)
            value = torch.zeros_like(weight[part], dtype=score_dtype(logits))
            for index, share in corners:
                for sign, entry in _entries(logits.shape, index, plus[part], minus[part]):
                    value.addcmul_(sign * share, torch.take(logits, entry).to(value.dtype))
            total.index_add_(0, pair, (weight[part] * value).to(wide))
        return total.to(score_dtype(logits))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_margin: PerPair) -> tuple[Tensor | None, ...]:
        position, plus, minus, weight, image_index = ctx.saved_tensors
        # Many pixels share a logit: summed in fp32, since bf16 would drop small terms.
        grad = torch.zeros(ctx.shape.numel(), dtype=grad_margin.dtype, device=ctx.device)
        for some in range(0, len(position), CHUNK):
            part = slice(some, some + CHUNK)
            pair, corners = ctx.places.of(position[part], image_index)
            slope = grad_margin[pair] * weight[part]
            for index, share in corners:
                for sign, entry in _entries(ctx.shape, index, plus[part], minus[part]):
                    grad.index_add_(0, entry, sign * share * slope)
        return grad.view(ctx.shape).to(ctx.dtype), *[None] * 7


class _Places:
    """The places in the low-resolution logits that the pixels of an image read."""

    def __init__(self, low: LowResolution) -> None:
        self.rows, self.columns = low.axis(0), low.axis(1)
        self.stride = low.logits.shape[3]
        self.block = low.logits.shape[1:].numel()
        self.width, self.pixels = low.size[1], low.size[0] * low.size[1]

    def of(self, position: Position, image_index: ImageIndex | None) -> tuple[Tensor, Iterator[tuple[Tensor, Weight]]]:
        """Return the pair of each position, and for its four neighbours the flat index in class 0 and the share."""
        pair = torch.div(position, self.pixels, rounding_mode="floor")
        pixel = position - pair * self.pixels
        row = torch.div(pixel, self.width, rounding_mode="floor")
        first = (pair if image_index is None else image_index[pair]) * self.block
        return pair, self._corners(first, row, pixel - row * self.width)

    def _corners(self, first: Tensor, row: Tensor, column: Tensor) -> Iterator[tuple[Tensor, Weight]]:
        above, below, down = (part[row] for part in self.rows)
        left, right, along = (part[column] for part in self.columns)
        tops = (first + above * self.stride, 1 - down), (first + below * self.stride, down)
        for (line, vertical), (place, horizontal) in product(tops, ((left, 1 - along), (right, along))):
            yield line + place, vertical * horizontal


def _entries(shape: torch.Size, index: Tensor, plus: Tensor, minus: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (sign, flat index) such that the pixel's margin is Σ sign · logit."""
    if shape[1] == 1:
        yield (plus > 0).float() - (minus > 0).float(), index
        return
    one = torch.ones((), device=index.device)
    plane = shape[2] * shape[3]
    yield one, index + plus.long() * plane
    yield -one, index + minus.long() * plane


def _ratio(numerator: int, denominator: int, dtype: torch.dtype) -> Tensor:
    # An axis of one pixel reads the first.
    return torch.tensor(float(numerator), dtype=dtype) / max(denominator, 1) if denominator > 0 else torch.zeros(())


ScoreBand = Callable[[Sequence[Logits], slice], PerPair]
"""Takes upsampled logits [images, channels, pixels] of one band, and the slice of pixels of the image they cover."""

# Upsampled logits in a band: with the intermediate results of scoring a few MB, which a CPU's caches mostly hold.
CPU_BAND, DEVICE_BAND = 1 << 18, 1 << 23
# Thinner bands would read about as many rows as they make.
LEAST_ROWS = 8


def sum_of_bands(score: ScoreBand, low: LowResolution, *beside: LowResolution, numbers: int | None = None) -> PerPair:
    """Return Σ score(band, pixels) over the bands of an image, differentiable in the logits of `low`.

    Args:
        score: scores one band; called again in the backward, so it must be deterministic.
        low: the logits.
        beside: further logits of the same image that the score reads, such as a reference's; they get no gradient.
        numbers: about how many upsampled logits a band may have.
    """
    if numbers is None:
        numbers = CPU_BAND if low.logits.device.type == "cpu" else DEVICE_BAND
    rows = max(LEAST_ROWS, numbers // (low.shape[0] * low.shape[1] * low.grid[1]))
    result: PerPair = _SumOfBands.apply(low.logits, low, list(beside), score, rows)
    return result


class _SumOfBands(torch.autograd.Function):
    """Saves the low-resolution logits, and computes each band twice."""

    @staticmethod
    def forward(
        ctx: Any, logits: SmallLogits, low: LowResolution, beside: list[LowResolution], score: ScoreBand, rows: int
    ) -> PerPair:
        ctx.save_for_backward(logits)
        ctx.rows = [Rows(one) for one in (low, *beside)]
        ctx.score, ctx.step = score, rows
        wide = wide_dtype(logits)
        with _no_autocast(logits.device):
            parts = [
                score([one.upsample(some) for one in ctx.rows], pixels).to(wide)
                for some, pixels in _bands(low.size, rows)
            ]
        return torch.stack(parts).sum(0).to(score_dtype(logits))

    @staticmethod
    def backward(ctx: Any, grad_score: PerPair) -> tuple[Tensor | None, ...]:
        # once_differentiable would accept a constant slope and return 0 as the second derivative.
        if torch.is_grad_enabled():
            raise RuntimeError(
                "Expected one derivative of low-resolution scores but a second was requested (create_graph=True); "
                "upsample the logits yourself and call score_pairs(backend='reference')."
            )
        (logits,) = ctx.saved_tensors
        own, *others = ctx.rows
        grad = torch.zeros_like(logits, dtype=score_dtype(logits))
        with _no_autocast(logits.device):
            for some, pixels in _bands(own.low.size, ctx.step):
                beside = [other.upsample(some) for other in others]
                part = own.read(some).requires_grad_()
                with torch.enable_grad():
                    score = ctx.score([own.upsample(some, part), *beside], pixels)
                grad[:, :, own.span(some)] += torch.autograd.grad(score, part, grad_score)[0]
        return grad.to(logits.dtype), None, None, None, None


class Rows:
    """Upsampled rows of logits, computed on request; equal to those of F.interpolate."""

    def __init__(self, low: LowResolution) -> None:
        self.low = low.detach()
        self._above, self._below, self._down = low.axis(0)
        # On the CPU, so that no slice waits for a device.
        self._first, self._last = (part.tolist() for part in low.axis(0, torch.device("cpu"))[:2])

    def span(self, some: slice) -> slice:
        """Return the slice of low-resolution rows that the rows `some` read."""
        return slice(self._first[some.start], self._last[some.stop - 1] + 1)

    def read(self, some: slice) -> SmallLogits:
        """Return the low-resolution rows that the rows `some` read."""
        part = self.low.logits[:, :, self.span(some)]
        return part.to(score_dtype(part))

    def upsample(self, some: slice, part: SmallLogits | None = None) -> Logits:
        """Return the rows `some`, flat; `part`: the low-resolution rows that they read, if already at hand."""
        part = self.read(some) if part is None else part
        # First along the few low-resolution rows, then between them: less work than four neighbours per pixel.
        size = (part.shape[2], self.low.grid[1])
        wide = F.interpolate(part, size, mode="bilinear", align_corners=self.low.align_corners)
        wide = wide[..., : self.low.size[1]]
        first, down = self._first[some.start], self._down[some, None]
        above, below = (wide.index_select(2, rows[some] - first) for rows in (self._above, self._below))
        return torch.lerp(above, below, down).flatten(2)


def _bands(size: tuple[int, int], rows: int) -> Iterator[tuple[slice, slice]]:
    """Yield the slices of rows and of pixels of each band."""
    height, width = size
    for first in range(0, height, rows):
        last = min(first + rows, height)
        yield slice(first, last), slice(first * width, last * width)


def _no_autocast(device: torch.device) -> torch.autocast:
    # The backward runs outside the forward's autocast, and has to compute the same numbers.
    return torch.autocast(device.type, enabled=False)

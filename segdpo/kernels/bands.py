"""Sums over all pixels of upsampled logits, a band of rows at a time: the whole is never there.

Scores other than margins read every pixel, and log-sum-exp is not linear, so the adjoint alone does not do. Each band
is upsampled, scored and dropped; the backward makes each band once more and adds its gradient, taken back through the
upsampling, to that of the low-resolution logits.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from segdpo.kernels.low_resolution import LowResolution, SmallLogits
from segdpo.kernels.pixels import Logits, PerPair, score_dtype, wide_dtype

ScoreBand = Callable[[Sequence[Logits], slice], PerPair]
"""Takes upsampled logits [images, channels, pixels] of one band and which of the image's pixels these are."""

# Upsampled numbers in a band: with what scoring makes of it, a few MB that a CPU's caches mostly hold.
CPU_BAND, DEVICE_BAND = 1 << 18, 1 << 23
# Thinner bands read about as many rows as they make, and are widened anew for each.
LEAST_ROWS = 8


def sum_of_bands(score: ScoreBand, low: LowResolution, *beside: LowResolution, numbers: int | None = None) -> PerPair:
    """Return Σ score(band, pixels) over the bands of an image, differentiable in the logits of `low`.

    Args:
        score: scores one band; called again in the backward, so it must give the same each time.
        low: the logits.
        beside: further logits of the same image that the score reads (a reference's); they get no gradient.
        numbers: about how many upsampled numbers a band may have.
    """
    if numbers is None:
        numbers = CPU_BAND if low.logits.device.type == "cpu" else DEVICE_BAND
    rows = max(LEAST_ROWS, numbers // (low.shape[0] * low.shape[1] * low.grid[1]))
    result: PerPair = _SumOfBands.apply(low.logits, low, list(beside), score, rows)
    return result


class _SumOfBands(torch.autograd.Function):
    """Keeps the low-resolution logits and what the score brings along; works out each band twice."""

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
        # once_differentiable would let a constant slope through, and the second derivative be taken for 0.
        if torch.is_grad_enabled():
            raise RuntimeError(
                "Expected one backward through low-resolution scores but a second was asked for (create_graph=True), "
                "which they do not have; upsample the logits yourself and call score_pairs(backend='reference')."
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
    """Rows of logits at the image's size, made when they are asked for: the numbers of F.interpolate."""

    def __init__(self, low: LowResolution) -> None:
        self.low = low.detach()
        self._above, self._below, self._down = low.axis(0)
        # Known on the CPU, so that no slice waits for a device.
        self._first, self._last = (part.tolist() for part in low.axis(0, torch.device("cpu"))[:2])

    def span(self, some: slice) -> slice:
        """Return which low-resolution rows the rows `some` read."""
        return slice(self._first[some.start], self._last[some.stop - 1] + 1)

    def read(self, some: slice) -> SmallLogits:
        """Return the low-resolution rows that the rows `some` read."""
        part = self.low.logits[:, :, self.span(some)]
        return part.to(score_dtype(part))

    def upsample(self, some: slice, part: SmallLogits | None = None) -> Logits:
        """Return the rows `some`, flat; `part`: what they read, if it is there already."""
        part = self.read(some) if part is None else part
        # Along the rows while they are few, then between them: less work than four neighbours for every pixel.
        size = (part.shape[2], self.low.grid[1])
        wide = F.interpolate(part, size, mode="bilinear", align_corners=self.low.align_corners)
        wide = wide[..., : self.low.size[1]]
        first, down = self._first[some.start], self._down[some, None]
        above, below = (wide.index_select(2, rows[some] - first) for rows in (self._above, self._below))
        return torch.lerp(above, below, down).flatten(2)


def _bands(size: tuple[int, int], rows: int) -> Iterator[tuple[slice, slice]]:
    """Yield the rows and the pixels of each band."""
    height, width = size
    for first in range(0, height, rows):
        last = min(first + rows, height)
        yield slice(first, last), slice(first * width, last * width)


def _no_autocast(device: torch.device) -> torch.autocast:
    # The backward runs outside of the autocast that the forward ran in, and has to make the same numbers.
    return torch.autocast(device.type, enabled=False)

"""Whole masks under logits on a CPU: Σ weight · quantity and its gradient, in chunks of pixels that stay in the cache.

What a plain log-softmax writes to memory and reads again, two times the logits and once more in the backward, here
never leaves the cache: the backward computes the softmax of a chunk anew and writes the gradient, nothing else.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Integer
from torch import Tensor

from segdpo.kernels.pixels import Labels, Logits, Measure, score_dtype

Chunk = Float[Tensor, "channels chunk"]
Row = Float[Tensor, "chunk"]

CHUNK = 2**17
"""Logits a chunk: with its softmax it fits into a core's L2 cache of 1 MiB."""


@dataclass(frozen=True, eq=False)
class Planes:
    """Masks to be scored whole, `labels` [planes, pixels], each under all of the measures (rows of their tables)."""

    labels: Labels
    measures: Sequence[Measure]

    def of_images(self, images: int) -> list[list[int]]:
        """Return the numbers of each image's planes."""
        index = self.measures[0].image_index
        if index is None:
            return [[plane] for plane in range(images)]
        found: list[list[int]] = [[] for _ in range(images)]
        for plane, image in enumerate(index.tolist()):
            found[image].append(plane)
        return found

    def weight(self, measure: Measure, plane: int, part: slice) -> Row:
        """Return how much each pixel of a part counts."""
        table, inside = measure.weights[plane], measure.inside[plane, part]
        if len(table) == 1:
            return inside * table
        return table.index_select(0, measure.weigh_by[plane, part].long()).mul_(inside)


def plane_sums(logits: Logits, planes: Planes) -> Float[Tensor, "measures planes"]:
    """Return Σ weight · quantity of every plane under every measure, in fp64."""
    sums = torch.zeros(len(planes.measures), len(planes.labels), dtype=torch.float64)
    for image, own in enumerate(planes.of_images(len(logits))):
        for part in _parts(logits) if own else ():
            quantities = _Quantities(logits[image, :, part])
            for plane in own:
                label = planes.labels[plane, part]
                for number, measure in enumerate(planes.measures):
                    value = quantities(label, measure.quantity)
                    sums[number, plane] += value.mul_(planes.weight(measure, plane, part)).sum(dtype=torch.float64)
    return sums


def write_plane_slopes(out: Logits, logits: Logits, planes: Planes, grad: Float[Tensor, "measures planes"]) -> None:
    """Write the gradient of Σ grad · sums to `out`, which may be the logits themselves."""
    for image, own in enumerate(planes.of_images(len(logits))):
        if not own:
            out[image].zero_()
            continue
        for part in _parts(logits):
            slopes = [_slopes(planes, plane, part, grad) for plane in own]
            labels = [planes.labels[plane, part] for plane in own]
            _write(out[image, :, part], logits[image, :, part], labels, slopes)


class _Quantities:
    """log p, or log p/(1−p) of one channel, of the pixels of one chunk under any labels."""

    def __init__(self, chunk: Chunk) -> None:
        self.chunk = chunk.to(score_dtype(chunk))
        self.log_p = None if len(chunk) <= 2 else torch.log_softmax(self.chunk, 0)

    def __call__(self, label: Integer[Tensor, "chunk"], quantity: str) -> Row:
        if self.log_p is not None:
            return self.log_p.gather(0, label.long()[None])[0]
        odds = label.to(self.chunk.dtype).mul_(2).sub_(1).mul_(_odds(self.chunk))
        # Arithmetic takes any number for a class; where there are more channels, gather does not.
        odds.masked_fill_(label.clamp(0, 1) != label, float("nan"))
        return odds if quantity == "log_odds" else F.logsigmoid(odds)


def _slopes(
    planes: Planes, plane: int, part: slice, grad: Float[Tensor, "measures planes"]
) -> tuple[Row | None, Row | None]:
    """Return how a pixel's log-likelihood, and its log-odds, count in the end; None: not at all."""
    found: dict[str, Row | None] = {"log_likelihood": None, "log_odds": None}
    for measure, slope in zip(planes.measures, grad[:, plane], strict=True):
        more = planes.weight(measure, plane, part).mul_(slope)
        before = found[measure.quantity]
        found[measure.quantity] = more if before is None else before.add_(more)
    return found["log_likelihood"], found["log_odds"]


def _write(out: Chunk, chunk: Chunk, labels: list[Tensor], slopes: list[tuple[Row | None, Row | None]]) -> None:
    chunk = chunk.to(score_dtype(chunk))
    likelihood = [(label, slope) for label, (slope, _) in zip(labels, slopes, strict=True) if slope is not None]
    if len(chunk) > 2:
        _write_many(out, chunk, likelihood)
        return
    # Of one or two channels: d/dz log p(y) = y − sigmoid(z), and d/dz log-odds = ±1.
    total = torch.zeros_like(chunk[0])
    if likelihood:
        p = _odds(chunk).sigmoid_() if len(chunk) == 2 else _odds(chunk).sigmoid()
        for label, slope in likelihood:
            total.addcmul_(label - p, slope)
    for label, (_, odds_slope) in zip(labels, slopes, strict=True):
        if odds_slope is not None:
            total.addcmul_(label.to(total.dtype).mul_(2).sub_(1), odds_slope)
    out[-1].copy_(total)
    if len(out) == 2:
        torch.neg(out[1], out=out[0])


def _write_many(out: Chunk, chunk: Chunk, likelihood: list[tuple[Tensor, Row]]) -> None:
    softmax = torch.softmax(chunk, 0)
    down = -torch.stack([slope for _, slope in likelihood]).sum(0) if len(likelihood) > 1 else -likelihood[0][1]
    result = torch.mul(softmax, down, out=out if out.dtype == softmax.dtype else softmax)
    for label, slope in likelihood:
        result.scatter_add_(0, label.long()[None], slope[None])
    if result is not out:
        out.copy_(result)


def _odds(chunk: Chunk) -> Row:
    return chunk[0] if len(chunk) == 1 else chunk[1] - chunk[0]


def _parts(logits: Logits) -> Iterator[slice]:
    step = max(1024, CHUNK // logits.shape[1])
    for begin in range(0, logits.shape[2], step):
        yield slice(begin, begin + step)

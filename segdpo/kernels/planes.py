"""Scores of whole masks on a CPU: Σ weight · quantity and its gradient, in chunks of pixels that stay in the cache.

A plain log-softmax writes twice the size of the logits to memory, reads it again, and does so once more in the
backward. Here these values stay in the cache: the backward recomputes the softmax of a chunk and writes only the
gradient.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from jaxtyping import Float, Integer, UInt8
from torch import Tensor

from segdpo.kernels.pixels import Labels, Logits, Measure, score_dtype

Row = Float[Tensor, "chunk"]
Label = Integer[Tensor, "chunk"]
Chunk = Float[Tensor, "channels chunk"]
Slope = tuple[Label, str, Tensor]
"""A plane's labels in a chunk, a quantity, and its derivative, per pixel or as one number."""

CHUNK = 2**18
"""Logits in a chunk: 1 MiB of fp32, about the L2 cache of a core. With 21 classes, a third of this took 1.2 times as
long, and five times this more than twice as long."""
# Σ log p = log(p₁ ⋯ p₁₆): one logarithm for 16 pixels. Each p is at least ½, so the product is at least 2⁻¹⁶.
FACTORS = 16


@dataclass(frozen=True, eq=False)
class Planes:
    """Whole masks to score, `labels` [planes, pixels]; each is scored under every measure."""

    labels: Labels
    measures: Sequence[Measure]

    def of_images(self, images: int) -> list[list[int]]:
        """Return the planes of each image."""
        index = self.measures[0].image_index
        if index is None:
            return [[plane] for plane in range(images)]
        found: list[list[int]] = [[] for _ in range(images)]
        for plane, image in enumerate(index.tolist()):
            found[image].append(plane)
        return found

    def inside(self, number: int, plane: int, part: slice) -> UInt8[Tensor, "chunk"] | None:
        """Return 1 for pixels that count under a measure and 0 for others; None if all count."""
        if self._full[number][plane]:
            return None
        # A product with bool takes three times as long.
        return self.measures[number].inside[plane, part].view(torch.uint8)

    def spread(self, row: Float[Tensor, "columns"], number: int, plane: int, part: slice) -> Tensor:
        """Return each pixel's entry of a row of a table like the measure's weights; one number if all are equal."""
        inside = self.inside(number, plane, part)
        if len(row) > 1:
            row = row.index_select(0, self.measures[number].weigh_by[plane, part].long())
        return row if inside is None else row * inside

    @cached_property
    def _full(self) -> list[list[bool]]:
        return [[bool(n) for n in measure.inside.view(torch.uint8).amin(1).tolist()] for measure in self.measures]

    def check_classes(self, channels: int) -> None:
        """Raise an error for illegal classes: the arithmetic of two classes would accept any number."""
        low, high = (int(end) for end in torch.stack(self.labels.aminmax()).tolist())
        if low < 0 or high >= max(2, channels):
            raise ValueError(f"Expected classes from 0 to {max(2, channels) - 1} but got masks from {low} to {high}.")


def plane_sums(logits: Logits, planes: Planes) -> Float[Tensor, "measures planes"]:
    """Return Σ weight · quantity of every plane under every measure, in fp64."""
    planes.check_classes(logits.shape[1])
    # The sums of all chunks are added at the end in one operation, which is faster than many small ones.
    found: dict[tuple[int, int], list[Tensor]] = {}
    for image, own in enumerate(planes.of_images(len(logits))):
        for part in _parts(logits) if own else ():
            chunk = _Chunk(logits[image, :, part])
            for plane in own:
                label = planes.labels[plane, part]
                for number, measure in enumerate(planes.measures):
                    if measure.weights.shape[1] == 1:
                        total = chunk.total(label, measure.quantity, planes.inside(number, plane, part))
                    else:
                        weight = planes.spread(measure.weights[plane], number, plane, part)
                        total = (chunk.each(label, measure.quantity) * weight).sum(dtype=torch.float64)
                    found.setdefault((number, plane), []).append(total)
    rows = []
    for number, measure in enumerate(planes.measures):
        row = torch.stack([torch.stack(found[number, plane]).sum() for plane in range(len(planes.labels))])
        rows.append(row * measure.weights[:, 0] if measure.weights.shape[1] == 1 else row)
    return torch.stack(rows)


def write_plane_gradient(out: Logits, logits: Logits, planes: Planes, grad: Float[Tensor, "measures planes"]) -> None:
    """Write the gradient of Σ grad · sums with respect to the logits to `out`."""
    tables = [(measure.weights * slope[:, None]).unbind() for measure, slope in zip(planes.measures, grad, strict=True)]
    write = _write_two if logits.shape[1] <= 2 else _write_many
    for image, own in enumerate(planes.of_images(len(logits))):
        if not own:
            out[image].zero_()
            continue
        for part in _parts(logits):
            slopes: list[Slope] = []
            for plane in own:
                for number, measure in enumerate(planes.measures):
                    slope = planes.spread(tables[number][plane], number, plane, part)
                    slopes.append((planes.labels[plane, part], measure.quantity, slope))
            write(out[image, :, part], logits[image, :, part].to(score_dtype(logits)), slopes)


class _Chunk:
    """The log p of some pixels, or log p/(1−p) of one channel, for any labels; computes what labels share once."""

    def __init__(self, chunk: Chunk) -> None:
        chunk = chunk.to(score_dtype(chunk))
        self._log_p = torch.log_softmax(chunk, 0) if len(chunk) > 2 else None
        self._odds = _odds_of(chunk) if len(chunk) <= 2 else None

    def each(self, label: Label, quantity: str) -> Row:
        """Return the quantity of every pixel."""
        if self._odds is None:
            assert self._log_p is not None
            return self._log_p.gather(0, label.long()[None])[0]
        odds = _signed(self._odds, label)
        return odds if quantity == "log_odds" else F.logsigmoid(odds)

    def total(self, label: Label, quantity: str, inside: UInt8[Tensor, "chunk"] | None) -> Float[Tensor, ""]:
        """Return the quantity's sum over the pixels inside, in fp64."""
        if self._odds is not None and quantity == "log_likelihood":
            return _sum_log_likelihood(self._odds, label, inside)
        value = self.each(label, quantity)
        return (value if inside is None else value * inside).sum(dtype=torch.float64)


def _write_two(out: Chunk, chunk: Chunk, slopes: list[Slope]) -> None:
    # One or two channels: d/dz log p(y) = y − σ(z), and d/dz log-odds = ±1.
    p, parts = _odds_of(chunk).sigmoid(), []
    for label, quantity, slope in slopes:
        step = label - p if quantity == "log_likelihood" else _signed(torch.ones_like(p), label)
        parts.append(step.mul_(slope))
    total = parts[0]
    for more in parts[1:]:
        total.add_(more)
    out[-1].copy_(total)
    if len(out) == 2:
        torch.neg(total, out=total)
        out[0].copy_(total)


def _write_many(out: Chunk, chunk: Chunk, slopes: list[Slope]) -> None:
    # d/dz log p(y) = onehot(y) − softmax(z). Log-odds of several classes are not scored here.
    softmax, down = torch.softmax(chunk, 0), -slopes[0][2]
    for _, _, slope in slopes[1:]:
        down = down - slope
    result = torch.mul(softmax, down, out=out if out.dtype == softmax.dtype else softmax)
    for label, _, slope in slopes:
        result.scatter_add_(0, label.long()[None], slope.expand(len(label))[None])
    if result is not out:
        out.copy_(result)


def _odds_of(chunk: Chunk) -> Row:
    """Return log p(1)/p(0)."""
    return chunk[0] if len(chunk) == 1 else chunk[1] - chunk[0]


def _signed(odds: Row, label: Label) -> Row:
    """Return the log-odds of a label: ±odds."""
    return label.to(odds.dtype).mul_(2).sub_(1).mul_(odds)


def _sum_log_likelihood(odds: Row, label: Label, inside: UInt8[Tensor, "chunk"] | None) -> Float[Tensor, ""]:
    """Return Σ log p of a label over the pixels inside (None: all), in fp64."""
    # log σ(d) = min(d, 0) + log σ(|d|).
    linear, p = _signed(odds, label).clamp_(max=0), odds.abs().sigmoid_()
    if inside is not None:
        linear.mul_(inside)
        p.sub_(1).mul_(inside).add_(1)  # exact, as ½ ≤ p ≤ 1
    return linear.sum(dtype=torch.float64) + _sum_log(p)


def _sum_log(p: Row) -> Float[Tensor, ""]:
    whole = len(p) - len(p) % FACTORS
    total = p[:whole].view(FACTORS, -1).prod(0).log_().sum(dtype=torch.float64)
    return total if whole == len(p) else total + p[whole:].log_().sum(dtype=torch.float64)


def _parts(logits: Logits) -> Iterator[slice]:
    step = max(2048, CHUNK // logits.shape[1] // 2048 * 2048)
    for begin in range(0, logits.shape[2], step):
        yield slice(begin, begin + step)

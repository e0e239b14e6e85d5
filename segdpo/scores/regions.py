"""Regions: the pixels of a pair that count. Reductions: their weights."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Integer, Shaped
from torch import Tensor

from segdpo.checks import IGNORE
from segdpo.kernels import not_ignored

Masks = Shaped[Tensor, "pairs *space"]
RegionFunction = Callable[[Tensor, Tensor], Tensor]
"""Takes `(chosen, rejected)`, both [pairs, *spatial], and returns a bool mask of the same shape."""


def image(chosen: Masks, rejected: Masks) -> Bool[Tensor, "pairs *space"]:
    """Return every pixel."""
    return torch.ones_like(chosen, dtype=torch.bool)


def disagreement(chosen: Masks, rejected: Masks) -> Bool[Tensor, "pairs *space"]:
    """Return the pixels where the two masks differ."""
    return chosen != rejected


@dataclass(frozen=True)
class Boundary:
    """The pixels at most `width` pixels from a contour of either mask (Chebyshev distance).

    A dataclass, so that Scores with equal widths are equal and are computed once.
    """

    width: int = 3

    def __post_init__(self) -> None:
        """Check the width."""
        if self.width < 1:
            raise ValueError(f"Expected a boundary width of at least 1 pixel but got {self.width}.")

    def __call__(self, chosen: Masks, rejected: Masks, ignore: int = IGNORE) -> Bool[Tensor, "pairs *space"]:
        """Return the union of both masks' bands."""
        return contour_band(chosen, self.width, ignore) | contour_band(rejected, self.width, ignore)


REGIONS: dict[str, RegionFunction] = {
    "image": image,
    "disagreement": disagreement,
    "boundary": Boundary(),
}


def contour_band(mask: Masks, width: int, ignore: int = IGNORE) -> Bool[Tensor, "pairs *space"]:
    """Return the pixels whose window of 2·width + 1 pixels holds two classes; ignored pixels make no contour."""
    labels = mask.float()
    ignored = ~not_ignored(mask, ignore)
    highest = _window_max(labels.masked_fill(ignored, -1.0), width)
    lowest = -_window_max(-labels.masked_fill(ignored, float("inf")), width)
    return highest > lowest


def _window_max(values: Float[Tensor, "pairs *space"], width: int) -> Float[Tensor, "pairs *space"]:
    # A square window is separable, so one 1-D pooling per axis works in any number of dimensions.
    for axis in range(1, values.ndim):
        rows = values.movedim(axis, -1)
        pooled = F.max_pool1d(rows.reshape(-1, 1, rows.shape[-1]), 2 * width + 1, stride=1, padding=width)
        values = pooled.reshape(rows.shape).movedim(-1, axis)
    return values


ReductionFunction = Callable[[Tensor, Tensor, int], Tensor]
"""Takes `(labels, inside, classes)`; returns the divisor of each class, [pairs, classes], or of all, [pairs, 1]."""

Labels = Integer[Tensor, "pairs pixels"]
Inside = Bool[Tensor, "pairs pixels"]


def sum_divisor(labels: Labels, inside: Inside, classes: int) -> Integer[Tensor, "pairs 1"]:
    """Every pixel weighs 1."""
    return torch.ones(len(labels), 1, dtype=torch.int64, device=labels.device)


def mean_divisor(labels: Labels, inside: Inside, classes: int) -> Integer[Tensor, "pairs 1"]:
    """Every pixel weighs 1 / (number of pixels inside)."""
    return inside.sum(1, keepdim=True)


def class_balanced_divisor(labels: Labels, inside: Inside, classes: int) -> Integer[Tensor, "pairs classes"]:
    """Every class of `labels` has the same total weight; a pixel weighs 1 / (classes present · pixels of its class)."""
    counts = torch.zeros(len(labels), classes, dtype=torch.int64, device=labels.device)
    counts.scatter_add_(1, labels.long(), inside.long())
    return (counts > 0).sum(1, keepdim=True) * counts


REDUCTIONS: dict[str, ReductionFunction] = {
    "sum": sum_divisor,
    "mean": mean_divisor,
    "class_balanced": class_balanced_divisor,
}


def pixel_weights(
    divisor: Integer[Tensor, "pairs classes_or_1"], dtype: torch.dtype
) -> Float[Tensor, "pairs classes_or_1"]:
    """Return 1 / divisor, and 0 where the divisor is 0: the score of an empty region is 0, not 0/0."""
    return torch.where(divisor > 0, 1.0 / divisor.clamp(min=1).to(dtype), 0.0)

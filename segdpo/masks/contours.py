"""Contours of regions and distances between them, in any number of dimensions: what judges and metrics share.

A contour is the pixels of a region with a neighbour across a face (4 of them in 2-D, 6 in 3-D) outside it; beyond the
image is outside. Ignored pixels are no contour and make none: what borders on ignore only is not judged. A measure of
two regions neither of which has a contour is NaN: there is nothing to be wrong about.
"""

from collections.abc import Iterator, Sequence
from itertools import zip_longest

import numpy as np
from jaxtyping import Bool, Float64, Integer
from scipy import ndimage

from segdpo.checks import IGNORE

Labels = Integer[np.ndarray, "*space"]
Region = Bool[np.ndarray, "*space"]
Distances = Float64[np.ndarray, "contour_pixels"]
Box = tuple[slice, ...]


def boxed_regions(
    gold: Labels, mask: Labels, *, background: bool, margin: int
) -> Iterator[tuple[int, Region, Region, Region]]:
    """Yield (class, gold's region, mask's region, valid pixels) for each class present in either on valid pixels.

    All three are cut to the box round both regions and `margin` pixels about it: erosions and distance transforms cost
    by the pixel, and objects are small. What looks `margin` pixels far sees what it would see in the whole image.
    """
    valid = (gold != IGNORE) & (mask != IGNORE)
    # find_objects takes 0 for nothing, and classes for labels from 1 on.
    shifted = [np.where(valid, labels + 1, 0).astype(np.uint8) for labels in (gold, mask)]
    boxes = zip_longest(*(ndimage.find_objects(labels) for labels in shifted))
    for label, of_both in enumerate(boxes):
        shown = [box for box in of_both if box is not None]
        if shown and (label > 0 or background):
            box = _round_both(shown, gold.shape, margin)
            first, second = (labels[box] == label + 1 for labels in shifted)
            yield label, first, second, valid[box]


def boundary_width(shape: Sequence[int]) -> int:
    """Return the width in pixels that the authors of boundary IoU take: 2 % of the image's diagonal, at least 1."""
    return max(1, round(0.02 * float(np.linalg.norm(shape))))


def band(region: Region, valid: Region, width: int) -> Region:
    """Return the pixels of the region that are at most `width` from its outside (chess-board distance)."""
    # That is what `width` erosions by a 3×3 square take away; ignored pixels take nothing.
    solid = np.pad(region | ~valid, 1)
    depth = ndimage.distance_transform_cdt(solid, metric="chessboard")[(slice(1, -1),) * region.ndim]
    return np.asarray(region & (depth <= width))


def contour(region: Region, valid: Region) -> Region:
    """Return the pixels of the region with a neighbour across a face that is outside it."""
    return np.asarray(region & ~ndimage.binary_erosion(region | ~valid))


def band_overlap(first: Region, second: Region, valid: Region, width: int) -> float:
    """Return the IoU of the two bands of `width` pixels inside the contours."""
    bands = band(first, valid, width), band(second, valid, width)
    union = int((bands[0] | bands[1]).sum())
    return int((bands[0] & bands[1]).sum()) / union if union else float("nan")


def contour_distances(
    first: Region, second: Region, valid: Region, spacing: Sequence[float]
) -> tuple[Distances, Distances]:
    """Return the distances from each contour pixel of `first` to the contour of `second`, and back; inf if it has none.

    `spacing` is the size of a pixel along each axis.
    """
    edges = contour(first, valid), contour(second, valid)
    return _distances_to(edges[1], edges[0], spacing), _distances_to(edges[0], edges[1], spacing)


def robust_hausdorff(there: Distances, back: Distances, *, worst: float) -> float:
    """Return the larger of both directions' 95th percentiles; `worst` if only one of the regions has a contour."""
    if len(there) and len(back):
        return max(float(np.percentile(there, 95)), float(np.percentile(back, 95)))
    return worst if len(there) or len(back) else float("nan")


def share_within(there: Distances, back: Distances, tolerance: float) -> float:
    """Return the share of both contours that lies within `tolerance` of the other."""
    distances = np.concatenate([there, back])
    # Three pixels of .1 are .30000000000000004 apart: at the tolerance is within it.
    return float((distances <= tolerance * (1 + 1e-9)).mean()) if len(distances) else float("nan")


def _round_both(boxes: Sequence[Box], shape: Sequence[int], margin: int) -> Box:
    return tuple(
        slice(max(0, min(side.start for side in sides) - margin), min(end, max(side.stop for side in sides) + margin))
        for sides, end in zip(zip(*boxes, strict=True), shape, strict=True)
    )


def _distances_to(target: Region, at: Region, spacing: Sequence[float]) -> Distances:
    if not target.any():
        return np.full(int(at.sum()), np.inf)
    return np.asarray(ndimage.distance_transform_edt(~target, sampling=spacing)[at])

"""Contours of regions and the distances between them, in any number of dimensions: what judges and metrics share.

A contour is the pixels of a region with a neighbour across a face (4 of them in 2-D, 6 in 3-D) outside it; beyond the
image is outside. Ignored pixels (255) are no contour and make none. A measure of two regions of which neither has a
contour is NaN.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest

import numpy as np
from jaxtyping import Bool, Float64, Integer
from scipy import ndimage

from segdpo.checks import IGNORE, check_range

Labels = Integer[np.ndarray, "*space"]
Region = Bool[np.ndarray, "*space"]
Distances = Float64[np.ndarray, "contour_pixels"]
Box = tuple[slice, ...]

CONTOUR_METRICS = ("boundary_iou", "hd95", "surface_dice", "components")


@dataclass(frozen=True)
class ContourOptions:
    """How contours are measured.

    Args:
        spacing: the size of a pixel along each axis.
        tolerance: how far contours may be apart for `surface_dice`, in units of `spacing`.
        width: of the bands of `boundary_iou`, in pixels.
        diagonal: of the image, in units of `spacing`: the `hd95` of a region with nothing.
    """

    spacing: tuple[float, ...]
    tolerance: float
    width: int
    diagonal: float


def contour_options(
    shape: Sequence[int],
    spacing: Sequence[float] | None = None,
    tolerance: float = 2.0,
    boundary_width: int | None = None,
) -> ContourOptions:
    """Return the options for images of this shape.

    Args:
        shape: of the image.
        spacing: the size of a pixel along each axis; None: 1.
        tolerance: see ContourOptions.
        boundary_width: None: 2 % of the image's diagonal, at least 1, as Cheng et al., "Boundary IoU", 2021, take it.

    Raises:
        ValueError: if an option is out of range, or `spacing` has not one number an axis.
    """
    sizes = (1.0,) * len(shape) if spacing is None else tuple(float(size) for size in spacing)
    if len(sizes) != len(shape):
        raise ValueError(
            f"Expected spacing to have a number for each of the {len(shape)} axes of the image but got {list(sizes)}."
        )
    for size in sizes:
        check_range("spacing", size, above=0)
    check_range("tolerance", tolerance, least=0)
    width = max(1, round(0.02 * float(np.linalg.norm(shape)))) if boundary_width is None else boundary_width
    check_range("boundary_width", width, least=1)
    return ContourOptions(sizes, tolerance, width, float(np.linalg.norm(np.multiply(shape, sizes))))


def measure_contours(
    prediction: Labels, gold: Labels, options: ContourOptions, names: Sequence[str], *, background: bool = False
) -> Iterator[tuple[int, dict[str, float]]]:
    """Yield each class present in either mask on valid pixels, and its measures.

    A class in only one of the masks has the worst values: 0, and the diagonal for `hd95`.

    Args:
        prediction: class ids, integers [*spatial], 255 = ignore.
        gold: class ids like `prediction`.
        options: from `contour_options` for images of this shape.
        names: what to measure, of CONTOUR_METRICS.
        background: whether class 0 counts like any other.
    """
    valid = (gold != IGNORE) & (prediction != IGNORE)
    # find_objects takes 0 for nothing and labels from 1 on, so classes are shifted by one.
    shifted = [np.where(valid, labels + 1, 0).astype(np.uint8) for labels in (gold, prediction)]
    # Erosions and distance transforms cost by the pixel and objects are small, so regions are cut to the box around
    # both and a margin: what looks that far sees what it would see in the whole image.
    margin = options.width if "boundary_iou" in names else 1
    boxes = zip_longest(*(ndimage.find_objects(labels) for labels in shifted))
    for label, of_both in enumerate(boxes):
        shown = [box for box in of_both if box is not None]
        if shown and (label > 0 or background):
            box = _box_around(shown, gold.shape, margin)
            truth, predicted = (labels[box] == label + 1 for labels in shifted)
            yield label, _measure(truth, predicted, valid[box], options, names)


def _measure(
    gold: Region, prediction: Region, valid: Region, options: ContourOptions, names: Sequence[str]
) -> dict[str, float]:
    values: dict[str, float] = {}
    if "components" in names:
        values["components"] = _count_components(prediction) - _count_components(gold)
    if not (gold.any() and prediction.any()):
        # Also where ignored pixels leave neither of them a contour.
        missing = {"boundary_iou": 0.0, "hd95": options.diagonal, "surface_dice": 0.0}
        return values | {name: value for name, value in missing.items() if name in names}
    if "boundary_iou" in names:
        values["boundary_iou"] = _boundary_iou(gold, prediction, valid, options.width)
    if "hd95" in names or "surface_dice" in names:
        edges = _contour(gold, valid), _contour(prediction, valid)
        there = _distances(edges[0], edges[1], options.spacing)
        back = _distances(edges[1], edges[0], options.spacing)
        distances = {
            "hd95": _hausdorff_95(there, back, worst=options.diagonal),
            "surface_dice": _surface_dice(there, back, options.tolerance),
        }
        values |= {name: value for name, value in distances.items() if name in names}
    return values


def _boundary_iou(first: Region, second: Region, valid: Region, width: int) -> float:
    """Return the IoU of the bands of `width` pixels inside both contours."""
    bands = _band(first, valid, width), _band(second, valid, width)
    union = int((bands[0] | bands[1]).sum())
    return int((bands[0] & bands[1]).sum()) / union if union else float("nan")


def _hausdorff_95(there: Distances, back: Distances, *, worst: float) -> float:
    """Return the larger of both directions' 95th percentiles; `worst` if only one of the regions has a contour."""
    if len(there) and len(back):
        return max(float(np.percentile(there, 95)), float(np.percentile(back, 95)))
    return worst if len(there) or len(back) else float("nan")


def _surface_dice(there: Distances, back: Distances, tolerance: float) -> float:
    """Return the share of both contours that lies within `tolerance` of the other."""
    distances = np.concatenate([there, back])
    # Three pixels of .1 are .30000000000000004 apart: at the tolerance is within it.
    return float((distances <= tolerance * (1 + 1e-9)).mean()) if len(distances) else float("nan")


def _count_components(region: Region) -> int:
    """Return the number of connected components; pixels that touch at a corner are connected."""
    return int(ndimage.label(region, np.ones((3,) * region.ndim))[1])


def _band(region: Region, valid: Region, width: int) -> Region:
    """Return the pixels of the region that are at most `width` from its outside (chess-board distance)."""
    # That is what `width` erosions by a 3×3 square take away; ignored pixels take nothing.
    solid = np.pad(region | ~valid, 1)
    depth = ndimage.distance_transform_cdt(solid, metric="chessboard")[(slice(1, -1),) * region.ndim]
    return np.asarray(region & (depth <= width))


def _contour(region: Region, valid: Region) -> Region:
    return np.asarray(region & ~ndimage.binary_erosion(region | ~valid))


def _distances(source: Region, target: Region, spacing: Sequence[float]) -> Distances:
    """Return the distance of each pixel of contour `source` to contour `target`; inf if `target` is empty."""
    if not target.any():
        return np.full(int(source.sum()), np.inf)
    return np.asarray(ndimage.distance_transform_edt(~target, sampling=spacing)[source])


def _box_around(boxes: Sequence[Box], shape: Sequence[int], margin: int) -> Box:
    return tuple(
        slice(max(0, min(side.start for side in sides) - margin), min(end, max(side.stop for side in sides) + margin))
        for sides, end in zip(zip(*boxes, strict=True), shape, strict=True)
    )

"""Contours and parts of predicted masks beside gold's: what is worked out image by image, on the CPU."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from segdpo.checks import check_range
from segdpo.masks import (
    Region,
    band_overlap,
    boundary_width,
    boxed_regions,
    contour_distances,
    robust_hausdorff,
    share_within,
)

SURFACE_METRICS = ("boundary_iou", "hd95", "surface_dice", "components")


@dataclass(frozen=True)
class Surface:
    """How contours are measured: the size of a pixel along each axis, and what is near."""

    spacing: tuple[float, ...]
    tolerance: float
    width: int
    diagonal: float


def make_surface(shape: Sequence[int], spacing: Sequence[float] | None, tolerance: float, width: int | None) -> Surface:
    """Return how contours of images of this shape are measured; refuse what makes no sense."""
    sizes = (1.0,) * len(shape) if spacing is None else tuple(float(size) for size in spacing)
    if len(sizes) != len(shape):
        raise ValueError(
            f"Expected spacing to have a number for each of the {len(shape)} axes of the image but got {list(sizes)}."
        )
    for size in sizes:
        check_range("spacing", size, above=0)
    check_range("tolerance", tolerance, least=0)
    check_range("boundary_width", 1 if width is None else width, least=1)
    diagonal = float(np.linalg.norm(np.multiply(shape, sizes)))
    return Surface(sizes, tolerance, boundary_width(shape) if width is None else width, diagonal)


def measure_surfaces(
    prediction: Tensor, gold: Tensor, classes: int, background: bool, surface: Surface, names: Sequence[str]
) -> dict[str, Tensor]:
    """Return each metric of each image and class, float32 [B, classes]; see `measure_masks`."""
    found = {name: np.full((len(gold), classes), np.nan, dtype=np.float32) for name in names}
    labels = (masks.to("cpu", torch.uint8).numpy() for masks in (prediction, gold))
    margin = surface.width if "boundary_iou" in names else 1
    for image, (of_prediction, of_gold) in enumerate(zip(*labels, strict=True)):
        for label, of_class, predicted, valid in boxed_regions(
            of_gold, of_prediction, background=background, margin=margin
        ):
            for name, value in _measure(of_class, predicted, valid, surface, names).items():
                found[name][image, label] = value
    return {name: torch.from_numpy(values).to(gold.device) for name, values in found.items()}


def _measure(
    gold: Region, prediction: Region, valid: Region, surface: Surface, names: Sequence[str]
) -> dict[str, float]:
    values: dict[str, float] = {}
    if "components" in names:
        values["components"] = _parts(prediction) - _parts(gold)
    if not (gold.any() and prediction.any()):
        # Also where ignored pixels leave neither of them a contour.
        missing = {"boundary_iou": 0.0, "hd95": surface.diagonal, "surface_dice": 0.0}
        return values | {name: value for name, value in missing.items() if name in names}
    if "boundary_iou" in names:
        values["boundary_iou"] = band_overlap(gold, prediction, valid, surface.width)
    if "hd95" in names or "surface_dice" in names:
        there, back = contour_distances(gold, prediction, valid, surface.spacing)
        distances = {
            "hd95": robust_hausdorff(there, back, worst=surface.diagonal),
            "surface_dice": share_within(there, back, surface.tolerance),
        }
        values |= {name: value for name, value in distances.items() if name in names}
    return values


def _parts(region: Region) -> int:
    """Return the number of parts; pixels that touch at a corner are of one."""
    return int(ndimage.label(region, np.ones((3,) * region.ndim))[1])

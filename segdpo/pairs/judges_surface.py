"""Judges by contours, against gold: boundary IoU, HD95, surface Dice. What all judges share is said in judges.py.

A contour is the pixels of a region with a 4-neighbour outside it; beyond the image is outside. Ignored pixels are no
contour and make none: what borders on ignore only is not judged.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Float64
from scipy import ndimage

from segdpo.pairs.judges import Scores, gold_of
from segdpo.pairs.overlap import class_regions
from segdpo.pairs.record import Mask, Masks, Record

Region = Bool[np.ndarray, "H W"]
Distances = Float64[np.ndarray, "contour_pixels"]
Spacing = tuple[float, float]


def boundary_iou(
    record: Record, masks: Masks, rng: np.random.Generator, *, width: int | None = None, background: bool = False
) -> Scores:
    """IoU of the bands of `width` pixels inside the contours of gold and mask.

    Cheng et al., "Boundary IoU", 2021. `width` left out: 2 % of the image's diagonal, at least 1, as there.
    """
    gold = gold_of(record, masks)
    if width is None:
        width = max(1, round(0.02 * float(np.hypot(*gold.shape))))
    if width < 1:
        raise ValueError(f"Expected width to be at least 1 pixel but got {width}.")

    def overlap(of_gold: Region, of_mask: Region, valid: Region) -> float:
        first, second = _band(of_gold, valid, width), _band(of_mask, valid, width)
        union = int((first | second).sum())
        return int((first & second).sum()) / union if union else 1.0

    return _judge_classes(gold, masks, background, overlap, empty=1.0)


def hd95(
    record: Record,
    masks: Masks,
    rng: np.random.Generator,
    *,
    spacing: Spacing = (1.0, 1.0),
    background: bool = False,
) -> Scores:
    """−max over both directions of the 95th percentile of the distances from contour to contour; 0 is best.

    `spacing`: height and width of a pixel. A class that only one of the two has costs the diagonal of the image.
    """
    gold = gold_of(record, masks)
    worst = -float(np.hypot(gold.shape[0] * spacing[0], gold.shape[1] * spacing[1]))

    def distance(of_gold: Region, of_mask: Region, valid: Region) -> float:
        there, back = _contour_distances(of_gold, of_mask, valid, spacing)
        if not (len(there) and len(back)):
            return worst if len(there) or len(back) else 0.0
        return -max(float(np.percentile(there, 95)), float(np.percentile(back, 95)))

    return _judge_classes(gold, masks, background, distance, empty=0.0)


def surface_dice(
    record: Record,
    masks: Masks,
    rng: np.random.Generator,
    *,
    tolerance: float,
    spacing: Spacing = (1.0, 1.0),
    background: bool = False,
) -> Scores:
    """Share of both contours that lies within `tolerance` (in units of `spacing`) of the other contour.

    Nikolov et al., "Deep learning to achieve clinically applicable segmentation of head and neck anatomy", 2018;
    contours counted in pixels.
    """
    if tolerance < 0:
        raise ValueError(f"Expected tolerance to be at least 0 but got {tolerance}.")
    gold = gold_of(record, masks)

    def share(of_gold: Region, of_mask: Region, valid: Region) -> float:
        distances = np.concatenate(_contour_distances(of_gold, of_mask, valid, spacing))
        return float((distances <= tolerance).mean()) if len(distances) else 1.0

    return _judge_classes(gold, masks, background, share, empty=1.0)


def _judge_classes(
    gold: Mask, masks: Masks, background: bool, judge: Callable[[Region, Region, Region], float], empty: float
) -> Scores:
    scores = []
    for mask in masks:
        values = [judge(*regions) for regions in class_regions(gold, mask, background=background)]
        scores.append(float(np.mean(values)) if values else empty)
    return np.array(scores, dtype=np.float64)


def _band(region: Region, valid: Region, width: int) -> Region:
    # Chess-board distance ≤ width is what `width` erosions by a 3×3 square take away; ignored pixels take nothing.
    solid = np.pad(region | ~valid, 1)
    depth = ndimage.distance_transform_cdt(solid, metric="chessboard")[1:-1, 1:-1]
    return np.asarray(region & (depth <= width))


def _contour(region: Region, valid: Region) -> Region:
    return np.asarray(region & ~ndimage.binary_erosion(region | ~valid))


def _contour_distances(first: Region, second: Region, valid: Region, spacing: Spacing) -> tuple[Distances, Distances]:
    """Return the distances from each contour pixel of `first` to the contour of `second`, and back; inf if it has none.

    Works in the box round both contours: nothing else is looked at, and distance transforms cost by the pixel.
    """
    edges = _contour(first, valid), _contour(second, valid)
    (box,) = ndimage.find_objects((edges[0] | edges[1]).astype(np.uint8)) or (None,)
    if box is None:
        return np.zeros(0), np.zeros(0)
    first_edge, second_edge = edges[0][box], edges[1][box]
    return _distances_to(second_edge, first_edge, spacing), _distances_to(first_edge, second_edge, spacing)


def _distances_to(target: Region, at: Region, spacing: Spacing) -> Distances:
    if not target.any():
        return np.full(int(at.sum()), np.inf)
    return np.asarray(ndimage.distance_transform_edt(~target, sampling=spacing)[at])

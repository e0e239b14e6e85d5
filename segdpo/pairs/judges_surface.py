"""Judges by contours, against gold: boundary IoU, HD95, surface Dice. What all judges share is said in judges.py.

What a contour is, also beside ignored pixels and at the border of the image, is said in contours.py.
"""

from collections.abc import Callable

import numpy as np

from segdpo.pairs.contours import (
    Region,
    band_overlap,
    boundary_width,
    boxed_regions,
    contour_distances,
    robust_hausdorff,
    share_within,
)
from segdpo.pairs.judges import Scores, gold_of
from segdpo.pairs.record import Mask, Masks, Record

Spacing = tuple[float, float]


def boundary_iou(
    record: Record, masks: Masks, rng: np.random.Generator, *, width: int | None = None, background: bool = False
) -> Scores:
    """IoU of the bands of `width` pixels inside the contours of gold and mask.

    Cheng et al., "Boundary IoU", 2021. `width` left out: 2 % of the image's diagonal, at least 1, as there.
    """
    gold = gold_of(record, masks)
    pixels = boundary_width(gold.shape) if width is None else width
    if pixels < 1:
        raise ValueError(f"Expected width to be at least 1 pixel but got {width}.")

    def overlap(of_gold: Region, of_mask: Region, valid: Region) -> float:
        return band_overlap(of_gold, of_mask, valid, pixels)

    return _judge_classes(gold, masks, background, overlap, best=1.0, margin=pixels)


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
    worst = float(np.hypot(gold.shape[0] * spacing[0], gold.shape[1] * spacing[1]))

    def distance(of_gold: Region, of_mask: Region, valid: Region) -> float:
        return -robust_hausdorff(*contour_distances(of_gold, of_mask, valid, spacing), worst=worst)

    return _judge_classes(gold, masks, background, distance, best=0.0)


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
        return share_within(*contour_distances(of_gold, of_mask, valid, spacing), tolerance)

    return _judge_classes(gold, masks, background, share, best=1.0)


def _judge_classes(
    gold: Mask,
    masks: Masks,
    background: bool,
    judge: Callable[[Region, Region, Region], float],
    best: float,
    margin: int = 1,
) -> Scores:
    scores = []
    for mask in masks:
        regions = boxed_regions(gold, mask, background=background, margin=margin)
        values = [judge(of_gold, of_mask, valid) for _, of_gold, of_mask, valid in regions]
        # Neither has a contour: nothing is wrong with the mask.
        scores.append(float(np.mean([best if np.isnan(value) else value for value in values])) if values else best)
    return np.array(scores, dtype=np.float64)

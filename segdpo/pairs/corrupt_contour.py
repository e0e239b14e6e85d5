"""Corruptions that move the contours of a mask: grow, shrink, shift, jagged, smoothed.

Each is a pure function `(mask, severity, rng) -> mask` with severity in (0, 1]; it returns another mask wherever it
can. All need a contour, so a mask of a single class (empty, or full) comes back as an equal copy, and so does a
straight contour that is to be smoothed.
"""

import cv2
import numpy as np

from segdpo.pairs.morphology import displace, grow_by, keep_ignored, label_parts, shrink_by, smooth_noise
from segdpo.pairs.record import Mask
from segdpo.pairs.starting_mask import checked_mask
from segdpo.regions import IGNORE


def grow(mask: Mask, severity: float, rng: np.random.Generator) -> Mask:
    """Grow all objects by severity · `reach(mask)` pixels, at least 1; small classes over large ones."""
    return grow_by(mask, pixels(mask, severity))


def shrink(mask: Mask, severity: float, rng: np.random.Generator) -> Mask:
    """Shrink all objects by severity · `reach(mask)` pixels, at least 1; parts thinner than twice that are lost."""
    return shrink_by(mask, pixels(mask, severity))


def shift(mask: Mask, severity: float, rng: np.random.Generator) -> Mask:
    """Move the whole mask by severity · `reach(mask)` pixels in a random direction, its edge repeated behind it."""
    distance = pixels(mask, severity)
    start = rng.uniform(0, 2 * np.pi)
    # A stripe does not change when it moves along itself: go round the compass until something does.
    for angle in start + np.arange(8) * np.pi / 4:
        dy, dx = round(distance * np.sin(angle)), round(distance * np.cos(angle))
        moved = displace(mask, -dy, -dx)
        if not np.array_equal(moved, mask):
            break
    return moved


def jagged_contour(mask: Mask, severity: float, rng: np.random.Generator) -> Mask:
    """Shake the contours: each pixel comes from severity · `reach(mask)` pixels away, in all directions."""
    amplitude = pixels(mask, severity) / 2
    moved = mask.copy()
    for _ in range(8):
        dy, dx = (amplitude * smooth_noise(mask.shape, max(0.8, 0.6 * amplitude), rng) for _ in range(2))
        moved = displace(mask, dy, dx)
        if not np.array_equal(moved, mask):
            break
        amplitude *= 1.5
    return moved


def smoothed_contour(mask: Mask, severity: float, rng: np.random.Generator) -> Mask:
    """Give each pixel the class most frequent round it, under a Gaussian of severity · `reach(mask)` pixels.

    Corners are rounded, thin parts and small gaps vanish. Takes no random numbers.
    """
    sigma = float(pixels(mask, severity))
    smoothed = mask.copy()
    while sigma < 2 * max(mask.shape):
        smoothed = _most_frequent(mask, sigma)
        if not np.array_equal(smoothed, mask):
            break
        sigma *= 1.5
    return smoothed


def pixels(mask: Mask, severity: float) -> int:
    """Return severity · `reach(mask)`, rounded, at least 1."""
    check_arguments(mask, severity)
    return max(1, round(severity * reach(mask)))


def check_arguments(mask: Mask, severity: float) -> None:
    """Refuse what is no mask of class ids, and a severity outside (0, 1]."""
    checked_mask(mask)
    if not 0 < severity <= 1:
        raise ValueError(f"Expected a severity above 0 and at most 1 but got {severity}.")


def reach(mask: Mask) -> float:
    """Return how many pixels a fault of severity 1 moves a contour: half the typical object's radius.

    At most 1/16 of the shorter side. The typical object is the mean over object pixels of their part's area, so that
    specks do not make it small.
    """
    limit = float(min(mask.shape)) / 16
    labels, classes = label_parts(mask)
    if not classes:
        return limit
    areas = np.bincount(labels.ravel())[1:].astype(np.float64)
    return min(limit, 0.5 * float(np.sqrt((areas**2).sum() / areas.sum() / np.pi)))


def _most_frequent(mask: Mask, sigma: float) -> Mask:
    classes = [c for c in np.unique(mask) if c != IGNORE]
    if not classes:
        return mask.copy()
    shares = [cv2.GaussianBlur((mask == c).astype(np.float32), (0, 0), sigma).reshape(mask.shape) for c in classes]
    return keep_ignored(np.array(classes, np.uint8)[np.argmax(np.stack(shares), axis=0)], mask)

"""Morphology of class-id masks: growing, shrinking, opening and closing of all classes at once.

The classes of a mask are ranked, background (class 0) lowest, then the object classes by falling area. A grey dilation
of the ranks grows every class over the larger ones, as one would draw them: body first, nucleus on top. The same rule
serves binary masks, nested parts and street scenes. Ignored pixels (255) neither spread nor change.
"""

import cv2
import numpy as np
from jaxtyping import Bool, Float32, Int32

from segdpo.checks import IGNORE
from segdpo.masks.overlap import Mask

PlaneRegion = Bool[np.ndarray, "height width"]
Labels = Int32[np.ndarray, "height width"]
Field = Float32[np.ndarray, "height width"]


def object_classes(mask: Mask) -> list[int]:
    """Return the object classes of a mask (neither 0 nor 255), the largest first."""
    areas = np.bincount(mask.ravel(), minlength=256)
    areas[[0, IGNORE]] = 0
    return [int(c) for c in np.argsort(-areas, kind="stable") if areas[c]]


def keep_ignored(changed: Mask, original: Mask) -> Mask:
    """Mark in `changed`, in place, what is ignored in `original`, and return it."""
    changed[original == IGNORE] = IGNORE
    return changed


def grow_by(mask: Mask, radius: float) -> Mask:
    """Grow every object class by `radius` pixels, over the background and over larger classes."""
    return _on_ranks(mask, radius, "dilate")


def shrink_by(mask: Mask, radius: float) -> Mask:
    """Shrink every object class by `radius` pixels; the larger class or the background beside it takes its place."""
    return _on_ranks(mask, radius, "erode")


def close_gaps(mask: Mask, width: float) -> Mask:
    """Fill the gaps and bays narrower than `width` pixels between objects of a class."""
    # Background around the image, so that an object near its edge is not joined to the edge.
    margin = int(width / 2) + 1
    closed = _on_ranks(np.pad(mask, margin), width / 2, "dilate", "erode")
    return closed[margin:-margin, margin:-margin].copy()


def drop_thin(mask: Mask, width: float) -> Mask:
    """Remove the parts thinner than `width` pixels; what stays keeps its contours, corners included."""
    core = _on_ranks(mask, width / 2, "erode", "dilate")
    # Opening with a disc also rounds corners: growing the core by one pixel, within the mask, restores them.
    lookup, ids = _ranking(mask)
    kept = np.minimum(lookup[grow_by(core, 1.5)], lookup[mask])
    return keep_ignored(ids[kept], mask)


def label_parts(mask: Mask) -> tuple[Labels, list[int]]:
    """Return the 8-connected parts of each object class, numbered from 1, and the class of each part."""
    labels = np.zeros(mask.shape, np.int32)
    classes: list[int] = []
    for class_id in object_classes(mask):
        count, found = cv2.connectedComponents((mask == class_id).astype(np.uint8), connectivity=8)
        labels[found > 0] = found[found > 0] + len(classes)
        classes += [class_id] * (count - 1)
    return labels, classes


def depth(region: PlaneRegion) -> Field:
    """Return the Euclidean distance of each pixel of the region to the nearest pixel outside, and 0 outside.

    A region that fills the image has no outside: its depth is the image's longer side everywhere.
    """
    if region.all():
        return np.full(region.shape, max(region.shape), np.float32)
    return np.asarray(cv2.distanceTransform(region.astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE), np.float32)


def disc(radius: float) -> PlaneRegion:
    """Return the pixels at most `radius` from the centre: radius 1 is a plus of 5, below 1 a single pixel."""
    reach = int(radius)
    y, x = np.ogrid[-reach : reach + 1, -reach : reach + 1]
    return np.asarray(x * x + y * y <= radius * radius + 1e-9)


def displace(mask: Mask, dy: Field | float, dx: Field | float) -> Mask:
    """Return the mask with each pixel taken from (y + dy, x + dx), rounded, the image's edge repeated outside.

    A pixel whose source is ignored keeps its own class.
    """
    height, width = mask.shape
    y = np.clip(np.rint(np.arange(height)[:, None] + dy), 0, height - 1).astype(np.intp)
    x = np.clip(np.rint(np.arange(width)[None, :] + dx), 0, width - 1).astype(np.intp)
    source = mask[np.broadcast_to(y, mask.shape), np.broadcast_to(x, mask.shape)]
    return keep_ignored(np.where(source == IGNORE, mask, source), mask)


def smooth_noise(shape: tuple[int, int], sigma: float, rng: np.random.Generator) -> Field:
    """Return Gaussian noise blurred over `sigma` pixels, mean 0 and standard deviation 1 over the image."""
    noise = rng.standard_normal(shape, dtype=np.float32)
    noise = np.asarray(cv2.GaussianBlur(noise, (0, 0), sigma), np.float32).reshape(shape)
    noise = noise - noise.mean()
    return np.asarray(noise / max(float(noise.std()), 1e-6), np.float32)


def _on_ranks(mask: Mask, radius: float, *steps: str) -> Mask:
    lookup, ids = _ranking(mask)
    ranks = lookup[mask]
    ignored = mask == IGNORE
    kernel = disc(radius).astype(np.uint8)
    for step in steps:
        # The neutral value of each step: lowest for a maximum, highest for a minimum.
        ranks[ignored] = 0 if step == "dilate" else len(ids) - 1
        ranks = np.asarray(cv2.dilate(ranks, kernel) if step == "dilate" else cv2.erode(ranks, kernel), np.uint8)
    return keep_ignored(ids[ranks], mask)


def _ranking(mask: Mask) -> tuple[Mask, Mask]:
    """Return the rank of each class id (a table of 256) and the class id of each rank."""
    ids = np.array([0, *object_classes(mask)], np.uint8)
    lookup = np.zeros(256, np.uint8)
    lookup[ids] = np.arange(len(ids))
    return lookup, ids

"""Corruptions that add, remove, join or rename parts: holes, lost and merged components, class swap, spurious blob.

Each is a pure function `(mask, severity, rng) -> mask` with severity in (0, 1]. A part is an 8-connected component of
one class; class 0 is background. What each needs is said in its docstring; a mask without it comes back as an equal
copy.
"""

import cv2
import numpy as np

from segdpo.pairs.corrupt_contour import check_arguments, pixels, reach
from segdpo.pairs.morphology import Region, depth, keep_ignored, label_parts, object_classes
from segdpo.pairs.record import Mask
from segdpo.regions import IGNORE


def holes(mask: Mask, severity: float, rng: np.random.Generator) -> Mask:
    """Cut up to three round holes of severity · `reach(mask)` pixels radius into objects; needs an object pixel."""
    radius, changed = pixels(mask, severity), mask.copy()
    for _ in range(max(1, round(3 * severity))):
        inside = (changed != 0) & (changed != IGNORE)
        if inside.any():
            changed[_round(mask, _pick_deep(inside, radius + 1, rng), radius) & inside] = 0
    return changed


def lost_component(mask: Mask, severity: float, rng: np.random.Generator) -> Mask:
    """Lose severity / 2 of the parts, at least one, with what they enclose; needs an object.

    What surrounds a part moves in. A mask of one object becomes empty.
    """
    check_arguments(mask, severity)
    changed = mask.copy()
    labels, classes = label_parts(mask)
    for part in _some(len(classes), severity, rng):
        region = _filled(labels == part + 1)
        changed[region] = _surrounding(changed, region)
    return keep_ignored(changed, mask)


def merged_component(mask: Mask, severity: float, rng: np.random.Generator) -> Mask:
    """Join parts of a class to their nearest neighbour by bridges; needs two parts of one class.

    Up to five bridges, severity · `reach(mask)` pixels to each side of the line between the nearest points.
    """
    radius, changed = pixels(mask, severity), mask.copy()
    for _ in range(max(1, round(5 * severity))):
        labels, classes = label_parts(changed)
        mergeable = [part for part, class_id in enumerate(classes) if classes.count(class_id) > 1]
        if not mergeable:
            break
        part = int(rng.choice(mergeable))
        mates = [other + 1 for other, class_id in enumerate(classes) if class_id == classes[part] and other != part]
        changed[_bridge(labels == part + 1, np.isin(labels, mates), radius)] = classes[part]
        keep_ignored(changed, mask)
    return changed


def class_swap(mask: Mask, severity: float, rng: np.random.Generator) -> Mask:
    """Give severity / 2 of the parts, at least one, another class that occurs in the mask; needs two classes.

    Another object class where there is one; in a binary mask the part becomes background.
    """
    check_arguments(mask, severity)
    pixel_classes = [int(c) for c in np.unique(mask) if c != IGNORE]
    changed = mask.copy()
    labels, classes = label_parts(mask)
    for part in _some(len(classes), severity, rng):
        others = [c for c in pixel_classes if c != classes[part]]
        others = [c for c in others if c != 0] or others
        if others:
            changed[labels == part + 1] = rng.choice(others)
    return changed


def spurious_blob(mask: Mask, severity: float, rng: np.random.Generator) -> Mask:
    """Add an object that is not there, 2 · severity · `reach(mask)` pixels in radius, of a class in the mask or 1.

    It lies on background, away from objects while there is room; without background it replaces other classes; a
    mask that is all of one object class has no place for it.
    """
    check_arguments(mask, severity)
    radius = max(1, round(2 * severity * reach(mask)))
    class_id = int(rng.choice(object_classes(mask) or [1]))
    room = mask == 0
    if not room.any():
        room = (mask != class_id) & (mask != IGNORE)
    changed = mask.copy()
    if room.any():
        centre = _pick_deep(room, 1.3 * radius + 1, rng)
        turn = rng.uniform(0, 2 * np.pi)
        changed[_round(mask, centre, radius, wobble=rng.uniform(-0.25, 0.25, 2), turn=turn) & room] = class_id
    return changed


def _some(count: int, severity: float, rng: np.random.Generator) -> list[int]:
    return [int(k) for k in rng.permutation(count)[: max(1, round(severity * count / 2))]]


def _pick_deep(region: Region, wanted: float, rng: np.random.Generator) -> tuple[int, int]:
    """Draw a pixel at least `wanted` pixels inside the region, or as deep inside as any."""
    # The image's edge counts as outside, so that blobs and holes are seldom cut in half.
    depths = depth(np.pad(region, 1))[1:-1, 1:-1]
    y, x = np.nonzero(depths >= min(wanted, float(depths.max())))
    k = int(rng.integers(len(y)))
    return int(y[k]), int(x[k])


def _round(
    mask: Mask,
    centre: tuple[int, int],
    radius: float,
    wobble: np.ndarray | tuple[float, float] = (0.0, 0.0),
    turn: float = 0.0,
) -> Region:
    """Return a disc, or with `wobble` an uneven blob of about that radius, turned by an angle."""
    y, x = np.ogrid[: mask.shape[0], : mask.shape[1]]
    y, x = y - centre[0], x - centre[1]
    angle = np.arctan2(y, x) + turn
    limit = radius * (1 + wobble[0] * np.cos(2 * angle) + wobble[1] * np.sin(3 * angle))
    return np.asarray(np.hypot(y, x) <= limit + 1e-9)


def _filled(region: Region) -> Region:
    contours, _ = cv2.findContours(region.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    return np.asarray(cv2.fillPoly(region.astype(np.uint8), contours, 1), np.uint8) > 0


def _surrounding(mask: Mask, region: Region) -> int:
    """Return the class most frequent on the ring round the region, ignored pixels left out; 0 where there is none."""
    ring = np.asarray(cv2.dilate(region.astype(np.uint8), np.ones((3, 3), np.uint8)), np.uint8) > 0
    seen = mask[ring & ~region]
    seen = seen[seen != IGNORE]
    return int(np.bincount(seen).argmax()) if len(seen) else 0


def _bridge(part: Region, mates: Region, radius: float) -> Region:
    """Return the pixels within `radius` of the shortest line between a part and its nearest mate."""
    to_part = np.where(mates, depth(~part), np.inf)
    end = np.array(np.unravel_index(int(np.argmin(to_part)), part.shape))
    points = np.argwhere(part)
    begin = points[np.argmin(((points - end) ** 2).sum(axis=1))]
    y, x = np.indices(part.shape)
    along = end - begin
    t = np.clip(((y - begin[0]) * along[0] + (x - begin[1]) * along[1]) / (along @ along), 0, 1)
    near = np.hypot(y - begin[0] - t * along[0], x - begin[1] - t * along[1]) <= radius
    # What is already one of the two stays; the bridge is what lies between them.
    return np.asarray(near & ~part & ~mates)

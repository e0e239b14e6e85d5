"""Corrupted copies of a mask: contours moved, parts lost, added, merged or relabelled.

A corruption is a function `(mask, severity, rng) -> mask`. Its severity is above 0 and at most 1, where a contour moves
by `reach(mask)` pixels.
"""

from collections.abc import Callable, Mapping, Sequence

import cv2
import numpy as np

from segdpo.checks import IGNORE
from segdpo.data import Candidates, Record, checked_mask, starting_mask
from segdpo.masks import (
    Mask,
    PlaneRegion,
    depth,
    displace,
    grow_by,
    keep_ignored,
    label_parts,
    object_classes,
    shrink_by,
    smooth_noise,
)
from segdpo.preferences.judges import CannotJudge

Corruption = Callable[[Mask, float, np.random.Generator], Mask]
"""Takes `(mask, severity, rng)` and returns another mask of the same shape; must not change the one it is given."""


def grow(mask: Mask, severity: float, rng: np.random.Generator) -> Mask:
    """Grow all objects by severity · `reach(mask)` pixels, at least 1; small classes over large ones."""
    return grow_by(mask, _pixels(mask, severity))


def shrink(mask: Mask, severity: float, rng: np.random.Generator) -> Mask:
    """Shrink all objects by severity · `reach(mask)` pixels, at least 1; parts thinner than twice that are lost."""
    return shrink_by(mask, _pixels(mask, severity))


def shift(mask: Mask, severity: float, rng: np.random.Generator) -> Mask:
    """Move the whole mask by severity · `reach(mask)` pixels in a random direction, its edge repeated behind it."""
    distance = _pixels(mask, severity)
    start = rng.uniform(0, 2 * np.pi)
    # A stripe does not change when it moves along itself: try eight directions until the mask changes.
    for angle in start + np.arange(8) * np.pi / 4:
        dy, dx = round(distance * np.sin(angle)), round(distance * np.cos(angle))
        moved = displace(mask, -dy, -dx)
        if not np.array_equal(moved, mask):
            break
    return moved


def jagged_contour(mask: Mask, severity: float, rng: np.random.Generator) -> Mask:
    """Displace pixels by smooth random distances whose standard deviation is severity · `reach(mask)` / 2 pixels."""
    amplitude = _pixels(mask, severity) / 2
    moved = mask.copy()
    for _ in range(8):
        dy, dx = (amplitude * smooth_noise(mask.shape, max(0.8, 0.6 * amplitude), rng) for _ in range(2))
        moved = displace(mask, dy, dx)
        if not np.array_equal(moved, mask):
            break
        amplitude *= 1.5
    return moved


def smoothed_contour(mask: Mask, severity: float, rng: np.random.Generator) -> Mask:
    """Give each pixel the most frequent class around it, weighted by a Gaussian of severity · `reach(mask)` pixels.

    Corners are rounded, thin parts and small gaps vanish. Draws no random numbers.
    """
    sigma = float(_pixels(mask, severity))
    smoothed = mask.copy()
    while sigma < 2 * max(mask.shape):
        smoothed = _most_frequent(mask, sigma)
        if not np.array_equal(smoothed, mask):
            break
        sigma *= 1.5
    return smoothed


def holes(mask: Mask, severity: float, rng: np.random.Generator) -> Mask:
    """Cut up to three round holes with a radius of severity · `reach(mask)` pixels; needs an object."""
    radius, changed = _pixels(mask, severity), mask.copy()
    for _ in range(max(1, round(3 * severity))):
        inside = (changed != 0) & (changed != IGNORE)
        if inside.any():
            changed[_round(mask, _pick_deep(inside, radius + 1, rng), radius) & inside] = 0
    return changed


def lost_component(mask: Mask, severity: float, rng: np.random.Generator) -> Mask:
    """Remove severity / 2 of the parts, at least one, with what they enclose; needs an object.

    A removed part gets the class around it. A mask of one object becomes empty.
    """
    _check(mask, severity)
    changed = mask.copy()
    labels, classes = label_parts(mask)
    for part in _some(len(classes), severity, rng):
        region = _filled(labels == part + 1)
        changed[region] = _surrounding(changed, region)
    return keep_ignored(changed, mask)


def merged_component(mask: Mask, severity: float, rng: np.random.Generator) -> Mask:
    """Join parts to the nearest part of their class by up to five bridges; needs two parts of one class.

    A bridge extends severity · `reach(mask)` pixels to each side of the line between the nearest points.
    """
    radius, changed = _pixels(mask, severity), mask.copy()
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
    _check(mask, severity)
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
    """Add a blob with a radius of 2 · severity · `reach(mask)` pixels, of a class of the mask or class 1.

    It lies on background, away from objects while there is room; without background it replaces other classes. A mask
    that consists of one object class does not change.
    """
    _check(mask, severity)
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


KINDS: Mapping[str, Corruption] = {
    "grow": grow,
    "shrink": shrink,
    "shift": shift,
    "holes": holes,
    "lost_component": lost_component,
    "merged_component": merged_component,
    "jagged_contour": jagged_contour,
    "smoothed_contour": smoothed_contour,
    "class_swap": class_swap,
    "spurious_blob": spurious_blob,
}


def corrupt(
    record: Record,
    rng: np.random.Generator,
    count: int = 4,
    kinds: Mapping[str, Corruption] | Sequence[str] = KINDS,
    severity: tuple[float, float] = (0.1, 1.0),
    start: str = "gold",
    with_start: bool = False,
) -> Candidates:
    """Return corrupted copies of a mask, named by kind, number and severity in percent: `grow-0_043`.

    Kinds are drawn without replacement until all were drawn, and so on. A kind that does not change the mask (no second
    object to merge with) is replaced by the next.

    Args:
        record: whose mask is corrupted.
        rng: draws kinds, severities and corruptions.
        count: how many copies.
        kinds: names of `KINDS`, or names with functions `(mask, severity, rng) -> mask` of your own.
        severity: smallest and largest severity; drawn uniformly for each copy.
        start: `gold`, or the name of the record's mask that is corrupted.
        with_start: put that mask itself first, for pairs "good against corrupted".
    """
    low, high = severity
    if count < 1 or not 0 < low <= high <= 1:
        raise ValueError(
            f"Expected count ≥ 1 and severity (low, high) with 0 < low ≤ high ≤ 1 but got {count} and {severity}."
        )
    chosen = _named(kinds)
    mask = starting_mask(record, start)
    masks, names = ([mask], ["start"]) if with_start else ([], [])
    queue: list[str] = []
    for k in range(count):
        amount = float(rng.uniform(low, high))
        kind, corrupted = _corrupt_once(record.id, mask, amount, chosen, queue, rng)
        masks.append(corrupted)
        names.append(f"{kind}-{k}_{round(100 * amount):03d}")
    return Candidates(np.stack(masks), tuple(names))


def reach(mask: Mask) -> float:
    """Return how many pixels a corruption of severity 1 moves a contour: half the typical object's radius.

    At most 1/16 of the shorter side. The typical area is the mean over object pixels of the area of their part, so that
    small specks hardly count.
    """
    limit = float(min(mask.shape)) / 16
    labels, classes = label_parts(mask)
    if not classes:
        return limit
    areas = np.bincount(labels.ravel())[1:].astype(np.float64)
    return min(limit, 0.5 * float(np.sqrt((areas**2).sum() / areas.sum() / np.pi)))


def _corrupt_once(
    record_id: str,
    mask: Mask,
    severity: float,
    kinds: Mapping[str, Corruption],
    queue: list[str],
    rng: np.random.Generator,
) -> tuple[str, Mask]:
    """Take kinds from the queue, refilled when it is empty, until one changes the mask."""
    for _ in range(2 * len(kinds)):
        if not queue:
            queue.extend(str(name) for name in rng.permutation(list(kinds)))
        kind = queue.pop()
        corrupted = kinds[kind](mask, severity, rng)
        if not np.array_equal(corrupted, mask):
            return kind, corrupted
    raise CannotJudge(
        f"Expected a mask in record {record_id!r} that {', '.join(kinds)} can change, but none of them does "
        "(an empty mask, or one that is ignored everywhere); add 'spurious_blob' to kinds, or exclude the record."
    )


def _named(kinds: Mapping[str, Corruption] | Sequence[str]) -> Mapping[str, Corruption]:
    if isinstance(kinds, Mapping):
        chosen = dict(kinds)
    else:
        unknown = [name for name in kinds if name not in KINDS]
        if unknown:
            raise ValueError(f"Expected kinds of {', '.join(KINDS)} but got {', '.join(map(repr, unknown))}.")
        chosen = {name: KINDS[name] for name in kinds}
    if not chosen:
        raise ValueError("Expected at least one kind of corruption but got none.")
    return chosen


def _pixels(mask: Mask, severity: float) -> int:
    """Return severity · `reach(mask)`, rounded, at least 1."""
    _check(mask, severity)
    return max(1, round(severity * reach(mask)))


def _check(mask: Mask, severity: float) -> None:
    """Raise unless the mask is one of class ids and the severity is in (0, 1]."""
    checked_mask(mask)
    if not 0 < severity <= 1:
        raise ValueError(f"Expected a severity above 0 and at most 1 but got {severity}.")


def _most_frequent(mask: Mask, sigma: float) -> Mask:
    classes = [c for c in np.unique(mask) if c != IGNORE]
    if not classes:
        return mask.copy()
    shares = [cv2.GaussianBlur((mask == c).astype(np.float32), (0, 0), sigma).reshape(mask.shape) for c in classes]
    return keep_ignored(np.array(classes, np.uint8)[np.argmax(np.stack(shares), axis=0)], mask)


def _some(count: int, severity: float, rng: np.random.Generator) -> list[int]:
    return [int(k) for k in rng.permutation(count)[: max(1, round(severity * count / 2))]]


def _pick_deep(region: PlaneRegion, wanted: float, rng: np.random.Generator) -> tuple[int, int]:
    """Draw a pixel at least `wanted` pixels inside the region, or else one of the deepest."""
    # The image's edge counts as outside, so that the edge seldom cuts blobs and holes.
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
) -> PlaneRegion:
    """Return a disc, or with `wobble` an uneven blob of about that radius, turned by an angle."""
    y, x = np.ogrid[: mask.shape[0], : mask.shape[1]]
    y, x = y - centre[0], x - centre[1]
    angle = np.arctan2(y, x) + turn
    limit = radius * (1 + wobble[0] * np.cos(2 * angle) + wobble[1] * np.sin(3 * angle))
    return np.asarray(np.hypot(y, x) <= limit + 1e-9)


def _filled(region: PlaneRegion) -> PlaneRegion:
    contours, _ = cv2.findContours(region.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    return np.asarray(cv2.fillPoly(region.astype(np.uint8), contours, 1), np.uint8) > 0


def _surrounding(mask: Mask, region: PlaneRegion) -> int:
    """Return the most frequent class on the ring around the region, without ignored pixels; 0 if there is none."""
    ring = np.asarray(cv2.dilate(region.astype(np.uint8), np.ones((3, 3), np.uint8)), np.uint8) > 0
    seen = mask[ring & ~region]
    seen = seen[seen != IGNORE]
    return int(np.bincount(seen).argmax()) if len(seen) else 0


def _bridge(part: PlaneRegion, mates: PlaneRegion, radius: float) -> PlaneRegion:
    """Return the pixels within `radius` of the shortest line between a part and its nearest mate."""
    to_part = np.where(mates, depth(~part), np.inf)
    end = np.array(np.unravel_index(int(np.argmin(to_part)), part.shape))
    points = np.argwhere(part)
    begin = points[np.argmin(((points - end) ** 2).sum(axis=1))]
    y, x = np.indices(part.shape)
    along = end - begin
    t = np.clip(((y - begin[0]) * along[0] + (x - begin[1]) * along[1]) / (along @ along), 0, 1)
    near = np.hypot(y - begin[0] - t * along[0], x - begin[1] - t * along[1]) <= radius
    # Only what lies between the two is the bridge.
    return np.asarray(near & ~part & ~mates)

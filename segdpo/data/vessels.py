"""The built-in data set of thin structures: branching lines 2 to 4 pixels wide on textured ground, with exact gold."""

from collections.abc import Mapping
from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Float32, Float64

from segdpo.data.annotators import Style, annotate
from segdpo.data.drawn import Drawn
from segdpo.data.record import Candidates, Image, MaskSource, Record
from segdpo.masks import Mask, PlaneRegion, displace, drop_thin, grow_by, keep_ignored, label_parts, smooth_noise

Field = Float32[np.ndarray, "size size"]

WIDEST, NARROWEST = 4.0, 2.0
"""Widths of the lines in pixels, whatever the size of the image."""
STEP = 0.5
"""Between two points of a line, in pixels."""
APART = 6
"""Pixels between the middles of two lines, but where one branches off another."""
SHORTEST = 24
"""Length of the shortest branch in pixels."""


def annotate_vessels(record: Record, rng: np.random.Generator, start: str = "gold") -> Candidates:
    """Return the masks of four simulated annotators of lines: a source of masks; see `STYLES`."""
    return annotate(record, rng, STYLES, start)


class Vessels(Drawn):
    """Images of branching lines, exact gold, and masks of simulated annotators.

    The lines are 2 to 4 pixels wide in images of any size. For the arguments not named here see Drawn.

    Args:
        size: side of the square images in pixels, at least 64.
        keep: hold records in memory once they are made (2 MB each at 512²), in each process.

    >>> record = Vessels(count=10, size=128)[3]
    >>> record.id, record.image.shape, record.mask_names
    ('vessels-0-00003', (128, 128, 3), ('thicker', 'thinner', 'broken', 'missed'))
    """

    name = "vessels"
    classes = ("background", "vessel")
    smallest = 64

    def __init__(
        self,
        count: int,
        size: int = 512,
        seed: int = 0,
        masks: MaskSource | None = annotate_vessels,
        keep: bool = False,
    ) -> None:
        super().__init__(count, size, seed, masks, keep)

    def scene(self, rng: np.random.Generator) -> tuple[Image, Mask]:
        """Return an image of branching lines and its exact mask."""
        depth = depth_inside(draw_lines(self.size, rng), self.size)
        return paint(depth, rng), (depth > 0).astype(np.uint8)


@dataclass(frozen=True, eq=False)
class Line:
    """A bent line: points (row, column) along its middle, `STEP` apart, and half its width at each."""

    points: Float64[np.ndarray, "points 2"]
    half_width: Float64[np.ndarray, " points"]

    def __len__(self) -> int:
        return len(self.points)


def draw_lines(size: int, rng: np.random.Generator) -> list[Line]:
    """Return trunks that enter at the border of the image, and their branches, which end before they meet another."""
    taken = np.zeros((size, size), np.uint8)
    lines: list[Line] = []
    trunks = max(2, round(size / 64))
    while trunks > 0 or not lines:
        trunks -= 1
        lines += _grown(_start_of_trunk(size, rng), size * rng.uniform(0.6, 1.2), WIDEST / 2, taken, 0, rng)
    # The list grows while it is read: branches have branches of their own.
    for parent in lines:
        for place in _branching_points(parent, rng):
            half = max(NARROWEST / 2, 0.85 * parent.half_width[place])
            heading = _heading(parent, place) + rng.choice((-1, 1)) * rng.uniform(0.6, 1.2)
            length = 0.6 * (len(parent) - place) * STEP * rng.uniform(0.4, 1.4)
            lines += _grown((parent.points[place], heading), length, half, taken, 20, rng)
    return lines


def _start_of_trunk(size: int, rng: np.random.Generator) -> tuple[np.ndarray, float]:
    """Return a point on the border and a heading inwards."""
    side, along = int(rng.integers(4)), rng.uniform(0.1, 0.9) * size
    point = ((0.0, along), (along, size), (size, along), (along, 0.0))[side]
    inwards = np.arctan2(size / 2 - point[0], size / 2 - point[1])
    return np.array(point), float(inwards + rng.normal(0, 0.5))


def _branching_points(parent: Line, rng: np.random.Generator) -> list[int]:
    gaps = rng.uniform(30, 90, 32) / STEP
    places = np.cumsum(gaps).astype(int)
    return [int(place) for place in places if place < len(parent) - SHORTEST / STEP]


def _heading(line: Line, place: int) -> float:
    dy, dx = line.points[place + 1] - line.points[place]
    return float(np.arctan2(dy, dx))


def _grown(
    start: tuple[np.ndarray, float], length: float, half: float, taken: Mask, free: float, rng: np.random.Generator
) -> list[Line]:
    """Return the line from a start, in a list; an empty one where there is no room.

    Args:
        start: a point and the heading there.
        length: in pixels, at most: the line ends at the border, and before another line.
        half: half the width at the start.
        taken: 1 near other lines; the new line is added.
        free: pixels from the start, on the line it branches off, where `taken` does not count.
        rng: the random numbers.
    """
    point, heading = start
    t = np.arange(int(length / STEP)) * STEP
    # Bends of random wavelength and height; their sum starts at 0, so that the heading at the start is the one given.
    waves = ((rng.uniform(60, 300), rng.uniform(0, 0.5), rng.uniform(0, 2 * np.pi)) for _ in range(3))
    way = heading + sum(a * (np.sin(2 * np.pi * t / w + phase) - np.sin(phase)) for w, a, phase in waves)
    points = point + STEP * np.cumsum(np.stack([np.sin(way), np.cos(way)], 1), 0)
    pixels = np.floor(points).astype(int)
    ended = ((pixels < 0) | (pixels >= len(taken))).any(1)
    inside = np.clip(pixels, 0, len(taken) - 1)
    ended |= (taken[inside[:, 0], inside[:, 1]] > 0) & (t > free)
    points = points[: int(np.argmax(np.append(ended, True)))]
    if len(points) * STEP < SHORTEST:
        return []
    cv2.polylines(taken, [points[:, None, ::-1].round().astype(np.int32)], False, 1, 2 * APART + 1)
    thin = max(NARROWEST / 2, half * rng.uniform(0.5, 0.8))
    return [Line(points, np.linspace(half, thin, len(points)))]


def depth_inside(lines: list[Line], size: int) -> Field:
    """Return how deep each pixel's centre lies inside a line, in pixels: 0 on the outline, at least −1/2."""
    points = np.concatenate([line.points for line in lines]).astype(np.float32)
    half = np.concatenate([line.half_width for line in lines]).astype(np.float32)
    reach = int(WIDEST / 2 + 0.5) + 1
    around = np.arange(-reach, reach + 1)
    depth = np.full((size + 2 * reach, size + 2 * reach), -0.5, np.float32)  # a margin for lines at the border
    pixel = np.floor(points).astype(np.int64)
    within = pixel + 0.5 - points
    for dy in around:
        for dx in around:
            value = half - np.hypot(within[:, 0] + dy, within[:, 1] + dx).astype(np.float32)
            near = value > -0.5
            places = pixel[near] + (reach + dy, reach + dx)
            np.maximum.at(depth.reshape(-1), places[:, 0] * depth.shape[1] + places[:, 1], value[near])
    return depth[reach:-reach, reach:-reach].copy()


def paint(depth: Field, rng: np.random.Generator) -> Image:
    """Return the RGB image: light · exp(−stain · density), blurred, with grain; lines are fainter here and there."""
    size = len(depth)
    cover = np.clip(depth + 0.5, 0, 1) * np.clip(1 + 0.35 * _clouds(size, 24, rng), 0.3, 1.6)
    ground = 0.10 * _clouds(size, 40, rng) + 0.06 * _clouds(size, 5, rng) + _blots(size, rng)
    density = np.asarray(rng.uniform(0.3, 0.5) * cover + ground, np.float32)
    slope = 1 + 0.2 * rng.uniform(-1, 1) * np.linspace(-1, 1, size, dtype=np.float32)
    density = np.asarray(cv2.GaussianBlur(density - np.log(slope), (0, 0), rng.uniform(0.5, 0.8)), np.float32)
    grain = 255 * rng.uniform(0.02, 0.035) * rng.standard_normal((size, size), np.float32)
    planes = []
    for light, stain in ((0.82, 0.55), (0.62, 1.0), (0.5, 0.8)):
        brightness = 255 * light * rng.uniform(0.85, 1.1)
        plane = np.exp(np.float32(np.log(brightness)) - np.float32(stain * rng.uniform(0.85, 1.15)) * density)
        planes.append(np.clip(np.rint(plane + grain), 0, 255).astype(np.uint8))
    return np.stack(planes, axis=2)


def _clouds(size: int, cell: int, rng: np.random.Generator) -> Field:
    """Return smooth noise over `cell` pixels, drawn small and enlarged, which costs less than a wide blur."""
    small = rng.standard_normal((size // cell + 3,) * 2, dtype=np.float32)
    return np.asarray(cv2.resize(small, (size, size), interpolation=cv2.INTER_CUBIC), np.float32)


def _blots(size: int, rng: np.random.Generator) -> Field:
    """Return what is no line but dark or bright: round blots, and bands much wider than any line."""
    density = np.zeros((size, size), np.float32)
    for _ in range(size // 12):
        centre, radius = rng.integers(0, size, 2), int(rng.integers(2, 9))
        cv2.circle(density, (int(centre[0]), int(centre[1])), radius, float(rng.uniform(-0.35, 0.35)), -1)
    for _ in range(size // 128):
        (y0, x0), (y1, x1) = rng.integers(0, size, (2, 2)).tolist()
        cv2.line(density, (x0, y0), (x1, y1), float(rng.uniform(-0.25, 0.25)), int(rng.integers(10, 24)))
    return np.asarray(cv2.GaussianBlur(density, (0, 0), 1.5), np.float32)


def thicker(mask: Mask, rng: np.random.Generator) -> Mask:
    """Return the mask with every line one pixel wider on each side, and a little off."""
    return _shaken(grow_by(mask, 1), rng)


def thinner(mask: Mask, rng: np.random.Generator) -> Mask:
    """Return the mask with every line a pixel narrower, so that one of 2 pixels is 1 wide."""
    narrow = cv2.erode(np.where(mask == 1, 1, 0).astype(np.uint8), np.ones((2, 2), np.uint8))
    return keep_ignored(np.asarray(narrow, np.uint8), mask)


def broken(mask: Mask, rng: np.random.Generator) -> Mask:
    """Return the mask with gaps of some pixels, mostly in thin lines."""
    gaps = smooth_noise(mask.shape, 4, rng) > 0.8
    faint = smooth_noise(mask.shape, 4, rng) > 2
    return _without(mask, (gaps & _thin(mask)) | faint)


def missed(mask: Mask, rng: np.random.Generator) -> Mask:
    """Return the mask without half of its thin branches."""
    parts, classes = label_parts(_thin(mask).astype(np.uint8))
    left_out = np.append(False, rng.random(len(classes)) < 0.5)
    return _without(mask, left_out[parts])


STYLES: Mapping[str, Style] = {"thicker": thicker, "thinner": thinner, "broken": broken, "missed": missed}
"""Four annotators of lines, each with the fault it is named after."""


def _thin(mask: Mask) -> PlaneRegion:
    """Return the parts of lines that are less than about 3 pixels wide."""
    return np.asarray((mask == 1) & (drop_thin(mask, 3) == 0))


def _without(mask: Mask, gone: PlaneRegion) -> Mask:
    return keep_ignored(np.where(gone, 0, mask).astype(np.uint8), mask)


def _shaken(mask: Mask, rng: np.random.Generator) -> Mask:
    return displace(mask, *(0.5 * smooth_noise(mask.shape, 12, rng) for _ in range(2)))

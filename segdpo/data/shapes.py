"""The built-in data set: stained cells under a microscope, drawn from (seed, index), with exact gold."""

from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Float32, UInt8

from segdpo.data.annotators import annotate
from segdpo.data.drawn import Drawn
from segdpo.data.record import Image, MaskSource
from segdpo.masks import Mask, smooth_noise

CLASSES = {2: ("background", "object"), 4: ("background", "body", "nucleus", "process")}


class Shapes(Drawn):
    """Images of touching, textured cells with thin processes, exact gold, and masks of simulated annotators.

    The binary and the four-class variant show the same images. For the arguments not named here see Drawn.

    Args:
        size: side of the square images in pixels, at least 32.
        classes: 2 (background, object) or 4 (background, body, nucleus, process).
        keep: hold records in memory once they are made (30 KB each at 64²), in each process.

    >>> record = Shapes(count=10)[3]
    >>> record.id, record.image.shape, record.mask_names
    ('shapes-0-00003', (64, 64, 3), ('generous', 'polygon', 'missed_thin', 'merged'))
    """

    name = "shapes"

    def __init__(
        self,
        count: int,
        size: int = 64,
        seed: int = 0,
        classes: int = 2,
        masks: MaskSource | None = annotate,
        keep: bool = False,
    ) -> None:
        super().__init__(count, size, seed, masks, keep)
        if classes not in CLASSES:
            raise ValueError(f"Expected classes to be 2 (binary) or 4 but got {classes!r}.")
        self.classes = CLASSES[classes]

    def scene(self, rng: np.random.Generator) -> tuple[Image, Mask]:
        """Return an image of cells and its exact mask."""
        cells = draw_cells(self.size, rng)
        return paint(cells, rng), gold_mask(cells, len(self.classes))


Distance = Float32[np.ndarray, "size size"]
"""Signed distance to an outline, roughly in units of 1/64 of the side: negative inside."""

BODY, NUCLEUS, PROCESS = 1, 2, 3
SEAM = 1.4
"""Width of the background between touching cells, in units of 1/64 of the side."""


@dataclass(frozen=True, eq=False)
class Cell:
    """The distances of one cell's body (its nucleus included), nucleus and processes."""

    body: Distance
    nucleus: Distance
    process: Distance


@dataclass(frozen=True)
class _Outline:
    """A wobbly ellipse: radius as a function of the angle."""

    y: float
    x: float
    radius: float
    stretch: float
    angle: float
    waves: tuple[tuple[int, float, float], ...]

    def radius_at(self, angle: np.ndarray | float) -> np.ndarray:
        turned = np.asarray(angle) - self.angle
        ellipse = self.radius / np.sqrt((np.cos(turned) / self.stretch) ** 2 + (np.sin(turned) * self.stretch) ** 2)
        return np.asarray(ellipse * (1 + sum(a * np.cos(k * turned + phase) for k, a, phase in self.waves)))

    def distance(self, y: np.ndarray, x: np.ndarray) -> Distance:
        dy, dx = y - self.y, x - self.x
        return np.asarray(np.hypot(dy, dx) - self.radius_at(np.arctan2(dy, dx)), np.float32)


def draw_cells(size: int, rng: np.random.Generator) -> list[Cell]:
    """Return three to six cells, most of them touching another, with a seam of background between them."""
    y, x = np.meshgrid(*[(np.arange(size) + 0.5) * 64 / size] * 2, indexing="ij")
    outlines: list[_Outline] = []
    for _ in range(int(rng.integers(3, 7))):
        outline = _place(outlines, rng)
        if outline is not None:
            outlines.append(outline)
    bodies: list[Distance] = []
    for outline in outlines:
        occupied = np.min(bodies, axis=0) if bodies else np.inf
        bodies.append(np.asarray(np.maximum(outline.distance(y, x), SEAM - occupied), np.float32))
    cells: list[Cell] = []
    for k, (outline, body) in enumerate(zip(outlines, bodies, strict=True)):
        nucleus = np.maximum(_nucleus(outline, rng).distance(y, x), body + 1.2)
        others = [other for other in outlines if other is not outline]
        process = np.full((size, size), np.inf, np.float32)
        for _ in range(int(rng.integers(0 if k else 1, 3))):
            process = np.minimum(process, _process(outline, others, y, x, rng))
        apart = SEAM - np.min([b for b in bodies if b is not body] or [np.full_like(body, np.inf)], axis=0)
        cells.append(Cell(body, nucleus, np.maximum(np.maximum(process, -body), apart)))
    return cells


def gold_mask(cells: list[Cell], classes: int) -> UInt8[np.ndarray, "size size"]:
    """Return the exact mask: 1 = cell for two classes; 1 = body, 2 = nucleus, 3 = process for four."""
    mask = np.zeros(cells[0].body.shape, np.uint8)
    for cell in cells:
        mask[cell.process < 0] = PROCESS
        mask[cell.body < 0] = BODY
        mask[cell.nucleus < 0] = NUCLEUS
    return mask if classes == 4 else (mask > 0).astype(np.uint8)


def _place(others: list[_Outline], rng: np.random.Generator) -> _Outline | None:
    """Draw a cell beside another (three times in four) or anywhere; None where it would lie on a third."""
    for _ in range(12):
        waves = tuple((k, rng.uniform(0.0, 0.22 / k), rng.uniform(0, 2 * np.pi)) for k in (2, 3, 4, 5))
        shape = (rng.uniform(5.5, 10.0), rng.uniform(1.0, 1.25), rng.uniform(0, 2 * np.pi), waves)
        if not others:
            return _Outline(rng.uniform(18, 46), rng.uniform(18, 46), *shape)
        y, x = rng.uniform(4, 60, 2)
        neighbour = None
        if rng.random() < 0.75:
            neighbour = others[int(rng.integers(len(others)))]
            angle = rng.uniform(0, 2 * np.pi)
            # A little nearer than touching, so that they meet along a part of the outline and not at a point.
            away = 0.85 * (neighbour.radius_at(angle) + _Outline(0, 0, *shape).radius_at(angle + np.pi))
            y, x = neighbour.y + away * np.sin(angle), neighbour.x + away * np.cos(angle)
        new = _Outline(float(y), float(x), *shape)
        inside = 4 < new.y < 60 and 4 < new.x < 60
        if inside and all(
            np.hypot(new.y - o.y, new.x - o.x) > 1.1 * (new.radius + o.radius) for o in others if o is not neighbour
        ):
            return new
    return None


def _nucleus(body: _Outline, rng: np.random.Generator) -> _Outline:
    off, angle = rng.uniform(0, 0.25) * body.radius, rng.uniform(0, 2 * np.pi)
    return _Outline(
        body.y + off * np.sin(angle),
        body.x + off * np.cos(angle),
        rng.uniform(0.35, 0.5) * body.radius,
        rng.uniform(1.0, 1.3),
        rng.uniform(0, 2 * np.pi),
        ((3, rng.uniform(0, 0.1), rng.uniform(0, 2 * np.pi)),),
    )


def _process(
    body: _Outline, others: list[_Outline], y: np.ndarray, x: np.ndarray, rng: np.random.Generator
) -> Distance:
    """Return the distance to a bent, tapering stalk that grows out of a body and ends before another one."""
    points, half_widths = _stalk(body, others, rng)
    nearest = np.full(y.shape, np.inf)
    for (py, px), (qy, qx), near, far in zip(points, points[1:], half_widths, half_widths[1:], strict=False):
        ey, ex, dy, dx = qy - py, qx - px, y - py, x - px
        s = np.clip((dy * ey + dx * ex) / (ey * ey + ex * ex), 0, 1)
        nearest = np.minimum(nearest, np.hypot(dy - s * ey, dx - s * ex) - near - s * (far - near))
    return np.asarray(nearest, np.float32)


def _stalk(body: _Outline, others: list[_Outline], rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return points along a stalk and its half width at each; the longest of four that end before another body."""
    best = np.zeros((0, 2))
    for _ in range(4):
        # Mostly towards the middle, so that the stalk lies in the image.
        angle = np.arctan2(32 - body.y, 32 - body.x) + rng.normal(0, 1.2)
        t = np.linspace(0, 1, 10)
        distance, way = float(body.radius_at(angle)) - 1 + rng.uniform(9, 20) * t, angle + rng.uniform(-0.6, 0.6) * t**2
        points = np.stack([body.y + distance * np.sin(way), body.x + distance * np.cos(way)], axis=1)
        blocked = [(other.distance(*points.T) < SEAM + 1.5) for other in others]
        free = int(np.argmax(np.append(np.any(blocked, axis=0), True))) if blocked else len(t)
        if free > len(best):
            best = points[:free]
        if free == len(t):
            break
    return best, rng.uniform(1.0, 1.6) * (1 - 0.45 * np.linspace(0, 1, max(len(best), 1)))


Density = Float32[np.ndarray, "size size"]
"""How much of a stain there is: light falls off as exp(−density)."""


def paint(cells: list[Cell], rng: np.random.Generator) -> Image:
    """Return the RGB image of the cells: light · exp(−Σ stain · density), blurred, with noise."""
    size = len(cells[0].body)
    unit = size / 64
    plasm, kernel = _ground(size, rng), np.zeros((size, size), np.float32)
    plasm += _debris(size, rng)
    grain = smooth_noise((size, size), 0.9 * unit, rng)
    coarse = smooth_noise((size, size), 2.2 * unit, rng)
    # Staining varies from image to image and from cell to cell; some cells are hardly visible.
    strength = rng.uniform(0.35, 0.7)
    for cell in cells:
        own = strength * rng.uniform(0.65, 1.4)
        body = own * (1 + 0.22 * grain + 0.22 * coarse)
        rim = 0.35 * own * np.exp(-((cell.body + 0.8) ** 2) / 1.2)
        plasm += _cover(cell.body) * (body + rim - 0.5 * plasm)
        plasm += _cover(cell.process) * (own * rng.uniform(0.7, 1.0) * (1 + 0.2 * coarse) - 0.5 * plasm)
        kernel += _cover(cell.nucleus) * own * rng.uniform(0.5, 1.3) * (1 + 0.35 * grain)
    stains = np.array([[0.45, 1.0, 0.6], [1.1, 0.9, 0.35]]) * rng.uniform(0.75, 1.25, (2, 3))
    density = plasm[..., None] * stains[0] + kernel[..., None] * stains[1]
    light = rng.uniform(0.8, 0.95) * rng.uniform(0.95, 1.0, 3) * _light(size, rng)[..., None]
    image = np.asarray(cv2.GaussianBlur(light * np.exp(-density), (0, 0), rng.uniform(0.4, 0.8) * unit))
    image += rng.uniform(0.015, 0.035) * rng.standard_normal(image.shape)
    return np.asarray(np.clip(np.rint(255 * image), 0, 255), np.uint8)


def _cover(distance: Distance) -> Density:
    """Return the share of a pixel that lies inside an outline: 1 inside, 0 outside, soft between."""
    return np.asarray(np.clip(0.5 - distance, 0, 1), np.float32)


def _ground(size: int, rng: np.random.Generator) -> Density:
    unit = size / 64
    clouds = 0.09 * smooth_noise((size, size), 7 * unit, rng) + 0.05 * smooth_noise((size, size), 1.5 * unit, rng)
    return np.asarray(np.maximum(0.16 + clouds, 0), np.float32)


def _debris(size: int, rng: np.random.Generator) -> Density:
    """Return faint specks and fibres that are not cells."""
    y, x = np.meshgrid(*[(np.arange(size) + 0.5) * 64 / size] * 2, indexing="ij")
    density = np.zeros((size, size))
    for _ in range(int(rng.integers(2, 6))):
        cy, cx = rng.uniform(0, 64, 2)
        radius, amount = rng.uniform(0.8, 3.2), rng.uniform(0.1, 0.45)
        density += amount * _cover(np.asarray(np.hypot(y - cy, x - cx) - radius, np.float32))
    for _ in range(int(rng.integers(0, 3))):
        angle, offset, bow = rng.uniform(0, np.pi), rng.uniform(-26, 26), rng.uniform(-0.012, 0.012)
        along = (y - 32) * np.sin(angle) + (x - 32) * np.cos(angle)
        across = (y - 32) * np.cos(angle) - (x - 32) * np.sin(angle)
        far = np.abs(across - offset - bow * along**2) - rng.uniform(0.3, 0.8)
        density += rng.uniform(0.1, 0.3) * _cover(np.asarray(far, np.float32))
    return np.asarray(density, np.float32)


def _light(size: int, rng: np.random.Generator) -> Density:
    y, x = np.meshgrid(*[np.linspace(-1, 1, size)] * 2, indexing="ij")
    slope = rng.uniform(-0.18, 0.18, 2)
    dark_corners = rng.uniform(0.0, 0.15)
    return np.asarray(1 + slope[0] * y + slope[1] * x - dark_corners * (y * y + x * x), np.float32)

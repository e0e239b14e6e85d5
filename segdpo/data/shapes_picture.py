"""How an embedded image looks: stained, textured cells on a textured ground, uneven light, debris, blur and noise."""

import cv2
import numpy as np
from jaxtyping import Float32

from segdpo.data.shapes_scene import Cell, Distance
from segdpo.pairs.morphology import smooth_noise
from segdpo.pairs.record import Image

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
    # Staining varies from image to image and from cell to cell; some cells are hardly there.
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
    """Return faint specks and fibres that are no cells: what a network must learn to leave out."""
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

"""Masks drawn over their images: class colours, contours, and stripes where a mask is ignored."""

import base64
import colorsys
import io
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8
from PIL import Image as Pillow

from segdpo.checks import IGNORE
from segdpo.data.record import Image
from segdpo.masks import Mask

# Okabe and Ito's colours, which colour-blind people can tell apart; yellow last, the faintest on bright images.
COLOURS = ((230, 159, 0), (86, 180, 233), (0, 158, 115), (204, 121, 167), (0, 114, 178), (213, 94, 0), (240, 228, 66))
TINT = 0.4


@dataclass(frozen=True, eq=False)
class PanelRow:
    """One image and the masks to show beside it; those that are None leave their place empty.

    `image` is uint8 [H, W, C]; masks are class ids uint8 [H, W], 255 = ignore.
    """

    id: str
    image: Image
    chosen: Mask | None = None
    rejected: Mask | None = None
    reference: Mask | None = None
    policy: Mask | None = None
    gold: Mask | None = None


def overlay(image: Image, mask: Mask, classes: tuple[str, ...]) -> Image:
    """Return the image tinted by class, with contours; a class 0 called "background" stays as it is.

    Args:
        image: uint8 [H, W, 3].
        mask: class ids uint8 [H, W], 255 = ignore.
        classes: the names of the classes.
    """
    tinted = image.astype(np.float32)
    first = 1 if classes[0] == "background" else 0
    colours = np.zeros((256, 3), np.float32)
    colours[first : len(classes)] = class_colours(len(classes) - first)
    shown = (mask >= first) & (mask != IGNORE)
    contour = _contour(mask)
    tinted[shown] = (1 - TINT) * tinted[shown] + TINT * colours[mask[shown]]
    tinted[shown & contour] = colours[mask[shown & contour]]
    rows, columns = np.indices(mask.shape)
    striped = (mask == IGNORE) & ((rows + columns) % 6 < 3)
    tinted[striped] = 0.3 * tinted[striped] + 0.7 * 160
    return tinted.astype(np.uint8)


def class_colours(count: int) -> UInt8[np.ndarray, "classes three"]:
    """Return a colour for each of the classes 1 … count; after seven fixed ones, hues spread by the golden ratio."""
    spread = [colorsys.hsv_to_rgb(0.618034 * k % 1, 0.75, 0.9) for k in range(max(0, count - len(COLOURS)))]
    return np.array([*COLOURS, *(tuple(int(255 * part) for part in colour) for colour in spread)][:count], np.uint8)


def shrink(image: Image, mask: Mask | None, longest: int) -> tuple[Image, Mask | None]:
    """Return image (as RGB) and mask, resized so that their longest side is at most `longest`."""
    height, width = image.shape[:2]
    scale = min(1.0, longest / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    pixels = image[..., :3] if image.shape[2] >= 3 else np.repeat(image[..., :1], 3, axis=2)
    small = np.array(Pillow.fromarray(np.ascontiguousarray(pixels)).resize(size, Pillow.Resampling.BOX))
    if mask is None:
        return small, None
    return small, np.array(Pillow.fromarray(mask).resize(size, Pillow.Resampling.NEAREST))


def data_uri(image: Image) -> str:
    """Return a PNG of 128 colours as a data URI: a third of the bytes of true colour, and no file beside the page."""
    buffer = io.BytesIO()
    Pillow.fromarray(image).quantize(128).save(buffer, "png", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _contour(mask: Mask) -> np.ndarray:
    """Return the pixels beside which, up, down, left or right, lies another class."""
    edge = np.zeros(mask.shape, bool)
    down, right = mask[1:] != mask[:-1], mask[:, 1:] != mask[:, :-1]
    edge[1:] |= down
    edge[:-1] |= down
    edge[:, 1:] |= right
    edge[:, :-1] |= right
    return edge

"""Masks drawn over their images: a transparent fill inside, and an outline that lies outside.

A line one pixel wide stays visible, and so does the image in it: the outline covers the pixels beside the line, never
those of the line. Where the picture is smaller than the image, masks are drawn at the image's size first, with an
outline that is one pixel wide in the picture, and then averaged: thin lines grow pale instead of falling to pieces.
"""

import base64
import colorsys
import io
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image as Pillow

from segdpo.checks import IGNORE
from segdpo.data.record import Image
from segdpo.masks import Mask

Colours = UInt8[np.ndarray, "labels three"]

# Okabe and Ito's colours, which colour-blind people can tell apart; yellow last, the faintest on bright images.
COLOURS = ((230, 159, 0), (86, 180, 233), (0, 158, 115), (204, 121, 167), (0, 114, 178), (213, 94, 0), (240, 228, 66))
# Of two masks: where both show a class, the first alone, the second alone, and where they show different ones.
DIFFERENCE = ((86, 180, 233), (213, 94, 0), (240, 228, 66), (204, 121, 167))
# How strongly masks are tinted, and how grey the image below becomes, so that its colours are not taken for classes.
TINT, GREY = 0.4, 0.7
STRIPE = 3
# Masks are drawn at this many times the picture's size, at most, and averaged.
FINER = 3


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


def overlay(image: Image, mask: Mask, classes: Sequence[str], *, side: int | None = None) -> Image:
    """Return the image with a mask in the colours of its classes; a class 0 called "background" stays as it is.

    Args:
        image: uint8 [H, W, C]; of other than 3 channels, the first 3 or the first is shown.
        mask: class ids uint8 [H, W], 255 = ignore, drawn as grey stripes.
        classes: the names of the classes.
        side: the longest side of the picture; None: that of the image.
    """
    first = first_shown(classes)
    labels = np.where(mask == IGNORE, 0, np.maximum(mask.astype(np.int16) - first + 1, 0)).astype(np.uint8)
    return _draw(image, labels, mask == IGNORE, class_colours(len(classes) - first), side)


def difference(image: Image, mask: Mask, other: Mask, *, background: bool = False, side: int | None = None) -> Image:
    """Return the image with two masks in the colours of `DIFFERENCE`: both, `mask` alone, `other` alone, unlike.

    Args:
        image: uint8 [H, W, C].
        mask: class ids uint8 [H, W]; pixels that either mask ignores (255) are striped.
        other: the mask to compare with, such as gold.
        background: class 0 is a class like any other.
        side: the longest side of the picture; None: that of the image.
    """
    ignored = (mask == IGNORE) | (other == IGNORE)
    here, there = ((shown > 0) | background for shown in (mask, other))
    cases = [ignored, here & there & (mask == other), here & ~there, ~here & there, here & there]
    return _draw(image, np.select(cases, range(5), 0).astype(np.uint8), ignored, np.array(DIFFERENCE, np.uint8), side)


def first_shown(classes: Sequence[str]) -> int:
    """Return the first class that is drawn: 1 where class 0 is called "background", else 0."""
    return 1 if classes[0] == "background" else 0


def class_colours(count: int) -> UInt8[np.ndarray, "classes three"]:
    """Return a colour for each of the classes 1 … count; after seven fixed ones, hues spread by the golden ratio."""
    spread = [colorsys.hsv_to_rgb(0.618034 * k % 1, 0.75, 0.9) for k in range(max(0, count - len(COLOURS)))]
    return np.array([*COLOURS, *(tuple(int(255 * part) for part in colour) for colour in spread)][:count], np.uint8)


def fit(image: Image, side: int) -> Image:
    """Return the image as RGB with its longest side `side`, averaged or interpolated."""
    size = _size(image, side)
    way = Pillow.Resampling.BOX if max(image.shape[:2]) > side else Pillow.Resampling.BICUBIC
    return np.array(Pillow.fromarray(_as_rgb(image)).resize(size, way))


def data_uri(image: Image) -> str:
    """Return a PNG of 128 colours as a data URI: a third of the bytes of true colour, and no file beside the page."""
    buffer = io.BytesIO()
    Pillow.fromarray(image).quantize(128).save(buffer, "png", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _draw(image: Image, labels: Mask, ignored: Bool[np.ndarray, "H W"], colours: Colours, side: int | None) -> Image:
    """Draw labels 1 … n in their colours; label 0 is not drawn."""
    longest = max(image.shape[:2])
    side = longest if side is None else side
    if side > longest:
        size = _size(image, side)
        image, labels, ignored = fit(image, side), _enlarged(labels, size), _enlarged(ignored, size)
    elif (times := longest // (FINER * side)) > 1:
        # The largest label of a square stands for it: a line of one pixel is still there.
        image = np.array(Pillow.fromarray(_as_rgb(image)).reduce(times))
        labels, ignored = _largest(labels, times), _largest(ignored, times)
    width = max(1, round(max(labels.shape) / side))
    table = np.concatenate([np.zeros((1, 3), np.uint8), colours])
    picture = _paler(_as_rgb(image))
    rows, columns = np.ogrid[: labels.shape[0], : labels.shape[1]]
    striped = ignored & ((rows + columns) % (2 * STRIPE * width) < STRIPE * width)
    picture[striped] = _mix(picture[striped], 160, 0.7)
    inside = labels > 0
    picture[inside] = _mix(picture[inside], table[labels[inside]], TINT)
    around = np.asarray(cv2.dilate(labels, np.ones((2 * width + 1, 2 * width + 1), np.uint8)), np.uint8)
    outline = (around > 0) & ~inside
    picture[outline] = table[around[outline]]
    return picture if max(picture.shape) == side else fit(picture, side)


def _paler(image: Image) -> Image:
    """Return the image nearer to grey."""
    grey = image.mean(axis=2, dtype=np.float32, keepdims=True)
    return _mix(image, grey, GREY)


def _mix(below: np.ndarray, above: np.ndarray | int, share: float) -> Image:
    return np.asarray(np.rint((1 - share) * below + np.float32(share) * above), np.uint8)


def _as_rgb(image: Image) -> Image:
    rgb = image[..., :3] if image.shape[2] >= 3 else np.repeat(image[..., :1], 3, axis=2)
    return np.ascontiguousarray(rgb)


def _size(image: Image, side: int) -> tuple[int, int]:
    """Return the width and height of a picture of the image with the longest side `side`."""
    height, width = image.shape[:2]
    scale = side / max(height, width)
    return max(1, round(width * scale)), max(1, round(height * scale))


def _enlarged(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return np.array(Pillow.fromarray(mask).resize(size, Pillow.Resampling.NEAREST))


def _largest(mask: np.ndarray, times: int) -> np.ndarray:
    """Return the largest value of each square of `times` × `times` pixels; those at the end may be smaller."""
    height, width = mask.shape
    padded = np.pad(mask, ((0, -height % times), (0, -width % times)))
    return np.asarray(padded.reshape(-(-height // times), times, -(-width // times), times).max((1, 3)))

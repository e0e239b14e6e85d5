"""One image as a strip: the image, gold, and what each network made of it, side by side; drawn in milliseconds."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image as Pillow
from PIL import ImageDraw, ImageFont

from segdpo.data.image_files import encode_image
from segdpo.data.overlay import overlay, shrink
from segdpo.data.panel_row import PanelRow
from segdpo.models.atomic_file import write_atomically
from segdpo.pairs.record import Image, Mask
from segdpo.regions import IGNORE

SIDE = 256
GAP, TITLE = 6, 18
COLUMNS = ("gold", "reference", "policy")


def draw_strip(row: PanelRow, path: Path, *, classes: Sequence[str], notes: Mapping[str, str]) -> None:
    """Write the strip as PNG: image, gold, reference, policy, without those that the row lacks.

    A white line on the networks' masks is the outline of gold. `notes`, under a column's name, stand beside it.
    """
    cells = {"image": _enlarged(row.image, None)[0]}
    for name in COLUMNS:
        mask: Mask | None = getattr(row, name)
        if mask is not None:
            cells[name] = _cell(row.image, mask, None if name == "gold" else row.gold, tuple(classes))
    write_atomically(path, encode_image(_side_by_side(cells, notes)).data)


def _cell(image: Image, mask: Mask, gold: Mask | None, classes: tuple[str, ...]) -> Image:
    large, labels = _enlarged(image, mask)
    assert labels is not None
    tinted = overlay(large, labels, classes)
    if gold is not None:
        outline = _enlarged(image, gold)[1]
        assert outline is not None
        tinted[_edges(outline)] = 255
    return tinted


def _enlarged(image: Image, mask: Mask | None) -> tuple[Image, Mask | None]:
    """Return image and mask with their longest side SIDE."""
    pixels, labels = shrink(image, mask, SIDE)
    scale = SIDE / max(pixels.shape[:2])
    size = (max(1, round(pixels.shape[1] * scale)), max(1, round(pixels.shape[0] * scale)))
    large = np.array(Pillow.fromarray(pixels).resize(size, Pillow.Resampling.BICUBIC))
    if labels is None:
        return large, None
    return large, np.array(Pillow.fromarray(labels).resize(size, Pillow.Resampling.NEAREST))


def _edges(labels: Mask) -> Bool[np.ndarray, "height width"]:
    """Return the pixels whose left or upper neighbour has another class, where neither is ignored."""
    edge = np.zeros(labels.shape, bool)
    known = labels != IGNORE
    edge[1:] |= (labels[1:] != labels[:-1]) & known[1:] & known[:-1]
    edge[:, 1:] |= (labels[:, 1:] != labels[:, :-1]) & known[:, 1:] & known[:, :-1]
    return edge


def _side_by_side(cells: Mapping[str, Image], notes: Mapping[str, str]) -> UInt8[np.ndarray, "height width 3"]:
    height, width = next(iter(cells.values())).shape[:2]
    picture = Pillow.new("RGB", (len(cells) * (width + GAP) - GAP, height + TITLE), "white")
    draw = ImageDraw.Draw(picture)
    font = ImageFont.load_default(12)
    for number, (name, cell) in enumerate(cells.items()):
        left = number * (width + GAP)
        picture.paste(Pillow.fromarray(cell), (left, TITLE))
        draw.text((left, 1), " ".join(filter(None, (name, notes.get(name)))), fill=(20, 20, 20), font=font)
    return np.array(picture)

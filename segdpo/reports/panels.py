"""Images and their masks side by side as PNG: panels of many images, and strips of one image."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image as Pillow
from PIL import ImageDraw, ImageFont

from segdpo.data import DIFFERENCE, Image, PanelRow, class_colours, difference, encode_image, first_shown, fit, overlay
from segdpo.files import write_atomically
from segdpo.masks import Mask, mean_iou

BINARY = ("background", "object")
MASKS = ("chosen", "rejected", "reference", "policy", "gold")
STRIP_MASKS = ("reference", "policy", "gold")
PAIR = "chosen and rejected"
COLUMNS = ("image", *MASKS, PAIR)
# What the colours of DIFFERENCE say of a mask beside gold, and of a pair.
AGAINST_GOLD = ("as in gold", "not in gold", "missing")
OF_A_PAIR = ("in both", "chosen alone", "rejected alone", "in both, other class")
# In pixels: the longest side of a tile (smaller images are enlarged to the first), between tiles, a line of text.
SMALLEST, LARGEST, GAP, LINE, FONT = 256, 512, 6, 18, 12
INK, PAPER = (20, 20, 20), (255, 255, 255)

Legend = dict[str, tuple[int, int, int]]
Place = tuple[int, int]


@dataclass(frozen=True, eq=False)
class Tile:
    """A picture and the text below it."""

    picture: Image
    caption: str = ""


def draw_panel(
    rows: Sequence[PanelRow], path: str | Path, *, classes: Sequence[str] = BINARY, title: str | None = None
) -> None:
    """Draw a row for each image and a column for each kind of mask; write a PNG.

    Columns that no row fills are left out. Where gold is known, the IoU with gold stands below each mask (the mean over
    classes; a class 0 called "background" does not count), and if there is one class besides the background, the mask
    is drawn by its difference to gold. Without gold, the last column compares the chosen and the rejected mask.

    Args:
        rows: images with their chosen, rejected, reference, policy and gold masks.
        path: the file to write.
        classes: the names of the classes.
        title: stands above the panel.
    """
    if not rows:
        raise ValueError("Expected at least one PanelRow to draw but got none; is the loader empty?")
    side = min(LARGEST, max(SMALLEST, *(max(row.image.shape[:2]) for row in rows)))
    tiles = [_tiles_of(row, classes, side) for row in rows]
    write_atomically(Path(path), encode_image(compose(tiles, _legend(rows, classes, COLUMNS), title or "")).data)


def draw_strip(row: PanelRow, path: Path, *, classes: Sequence[str], notes: Mapping[str, str]) -> None:
    """Write an image and its reference, policy and gold masks side by side as PNG; masks that are None are left out.

    Masks are drawn as in `draw_panel`.

    Args:
        row: the image and its masks.
        path: the file to write.
        classes: the names of the classes.
        notes: text below a mask, such as its IoU, by the mask's name.
    """
    masks = _masks_of(row, STRIP_MASKS)
    pictures = {name: _picture(row, name, mask, classes, SMALLEST) for name, mask in masks.items()}
    tiles = {name: Tile(picture, notes.get(name, "")) for name, picture in pictures.items()}
    tiles = {"image": Tile(fit(row.image, SMALLEST)), **tiles}
    write_atomically(path, encode_image(compose([tiles], _legend([row], classes, STRIP_MASKS))).data)


def compose(rows: Sequence[Mapping[str, Tile]], legend: Legend, title: str = "") -> Image:
    """Return tiles as one picture: a row for each mapping, a column for each name, the legend below.

    Args:
        rows: tiles by the names of their columns; where a row lacks a column, it says "none".
        legend: the colour of each text.
        title: stands above the names of the columns.
    """
    columns = [name for name in COLUMNS if any(name in row for row in rows)]
    width = max(tile.picture.shape[1] for row in rows for tile in row.values())
    heights = [max(tile.picture.shape[0] for tile in row.values()) + LINE + GAP for row in rows]
    page_width = len(columns) * (width + GAP) - GAP
    font = ImageFont.load_default(FONT)
    keys = _places(legend, page_width, font)
    top, bottom = LINE * (2 if title else 1), LINE * (1 + max((line for _, line in keys.values()), default=-1))
    page = Pillow.new("RGB", (page_width, top + sum(heights) + bottom), PAPER)
    draw = ImageDraw.Draw(page)
    draw.text((0, 1), title, INK, font)
    for number, name in enumerate(columns):
        left, upper = number * (width + GAP), top
        draw.text((left, top - LINE + 1), name, INK, font)
        for row, height in zip(rows, heights, strict=True):
            tile = row.get(name)
            if tile is not None:
                page.paste(Pillow.fromarray(tile.picture), (left, upper))
            below = upper + height - LINE - GAP
            draw.text((left, upper if tile is None else below + 1), "none" if tile is None else tile.caption, INK, font)
            upper += height
    for text, (left, line) in keys.items():
        upper = page.height - bottom + line * LINE
        draw.rectangle((left, upper + 3, left + FONT, upper + 3 + FONT), legend[text])
        draw.text((left + FONT + 4, upper + 1), text, INK, font)
    return np.array(page)


def _places(legend: Legend, width: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> dict[str, Place]:
    """Return where each text of the legend begins: pixels from the left, and the line."""
    places: dict[str, Place] = {}
    left, line = 0, 0
    for text in legend:
        needed = FONT + 4 + round(font.getlength(text))
        if left and left + needed > width:
            left, line = 0, line + 1
        places[text] = left, line
        left += needed + 2 * FONT
    return places


def _tiles_of(row: PanelRow, classes: Sequence[str], side: int) -> dict[str, Tile]:
    background = first_shown(classes) == 0
    tiles = {"image": Tile(fit(row.image, side), row.id if len(row.id) <= 26 else f"…{row.id[-25:]}")}
    for name, mask in _masks_of(row, COLUMNS).items():
        caption = "" if name == "gold" or row.gold is None else _iou_text(row.gold, mask, background=background)
        tiles[name] = Tile(_picture(row, name, mask, classes, side), caption)
    if _is_pair(row):
        assert row.chosen is not None
        assert row.rejected is not None
        tiles[PAIR] = Tile(difference(row.image, row.chosen, row.rejected, background=background, side=side))
    return tiles


def _picture(row: PanelRow, name: str, mask: Mask, classes: Sequence[str], side: int) -> Image:
    if name == "gold" or row.gold is None or not _is_binary(classes):
        return overlay(row.image, mask, classes, side=side)
    return difference(row.image, mask, row.gold, side=side)


def _masks_of(row: PanelRow, names: Sequence[str]) -> dict[str, Mask]:
    masks: dict[str, Mask | None] = {name: getattr(row, name) for name in names if name in MASKS}
    return {name: mask for name, mask in masks.items() if mask is not None}


def _is_binary(classes: Sequence[str]) -> bool:
    return len(classes) - first_shown(classes) == 1


def _is_pair(row: PanelRow) -> bool:
    return row.gold is None and row.chosen is not None and row.rejected is not None


def _legend(rows: Sequence[PanelRow], classes: Sequence[str], names: Sequence[str]) -> Legend:
    first = first_shown(classes)
    legend = dict(zip(classes[first:], map(tuple, class_colours(len(classes) - first).tolist()), strict=True))
    if _is_binary(classes) and any(row.gold is not None and len(_masks_of(row, names)) > 1 for row in rows):
        legend |= dict(zip(AGAINST_GOLD, DIFFERENCE, strict=False))
    if PAIR in names and any(map(_is_pair, rows)):
        legend |= dict(zip(OF_A_PAIR[: 3 if _is_binary(classes) else 4], DIFFERENCE, strict=False))
    return legend


def _iou_text(gold: Mask, mask: Mask, *, background: bool) -> str:
    iou = mean_iou(mask, gold, background=background)
    return "nothing to find" if np.isnan(iou) else f"IoU {iou:.3f}"

"""Images and their masks side by side as PNG: panels of many images, and strips of one image."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Bool, UInt8
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Patch
from PIL import Image as Pillow
from PIL import ImageDraw, ImageFont

from segdpo.checks import IGNORE
from segdpo.data import Image, PanelRow, class_colours, encode_image, overlay, shrink
from segdpo.files import write_atomically
from segdpo.masks import Mask, mean_iou
from segdpo.reports.plots import new_figure, to_bytes

BINARY = ("background", "object")
MASKS = ("chosen", "rejected", "reference", "policy", "gold")
# Of a panel: inches, pixels, and how strongly classes are tinted.
SIDE, LONGEST, TINT = 2.0, 512, 0.45
# Of a strip, in pixels.
STRIP_SIDE, GAP, TITLE = 256, 6, 18
STRIP_MASKS = ("gold", "reference", "policy")
# colour, width, dashes
Line = tuple[str | tuple[float, ...], float, tuple[float, Sequence[float]] | None]
# White dashes on black are visible on any image, and no class has these colours.
GOLD_LINES: tuple[Line, ...] = (("black", 1.2, None), ("white", 0.7, (0, (3, 3))))


def draw_panel(
    rows: Sequence[PanelRow], path: str | Path, *, classes: Sequence[str] = BINARY, title: str | None = None
) -> None:
    """Draw a row for each image and a column for each kind of mask; write a PNG, or the format of the suffix.

    Columns that no row fills are left out. Where gold is known, it is drawn over every mask as a dashed line, and below
    each mask stands its IoU with gold (the mean over classes; a class 0 called "background" does not count).

    Args:
        rows: images with their chosen, rejected, reference, policy and gold masks.
        path: the file to write.
        classes: the names of the classes.
        title: stands above the panel.
    """
    path = Path(path)
    write_atomically(path, to_bytes(panel_figure(rows, classes=classes, title=title), path.suffix[1:] or "png"))


def panel_figure(rows: Sequence[PanelRow], *, classes: Sequence[str] = BINARY, title: str | None = None) -> Figure:
    """Return the figure that `draw_panel` writes."""
    if not rows:
        raise ValueError("Expected at least one PanelRow to draw but got none; is the loader empty?")
    columns = ["image", *(name for name in MASKS if any(getattr(row, name) is not None for row in rows))]
    height = SIDE * sum(_aspect(row) for row in rows) + 0.22 * len(rows) + 0.5 + 0.3 * (title is not None)
    figure = new_figure(SIDE * len(columns), height)
    figure.set_layout_engine(ConstrainedLayoutEngine(h_pad=0.02, w_pad=0.03, hspace=0, wspace=0))
    grid = figure.subplots(
        len(rows), len(columns), squeeze=False, gridspec_kw={"height_ratios": [_aspect(row) for row in rows]}
    )
    for number, (row, line) in enumerate(zip(rows, grid, strict=True)):
        for name, axes in zip(columns, line, strict=True):
            _draw_mask(axes, row, name, classes)
            if number == 0:
                axes.set_title(name, fontsize=10, fontweight="bold")
    if title is not None:
        figure.suptitle(title, fontsize=11)
    _add_legend(figure, rows, classes)
    return figure


def first_shown(classes: Sequence[str]) -> int:
    """Return the first class that is drawn: 1 where class 0 is called "background", else 0."""
    return 1 if classes[0] == "background" else 0


def _aspect(row: PanelRow) -> float:
    height, width = row.image.shape[:2]
    return float(height / width)


def _draw_mask(axes: Axes, row: PanelRow, name: str, classes: Sequence[str]) -> None:
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    if name == "image":
        axes.imshow(shrink(row.image, None, LONGEST)[0], interpolation="nearest")
        axes.set_xlabel(row.id if len(row.id) <= 26 else f"…{row.id[-25:]}", fontsize=7)
        return
    mask: Mask | None = getattr(row, name)
    if mask is None:
        axes.text(0.5, 0.5, "none", ha="center", va="center", color="0.5", transform=axes.transAxes)
        return
    image, small = shrink(row.image, mask, LONGEST)
    assert small is not None
    first = first_shown(classes)
    axes.imshow(_tinted(image, small, first), interpolation="nearest")
    for label, colour in zip(range(first, len(classes)), _colours(classes), strict=True):
        _outline(axes, small == label, [(tuple(colour / 255), 1.4, None)])
    if row.gold is not None and name != "gold":
        gold = shrink(row.image, row.gold, LONGEST)[1]
        assert gold is not None
        for label in range(1, len(classes)):
            _outline(axes, gold == label, GOLD_LINES)
        axes.set_xlabel(_iou_text(row.gold, mask, background=first == 0), fontsize=8)


def _colours(classes: Sequence[str]) -> np.ndarray:
    return class_colours(len(classes) - first_shown(classes))


def _tinted(image: Image, mask: Mask, first: int) -> Image:
    """Return the image, paler, with its classes in colour and stripes where it is ignored."""
    colours = class_colours(int(mask[mask != IGNORE].max(initial=first)) + 1 - first)
    tinted = 0.75 * image.astype(np.float32) + 0.25 * 255
    shown = (mask >= first) & (mask != IGNORE)
    tinted[shown] = (1 - TINT) * tinted[shown] + TINT * colours[mask[shown] - first]
    rows, columns = np.indices(mask.shape)
    period = max(4, max(mask.shape) // 16)
    tinted[(mask == IGNORE) & ((rows + columns) % period < period / 2)] = 130
    return tinted.astype(np.uint8)


def _outline(axes: Axes, inside: np.ndarray, lines: Sequence[Line]) -> None:
    if not inside.any():
        return
    # A border of one pixel closes the line around an object at the edge of the image.
    height, width = inside.shape
    xs, ys = np.arange(-1, width + 1), np.arange(-1, height + 1)
    for colour, thickness, dashes in lines:
        drawn = axes.contour(xs, ys, np.pad(inside, 1), levels=[0.5], colors=[colour], linewidths=thickness)
        if dashes is not None:
            drawn.set_linestyle(dashes)
    axes.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))


def _iou_text(gold: Mask, mask: Mask, *, background: bool) -> str:
    iou = mean_iou(mask, gold, background=background)
    return "nothing to find" if np.isnan(iou) else f"IoU {iou:.3f}"


def _add_legend(figure: Figure, rows: Sequence[PanelRow], classes: Sequence[str]) -> None:
    keys = [
        Patch(color=tuple(colour / 255), label=name)
        for name, colour in zip(classes[first_shown(classes) :], _colours(classes), strict=True)
    ]
    if any(row.gold is not None for row in rows):
        keys.append(Patch(facecolor="0.8", edgecolor="black", linestyle="dashed", label="outline of gold"))
    figure.legend(handles=keys, loc="outside lower center", ncols=min(6, len(keys)), fontsize=8, frameon=False)


def draw_strip(row: PanelRow, path: Path, *, classes: Sequence[str], notes: Mapping[str, str]) -> None:
    """Write an image and its gold, reference and policy masks side by side as PNG; masks that are None are left out.

    A white line on the masks of the networks is the outline of gold.

    Args:
        row: the image and its masks.
        path: the file to write.
        classes: the names of the classes.
        notes: text beside the name of a mask, such as its IoU.
    """
    tiles = {"image": _enlarged(row.image, None)[0]}
    for name in STRIP_MASKS:
        mask: Mask | None = getattr(row, name)
        if mask is not None:
            tiles[name] = _tile(row.image, mask, None if name == "gold" else row.gold, tuple(classes))
    write_atomically(path, encode_image(_side_by_side(tiles, notes)).data)


def _tile(image: Image, mask: Mask, gold: Mask | None, classes: tuple[str, ...]) -> Image:
    large, labels = _enlarged(image, mask)
    assert labels is not None
    tinted = overlay(large, labels, classes)
    if gold is not None:
        outline = _enlarged(image, gold)[1]
        assert outline is not None
        tinted[_edges(outline)] = 255
    return tinted


def _enlarged(image: Image, mask: Mask | None) -> tuple[Image, Mask | None]:
    """Return image and mask with their longest side STRIP_SIDE."""
    pixels, labels = shrink(image, mask, STRIP_SIDE)
    scale = STRIP_SIDE / max(pixels.shape[:2])
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


def _side_by_side(tiles: Mapping[str, Image], notes: Mapping[str, str]) -> UInt8[np.ndarray, "height width 3"]:
    height, width = next(iter(tiles.values())).shape[:2]
    picture = Pillow.new("RGB", (len(tiles) * (width + GAP) - GAP, height + TITLE), "white")
    draw = ImageDraw.Draw(picture)
    font = ImageFont.load_default(12)
    for number, (name, tile) in enumerate(tiles.items()):
        left = number * (width + GAP)
        picture.paste(Pillow.fromarray(tile), (left, TITLE))
        draw.text((left, 1), " ".join(filter(None, (name, notes.get(name)))), fill=(20, 20, 20), font=font)
    return np.array(picture)

"""Draw the pictures of docs/concepts.md from the embedded images.

python scripts/draw_concepts.py docs/figures
"""

import argparse
from pathlib import Path

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from segdpo import score_pairs
from segdpo.data import Record, Shapes, difference, overlay
from segdpo.preferences import iou
from segdpo.reports import plots

SIDE = 256
BOXES = ("reference", "candidates", "judgements", "policy", "comparison")
BELOW = (
    "a network trained\non few or rough masks",
    "several masks\nof each image",
    "which of two masks\nis better?",
    "the reference, trained\non the judgements",
    "both networks against\ngold, or held-out judgements",
)


def show(axes: Axes, picture: np.ndarray, title: str, below: str = "") -> None:
    """Show a picture without axes, a title above and a text below."""
    axes.imshow(picture)
    axes.set(title=title, xlabel=below, xticks=[], yticks=[])
    axes.spines[:].set_visible(False)


def draw_overview() -> Figure:
    """Draw the steps of a run as boxes."""
    figure = plots.new_figure(9, 1.4)
    axes = figure.subplots()
    axes.set(xlim=(-0.5, len(BOXES) - 0.4), ylim=(-0.8, 0.5))
    axes.axis("off")
    for place, (name, text) in enumerate(zip(BOXES, BELOW, strict=True)):
        axes.text(
            place, 0.2, name, ha="center", va="center", weight="bold", bbox={"boxstyle": "round,pad=.5", "fc": "w"}
        )
        axes.text(place, -0.25, text, ha="center", va="top", fontsize=9)
        if place:
            axes.annotate("", (place - 0.36, 0.2), (place - 0.64, 0.2), arrowprops={"arrowstyle": "->"})
    return figure


def draw_candidates(record: Record, classes: tuple[str, ...], quality: np.ndarray) -> Figure:
    """Draw an image and its candidates, the best one first, with their IoU with gold."""
    figure = plots.new_figure(9, 2.3)
    first, *rest = figure.subplots(1, 1 + len(quality))
    show(first, overlay(record.image, np.zeros_like(record.masks[0]), classes, side=SIDE), "image")
    for axes, number in zip(rest, np.argsort(-quality), strict=True):
        picture = overlay(record.image, record.masks[number], classes, side=SIDE)
        show(axes, picture, "candidate", f"IoU with gold {quality[number]:.2f}")
    return figure


def draw_judgement(record: Record, classes: tuple[str, ...], chosen: int, rejected: int) -> Figure:
    """Draw a question about two masks, the answer, and the pixels in which the masks differ."""
    figure = plots.new_figure(9, 3.3)
    left, right, where = figure.subplots(1, 3)
    for axes, number, sign in ((left, chosen, "chosen,  $y^+$"), (right, rejected, "rejected,  $y^-$")):
        show(axes, overlay(record.image, record.masks[number], classes, side=SIDE), sign)
    picture = difference(record.image, record.masks[chosen], record.masks[rejected], side=SIDE)
    show(where, picture, "where they differ", "blue: both\norange: chosen alone\nyellow: rejected alone")
    return figure


def draw_margin(record: Record, chosen: int, rejected: int) -> Figure:
    """Draw scores of both masks and their margin while the logits move from the rejected to the chosen mask."""
    masks = [torch.from_numpy(record.masks[number][None].copy()) for number in (chosen, rejected)]
    signs = [2.0 * mask.float()[:, None] - 1 for mask in masks]
    shares = torch.linspace(0, 1, 50)
    scores = [score_pairs(2 * (s * signs[0] + (1 - s) * signs[1]), *masks, region="disagreement") for s in shares]
    figure = plots.new_figure(5, 2.8)
    axes = figure.subplots()
    axes.plot(shares, [s.chosen.item() for s in scores], color=plots.BLUE, label="$s^+$, chosen mask")
    axes.plot(shares, [s.rejected.item() for s in scores], color=plots.VERMILION, label="$s^-$, rejected mask")
    axes.plot(shares, [s.margin.item() for s in scores], color=plots.BLACK, label="margin, $s^+ - s^-$")
    axes.axhline(0, color="0.7", linewidth=0.8, zorder=0)
    axes.set(xlabel="prediction, from the rejected (0) to the chosen mask (1)", ylabel="nats a pixel")
    axes.legend(frameon=False, fontsize=9)
    return figure


def main() -> None:
    """Draw all pictures into a folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where to write, e.g. docs/figures")
    folder = parser.parse_args().folder
    mpl.rcParams |= {"svg.hashsalt": "segdpo", "svg.fonttype": "none", "font.size": 10}
    shapes = Shapes(count=20)
    record = shapes[3]
    quality = iou(record, record.masks, np.random.default_rng(0))
    best, worst = int(quality.argmax()), int(quality.argmin())
    pictures = {
        "concepts_overview.svg": draw_overview(),
        "concepts_candidates.png": draw_candidates(record, shapes.classes, quality),
        "concepts_judgement.png": draw_judgement(record, shapes.classes, best, worst),
        "concepts_margin.svg": draw_margin(record, best, worst),
    }
    for name, figure in pictures.items():
        (folder / name).write_bytes(plots.to_bytes(figure, name[-3:]))
        print(f"wrote {folder / name}")


if __name__ == "__main__":
    main()

"""Curves of a run, and of the attack on a reward model, as PNG."""

import csv
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

BLUE, VERMILION, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
ORANGE, SKY, BLACK = "#E69F00", "#56B4E9", "#000000"
GREY = "#6b6b6b"
# In the order in which lines take them.
COLOURS = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, BLACK)


Series = tuple[list[float], list[float]]


def read_series(metrics_csv: str | Path) -> dict[str, Series]:
    """Return each metric's (steps, values), its empty cells left out."""
    series: dict[str, Series] = {}
    with Path(metrics_csv).open(newline="") as file:
        for line in csv.DictReader(file):
            for name, value in line.items():
                if name not in ("step", "epoch") and value:
                    steps, values = series.setdefault(name, ([], []))
                    steps.append(float(line["step"]))
                    values.append(float(value))
    return series


def draw_curves(
    metrics_csv: str | Path,
    path: str | Path,
    *,
    reference_iou: float | None = None,
    title: str | None = None,
) -> None:
    """Draw what a run's metrics.csv holds; write a PNG (or what the suffix says).

    Thin lines are single steps of training, thick ones their mean over a twentieth of the run, circles validation.
    Below the line in the panel of the chosen gain, the policy likes the preferred masks less than the reference did:
    likelihood displacement. `reference_iou` is the line that the policy has to get above.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    curves_figure(metrics_csv, reference_iou=reference_iou, title=title).savefig(path, dpi=120)


def curves_figure(metrics_csv: str | Path, *, reference_iou: float | None = None, title: str | None = None) -> Figure:
    """Return the figure that `draw_curves` writes."""
    series = read_series(metrics_csv)
    if not series:
        raise ValueError(f"Expected metrics over steps in {metrics_csv} but it has none; was a single step logged?")
    figure = Figure(figsize=(11, 6), layout="constrained")
    FigureCanvasAgg(figure)
    places = figure.subplots(2, 3, sharex=True)
    _scores(places[0, 0], series, "chosen", BLUE, r"chosen masks, $s^+$")
    _scores(places[1, 0], series, "rejected", VERMILION, r"rejected masks, $s^-$")
    _chosen_gain(places[0, 1], series)
    _draw(places[1, 1], series, "pairs/margin", GREEN, "margin gained over the reference, $h$")
    if places[1, 1].lines:
        places[1, 1].axhline(0, color=GREY, linewidth=0.8)
    _overlap(places[0, 2], series, reference_iou)
    _draw(places[1, 2], series, "loss", BLUE, "loss")
    for place in places[1]:
        place.set_xlabel("step")
    for place in places.flat:
        _finish(place)
    figure.supxlabel("lines: training, thick ones smoothed; circles: validation", fontsize=8, color=GREY)
    if title is not None:
        figure.suptitle(title, fontsize=12)
    return figure


def _scores(place: Axes, series: dict[str, Series], which: str, colour: str, title: str) -> None:
    _draw(place, series, f"score/policy_{which}", colour, title, label="policy")
    _draw(place, series, f"score/reference_{which}", GREY, title, label="reference", style="--")


def _chosen_gain(place: Axes, series: dict[str, Series]) -> None:
    _draw(place, series, "pairs/chosen_gain", BLUE, r"chosen gain, $s^+_\theta - s^+_{ref}$")
    if not place.lines:
        return
    place.axhline(0, color=GREY, linewidth=0.8)
    low, high = place.get_ylim()
    # A hair below 0 is in view even if all is well, so that one sees which side is which.
    low = min(low, -0.12 * max(high, 1e-6))
    place.axhspan(low, 0, color=VERMILION, alpha=0.1, linewidth=0, zorder=0)
    place.set_ylim(low, high)
    place.text(
        0.99, 0.01, "below 0: displacement", color=VERMILION, fontsize=8, ha="right", va="bottom",
        transform=place.transAxes,
    )  # fmt: skip


def _overlap(place: Axes, series: dict[str, Series], reference_iou: float | None) -> None:
    _draw(place, series, "iou", BLUE, "IoU with gold, validation", label="policy")
    if reference_iou is not None and not math.isnan(reference_iou):
        place.set_title("IoU with gold, validation", fontsize=10)
        place.axhline(reference_iou, color=GREY, linestyle="--", linewidth=1.4, label=f"reference {reference_iou:.3f}")


def _draw(
    place: Axes,
    series: dict[str, Series],
    key: str,
    colour: str,
    title: str,
    label: str | None = None,
    style: str = "-",
) -> None:
    train = next((series[name] for name in (f"train/{key}", f"train/{key}_step") if name in series), None)
    if train is not None:
        steps, values = np.asarray(train[0]), np.asarray(train[1])
        width = max(1, len(values) // 20)
        if width > 1:
            place.plot(steps, values, style, color=colour, alpha=0.25, linewidth=0.7)
        place.plot(steps, _smooth(values, width), style, color=colour, linewidth=1.6, label=label)
    val = series.get(f"val/{key}")
    if val is not None:
        # Filled is the policy, hollow the reference.
        filled = colour if style == "-" else "white"
        shown = label if train is None else None
        place.plot(
            *val, "o" + style if train is None else "o", color=colour, markersize=4, markerfacecolor=filled, label=shown
        )
    if train is not None or val is not None:
        place.set_title(title, fontsize=10)


def _smooth(values: np.ndarray, width: int) -> np.ndarray:
    """Return the mean over a window around each value, of what there is at the ends; NaN do not count."""
    kernel, known = np.ones(width), np.isfinite(values)
    total = np.convolve(np.where(known, values, 0), kernel, "same")
    count = np.convolve(known.astype(float), kernel, "same")
    return np.asarray(np.divide(total, count, out=np.full(len(values), np.nan), where=count > 0))


def _finish(place: Axes) -> None:
    if not place.lines:
        place.set_axis_off()
        return
    place.spines[["top", "right"]].set_visible(False)
    place.tick_params(labelsize=8)
    place.ticklabel_format(axis="y", useOffset=False)
    if place.get_legend_handles_labels()[1]:
        place.legend(frameon=False, fontsize=8)


def draw_attack(reward: Sequence[Sequence[float]], iou: Sequence[Sequence[float]], path: Path) -> None:
    """Draw both over the steps, [steps][images]: thin lines are single images, thick ones their mean."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    places = figure.subplots(1, 2)
    titles = ("what the reward model says", "IoU with gold")
    for place, values, colour, title in zip(places, (reward, iou), (BLUE, VERMILION), titles, strict=True):
        table = np.asarray(values, float)
        known = np.isfinite(table)
        counts = known.sum(1)
        mean = np.divide(np.where(known, table, 0).sum(1), counts, out=np.full(len(table), np.nan), where=counts > 0)
        place.plot(table, color=colour, alpha=0.25, linewidth=0.7)
        place.plot(mean, color=colour, linewidth=2)
        place.set_title(title, fontsize=10)
        place.set_xlabel("steps up the reward's gradient")
        place.spines[["top", "right"]].set_visible(False)
        place.tick_params(labelsize=8)
    figure.savefig(path, dpi=120)

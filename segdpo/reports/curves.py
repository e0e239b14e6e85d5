"""The curves of a run over its steps: their data, prepared once for PNG and HTML, and the PNG."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from segdpo.files import write_atomically
from segdpo.reports.plots import (
    BLUE,
    GREEN,
    GREY,
    VERMILION,
    Range,
    finite,
    new_figure,
    range_of,
    running_mean,
    to_bytes,
)
from segdpo.reports.run_files import Series, read_series

Curves = Mapping[str, Series]
# Keys of metrics.csv after "train/" or "val/", and the title of their panel.
TITLES = {
    "score/policy_chosen": "s⁺, score of the chosen masks",
    "score/policy_rejected": "s⁻, score of the rejected masks",
    "pairs/margin": "h, margin gained over the reference",
    "pairs/chosen_gain": "Chosen gain, s⁺ of policy − reference",
    "iou": "IoU with gold, validation",
    "pairs/iou_gain": "IoU gained on held-out judgements, validation",
    "loss": "Loss",
}
REFERENCE_KEYS = {"score/policy_chosen": "score/reference_chosen", "score/policy_rejected": "score/reference_rejected"}
COMPARED_WITH_ZERO = ("pairs/margin", "pairs/chosen_gain", "pairs/iou_gain")
# Row, column and colour of each panel of the PNG; held-out judgements take the place of IoU where there is no gold.
PLACES = {
    "score/policy_chosen": (0, 0, BLUE),
    "pairs/chosen_gain": (0, 1, BLUE),
    "iou": (0, 2, BLUE),
    "pairs/iou_gain": (0, 2, BLUE),
    "score/policy_rejected": (1, 0, VERMILION),
    "pairs/margin": (1, 1, GREEN),
    "loss": (1, 2, BLUE),
}


@dataclass(frozen=True)
class Line:
    """A quantity of the policy or the reference: each step of training, their running mean, and validation.

    Of few steps, `smoothed` is `steps` itself.
    """

    network: str
    steps: Series | None
    smoothed: Series | None
    validation: Series | None


@dataclass(frozen=True)
class Panel:
    """One quantity over the steps: its lines, the ranges of both axes, and what else is drawn.

    `level` is the value of the reference where that is a constant, NaN where there is none; `broken` is the first step
    with a value that is not finite.
    """

    key: str
    title: str
    lines: Sequence[Line]
    x_range: Range
    y_range: Range
    level: float
    broken: float | None


def prepare_panels(series: Curves, reference_iou: float = math.nan) -> list[Panel]:
    """Return the panels of a run, without those of quantities that were not logged.

    Args:
        series: steps and values of each metric, as `read_series` returns them.
        reference_iou: the validation IoU of the reference.
    """
    panels = []
    for key, title in TITLES.items():
        lines = [_line(series, key, "policy")]
        if other := REFERENCE_KEYS.get(key):
            lines.append(_line(series, other, "reference"))
        if lines[0].steps or lines[0].validation:
            if key == "pairs/margin" and not any("score/reference" in name for name in series):
                title = "s⁺ − s⁻ of the policy; the loss asks for no reference"
            panels.append(_panel(key, title, lines, reference_iou if key == "iou" else math.nan))
    return panels


def trained_or_validated(series: Curves, key: str) -> Series | None:
    """Return what training logged of a quantity, else what validation did."""
    return _trained(series, key) or series.get(f"val/{key}")


def _line(series: Curves, key: str, network: str) -> Line:
    steps = _trained(series, key)
    width = len(steps[1]) // 20 if steps else 0
    smoothed = (steps[0], running_mean(steps[1], width)) if steps and width > 1 else steps
    return Line(network, steps, smoothed, series.get(f"val/{key}"))


def _trained(series: Curves, key: str) -> Series | None:
    return next((series[name] for name in (f"train/{key}", f"train/{key}_step") if name in series), None)


def _panel(key: str, title: str, lines: Sequence[Line], level: float) -> Panel:
    parts = [part for line in lines for part in (line.steps, line.validation) if part]
    include = [*finite([level]), *([0.0] if key in COMPARED_WITH_ZERO else [])]
    low, high = range_of([value for _, values in parts for value in values], include=include)
    if key == "pairs/chosen_gain":
        # Some room below 0 even if all is above it, so that one sees which side is which.
        low = min(low, -0.15 * high)
    x_range = range_of([step for steps, _ in parts for step in steps], pad=0.02)
    broken = [step for part in parts for step, value in zip(*part, strict=True) if not math.isfinite(value)]
    return Panel(key, title, lines, x_range, (low, high), level, min(broken, default=None))


def draw_curves(
    metrics_csv: str | Path,
    path: str | Path,
    *,
    reference_iou: float | None = None,
    title: str | None = None,
) -> None:
    """Draw the metrics.csv of a run and write a PNG, or the format of the suffix.

    Thin lines are single steps of training, thick ones their mean over a twentieth of the run, circles validation.
    Where the chosen gain is below 0, the policy scores the chosen masks lower than the reference did: likelihood
    displacement.

    Args:
        metrics_csv: the file of the run.
        path: the file to write.
        reference_iou: the validation IoU of the reference, drawn as a line.
        title: stands above the panels.

    Raises:
        ValueError: the file has no metrics.
    """
    path = Path(path)
    figure = curves_figure(metrics_csv, reference_iou=reference_iou, title=title)
    write_atomically(path, to_bytes(figure, path.suffix[1:] or "png"))


def curves_figure(metrics_csv: str | Path, *, reference_iou: float | None = None, title: str | None = None) -> Figure:
    """Return the figure that `draw_curves` writes."""
    series = read_series(Path(metrics_csv))
    if not series:
        raise ValueError(f"Expected metrics over steps in {metrics_csv} but it has none; was a single step logged?")
    figure = new_figure(11, 6)
    axes = figure.subplots(2, 3, sharex=True)
    for each in axes.flat:
        each.set_axis_off()
    panels = {
        panel.key: panel for panel in prepare_panels(series, math.nan if reference_iou is None else reference_iou)
    }
    if "iou" in panels:
        panels.pop("pairs/iou_gain", None)
    for panel in panels.values():
        row, column, colour = PLACES[panel.key]
        _draw_panel(axes[row, column], panel, colour)
    for each in axes[1]:
        each.set_xlabel("step")
    figure.supxlabel("lines: training, thick ones smoothed; circles: validation", fontsize=8, color=GREY)
    if title is not None:
        figure.suptitle(title, fontsize=12)
    return figure


def _draw_panel(axes: Axes, panel: Panel, colour: str) -> None:
    axes.set_axis_on()
    labelled = len(panel.lines) > 1 or not math.isnan(panel.level)
    for line in panel.lines:
        _draw_line(axes, line, colour if line.network == "policy" else GREY, line.network if labelled else None)
    if not math.isnan(panel.level):
        label = f"reference {panel.level:.3f}"
        axes.axhline(panel.level, color=GREY, linestyle="--", linewidth=1.4, label=label)
    if panel.key in COMPARED_WITH_ZERO:
        axes.axhline(0, color=GREY, linewidth=0.8)
    if panel.key == "pairs/chosen_gain":
        axes.axhspan(panel.y_range[0], 0, color=VERMILION, alpha=0.1, linewidth=0, zorder=0)
        axes.text(
            0.99, 0.01, "below 0: displacement", color=VERMILION, fontsize=8, ha="right", va="bottom",
            transform=axes.transAxes,
        )  # fmt: skip
    axes.set_title(panel.title, fontsize=10)
    axes.set_ylim(*panel.y_range)
    axes.ticklabel_format(axis="y", useOffset=False)
    _plain_frame(axes)
    if labelled:
        axes.legend(frameon=False, fontsize=8)


def _draw_line(axes: Axes, line: Line, colour: str, label: str | None) -> None:
    style = "-" if line.network == "policy" else "--"
    if line.steps and line.smoothed:
        if line.smoothed is not line.steps:
            axes.plot(*line.steps, style, color=colour, alpha=0.25, linewidth=0.7)
        axes.plot(*line.smoothed, style, color=colour, linewidth=1.6, label=label)
    if line.validation:
        # Filled circles are the policy, hollow ones the reference.
        filled = colour if line.network == "policy" else "white"
        alone = line.steps is None
        axes.plot(
            *line.validation, "o" + style if alone else "o", color=colour, markersize=4, markerfacecolor=filled,
            label=label if alone else None,
        )  # fmt: skip


def _plain_frame(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)


def draw_attack(reward: Sequence[Sequence[float]], iou: Sequence[Sequence[float]], path: Path) -> None:
    """Draw how reward and IoU change while masks climb the gradient of a reward model, and write a PNG.

    Thin lines are single images, thick ones their mean.

    Args:
        reward: the reward model's value, [steps][images].
        iou: IoU with gold, [steps][images].
        path: the file to write.
    """
    figure = new_figure(9, 3.6)
    panels = (("reward of the reward model", reward, BLUE), ("IoU with gold", iou, VERMILION))
    for axes, (title, values, colour) in zip(figure.subplots(1, 2), panels, strict=True):
        table = np.asarray(values, float)
        known = np.isfinite(table)
        counts = known.sum(1)
        mean = np.divide(np.where(known, table, 0).sum(1), counts, out=np.full(len(table), np.nan), where=counts > 0)
        axes.plot(table, color=colour, alpha=0.25, linewidth=0.7)
        axes.plot(mean, color=colour, linewidth=2)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("steps up the reward's gradient")
        _plain_frame(axes)
    write_atomically(path, to_bytes(figure))

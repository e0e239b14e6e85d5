"""The figures of the HTML pages: curves, values image by image, calibration, and values seed by seed."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np
from markupsafe import Markup

from segdpo.reports.curves import COMPARED_WITH_ZERO, TITLES, Curves, Line, Panel, prepare_panels, trained_or_validated
from segdpo.reports.html.svg import Plot
from segdpo.reports.plots import finite, range_of, range_without_outliers
from segdpo.reports.run_files import ImageValues, Series, at, number
from segdpo.reports.runs import SIGNED, Group
from segdpo.reports.sweep import SEED_PLOTS
from segdpo.reports.text import bounds, count_of, plain, signed

# Classes of style.css.
CURVE_COLOURS = {"score/policy_rejected": "c1", "pairs/margin": "c2", "loss": "c5"}
NETWORK_COLOURS = {"reference": "muted", "policy": "c0"}
GROUP_COLOURS = 8
GROUP_DASHES = ("", "6 3", "2 3")
BINS = 20
MOST_DOTS = 1500
ROW_HEIGHT = 38
NAME_LENGTH = 50


@dataclass(frozen=True)
class Figure:
    """A plot with its title and a note below it."""

    title: str
    svg: Markup
    note: str = ""


@dataclass(frozen=True)
class GroupCurves:
    """The curves of a group's runs; `place` chooses colour and dashes."""

    name: str
    place: int
    runs: Sequence[Curves]

    @property
    def colour(self) -> str:
        """The class of its colour."""
        return f"c{self.place % GROUP_COLOURS}"

    @property
    def dashes(self) -> str:
        """Its dashes, which tell groups of the same colour apart."""
        return GROUP_DASHES[self.place // GROUP_COLOURS % len(GROUP_DASHES)]


def run_curves(series: Curves, reference_iou: float) -> list[Figure]:
    """Return the curves of one run, as in its curves.png."""
    return [_curve(panel) for panel in prepare_panels(series, reference_iou)]


def _curve(panel: Panel) -> Figure:
    plot = Plot(panel.x_range, panel.y_range, f"{panel.title} over the steps", "step")
    _mark_zero(plot, panel.key)
    if math.isfinite(panel.level):
        plot.horizontal(panel.level, "muted", "5 4", f"reference {panel.level:.3f}")
    for line in panel.lines:
        if line.network == "policy":
            _draw_line(plot, line, CURVE_COLOURS.get(panel.key, "c0"), "")
        else:
            _draw_line(plot, line, "muted", "5 4")
    if panel.broken is None:
        return Figure(panel.title, plot.svg())
    plot.vertical(panel.broken, "worse", "3 3", "not finite from here")
    return Figure(panel.title, plot.svg(), f"not finite from step {panel.broken:.0f}")


def _draw_line(plot: Plot, line: Line, colour: str, dashes: str) -> None:
    if line.steps and line.smoothed:
        if line.smoothed is not line.steps:
            plot.line(*line.steps, colour, width=0.8, faint=True)
        plot.line(*line.smoothed, colour, dashes=dashes, title=line.network)
    if line.validation:
        if not line.steps:
            plot.line(*line.validation, colour, dashes=dashes, title=line.network)
        titles = [f"{line.network}, validation: {value:.4g}" for value in line.validation[1]]
        plot.dots(*line.validation, colour, hollow=bool(dashes), titles=titles)


def _mark_zero(plot: Plot, key: str) -> None:
    if key in COMPARED_WITH_ZERO:
        plot.horizontal(0)
    if key == "pairs/chosen_gain":
        plot.bar(plot.x, (plot.y[0], 0), "worse", opacity=0.09)
        plot.text(0.99, 0.97, "below 0: displacement", "worse", "end")


def group_curves(groups: Sequence[GroupCurves]) -> list[Figure]:
    """Return the curves of several groups on common axes: thin lines are runs, thick ones their means."""
    figures = []
    for key, title in TITLES.items():
        lines = {group.name: _lines(group, key) for group in groups}
        # Losses of different objectives have different units: they cannot be compared.
        if key == "loss" or not any(lines.values()):
            continue
        values = [value for found in lines.values() for _, each in found for value in each]
        steps = [step for found in lines.values() for each, _ in found for step in each]
        zero = [0.0] if key in COMPARED_WITH_ZERO else []
        y_range = range_without_outliers(values, include=zero, times=8)
        plot = Plot(range_of(steps, pad=0), y_range, f"{title} over the steps, one line a group", "step")
        _mark_zero(plot, key)
        for group in groups:
            _draw_group(plot, group, lines[group.name])
        outside = any(not y_range[0] <= value <= y_range[1] for value in finite(values))
        figures.append(Figure(title, plot.svg(), "some values lie outside the plot" if outside else ""))
    return figures


def _lines(group: GroupCurves, key: str) -> list[Series]:
    return [line for run in group.runs if (line := trained_or_validated(run, key))]


def _draw_group(plot: Plot, group: GroupCurves, lines: Sequence[Series]) -> None:
    for steps, values in lines if len(lines) > 1 else ():
        plot.line(steps, values, group.colour, width=0.8, faint=True)
    if lines:
        plot.line(*mean_line(lines), group.colour, width=2.2, dashes=group.dashes, title=group.name)


def mean_line(lines: Sequence[Series]) -> Series:
    """Return the mean at each step over the runs that have a finite value there.

    >>> mean_line([([1, 2], [0.0, 1.0]), ([1], [1.0])])
    ([1, 2], [0.5, 1.0])
    """
    at_step: dict[float, list[float]] = {}
    for steps, values in lines:
        for step, value in zip(steps, values, strict=True):
            at_step.setdefault(step, []).extend(finite([value]))
    ordered = sorted(at_step)
    return ordered, [fmean(at_step[step]) if at_step[step] else math.nan for step in ordered]


def image_figures(images: Sequence[ImageValues]) -> list[Figure]:
    """Return how IoU is spread over the images, how it changed, and that of the policy over that of the reference."""
    values = {name: [image.values.get(f"{name}_iou", math.nan) for image in images] for name in NETWORK_COLOURS}
    changes = finite(image.change() for image in images)
    figures = [_spread(values)] if any(finite(each) for each in values.values()) else []
    return [*figures, _changes(changes), _policy_over_reference(images)] if changes else figures


def _spread(values: Mapping[str, Sequence[float]]) -> Figure:
    edges = np.linspace(0, 1, BINS + 1)
    counts = {name: np.histogram(finite(each), edges)[0] for name, each in values.items()}
    label = "histogram of the images’ IoU, reference and policy"
    plot = Plot((0, 1), (0, _top(counts.values())), label, "IoU", counts=True)
    for name, colour in NETWORK_COLOURS.items():
        for low, high, count in zip(edges[:-1], edges[1:], counts[name], strict=True):
            if count:
                title = f"{name}: {count_of(count, 'image')}"
                plot.bar((low + 0.002, high - 0.002), (0, count), colour, opacity=0.45, title=title)
        if found := finite(values[name]):
            mean = fmean(found)
            plot.vertical(mean, colour, "" if name == "policy" else "5 4", f"mean of the {name}: {mean:.3f}")
    return Figure("IoU, image by image", plot.svg(), "blue: policy; grey: reference; vertical lines: their means")


def _changes(changes: Sequence[float]) -> Figure:
    largest = max(0.05, max(abs(change) for change in changes))
    # With an even number of bins 0 is an edge, so that no bar holds both better and worse images.
    edges = np.linspace(-largest, largest, BINS + 1)
    counts = np.histogram(changes, edges)[0]
    label = "histogram of the images’ change in IoU"
    plot = Plot((-largest, largest), (0, _top([counts])), label, "policy − reference, IoU", counts=True)
    for low, high, count in zip(edges[:-1], edges[1:], counts, strict=True):
        if count:
            title = f"{signed(low)} to {signed(high)}: {count_of(count, 'image')}"
            plot.bar((low, high), (0, count), "better" if high > 1e-12 else "worse", opacity=0.6, title=title)
    plot.vertical(0)
    return Figure("Change, image by image", plot.svg(), f"{len(changes)} images; a change of 0 is right of the line")


def _policy_over_reference(images: Sequence[ImageValues]) -> Figure:
    known = [image for image in images if math.isfinite(image.change())]
    shown = known[:: max(1, -(-len(known) // MOST_DOTS))]
    xs = [image.iou("reference") for image in shown]
    ys = [image.iou("policy") for image in shown]
    low, high = range_of([*xs, *ys])
    both = max(0.0, low), min(1.0, high)
    plot = Plot(both, both, "each image’s IoU under reference and policy", "IoU of the reference")
    plot.line(both, both, "muted", width=1.2)
    titles = [f"{image.id}: {plain(x)} → {plain(y)}" for image, x, y in zip(shown, xs, ys, strict=True)]
    for tone, better in (("better", True), ("worse", False)):
        kept = [k for k in range(len(shown)) if (ys[k] >= xs[k]) == better]
        plot.dots([xs[k] for k in kept], [ys[k] for k in kept], tone, radius=2.6, opacity=0.65,
                  titles=[titles[k] for k in kept])  # fmt: skip
    left_out = f"; {len(shown)} of {len(known)} images drawn" if len(shown) < len(known) else ""
    return Figure("IoU of policy over reference", plot.svg(), f"above the line: better{left_out}")


def _top(counts: Any) -> float:
    return 1.08 * max(1, *(int(each.max()) for each in counts))


def reliability_figures(calibration: object) -> list[Figure]:
    """Return the reliability diagram of each network, with the share of pixels in each bin of confidence."""
    figures = []
    for name, colour in NETWORK_COLOURS.items():
        found = at(calibration, name)
        confidence, accuracy, bins = (_numbers(found, key) for key in ("confidence", "accuracy", "bins"))
        if not finite(accuracy) or not len(confidence) == len(accuracy) == len(bins):
            continue
        ece, brier = (plain(number(at(found, key)), 4) for key in ("ece", "brier"))
        picture = _reliability(name, colour, confidence, accuracy, bins)
        note = f"ECE {ece}, Brier {brier}; bars: share of the pixels"
        figures.append(Figure(f"Reliability of the {name}", picture, note))
    return figures


def _numbers(tree: object, key: str) -> list[float]:
    found = at(tree, key)
    return [number(value) for value in found] if isinstance(found, list) else []


def _reliability(
    name: str, colour: str, confidence: Sequence[float], accuracy: Sequence[float], bins: Sequence[float]
) -> Markup:
    plot = Plot((0, 1), (0, 1), f"reliability of the {name}: accuracy over confidence", "confidence")
    pixels = sum(finite(bins)) or 1.0
    for k, count in enumerate(bins):
        if count > 0:
            title = f"{count:.0f} pixels, {100 * count / pixels:.1f} %"
            plot.bar((k / len(bins), (k + 1) / len(bins)), (0, count / pixels), colour, opacity=0.18, title=title)
    plot.line((0, 1), (0, 1), "muted", width=1.2, dashes="5 4")
    plot.line(confidence, accuracy, colour)
    titles = [f"confidence {plain(x)}, accuracy {plain(y)}" for x, y in zip(confidence, accuracy, strict=True)]
    plot.dots(confidence, accuracy, colour, titles=titles)
    return plot.svg()


def seed_figures(groups: Sequence[Group]) -> list[Figure]:
    """Return a figure for each measure: one row a group, its runs as points, mean and interval as a line."""
    figures = []
    for measure, title in SEED_PLOTS.items():
        values = finite(run.values[measure] for group in groups for run in group.runs)
        if values:
            zero = [0.0] if measure in SIGNED else []
            x = range_without_outliers(values, include=zero, times=20)
            height = ROW_HEIGHT * len(groups) + 44
            plot = Plot(x, (0, len(groups)), title, title, height=height, left=10, bottom=36, y_ticks=False)
            if zero:
                plot.vertical(0)
            for row, group in enumerate(groups):
                _draw_seeds(plot, group, measure, row)
            figures.append(Figure(title, plot.svg()))
    return figures


def _draw_seeds(plot: Plot, group: Group, measure: str, row: int) -> None:
    rows, (left, right) = plot.y[1], plot.x
    y = rows - row - 0.68
    if row:
        plot.horizontal(rows - row, "rule")
    name = group.name if len(group.name) <= NAME_LENGTH else f"{group.name[: NAME_LENGTH - 1]}…"
    plot.text(0, (row + 0.36) / rows, name, "ink")
    outside = [value for value in finite(run.values[measure] for run in group.runs) if not left <= value <= right]
    interval = group.interval(measure)
    if outside:
        # Mean and interval would be those of the outlier.
        low = min(outside) < left
        furthest = plain(min(outside) if low else max(outside))
        text = f"{'◂ ' if low else ''}{len(outside)} outside, to {furthest}"
        plot.text(0.0 if low else 1.0, (row + 0.78) / rows, text, "worse", "start" if low else "end")
    elif math.isfinite(interval.mean):
        if math.isfinite(interval.low):
            title = f"{plain(interval.mean)} {bounds(interval)}, {count_of(interval.n, 'run')}"
            plot.line((max(interval.low, left), min(interval.high, right)), (y, y), "c1", width=2.4, title=title)
        plot.dots([interval.mean], [y], "c1", radius=4.2, hollow=True)
    inside = [run for run in group.runs if left <= run.values[measure] <= right]
    plot.dots([run.values[measure] for run in inside], [y] * len(inside), "c0", opacity=0.6,
              titles=[f"seed {run.seed}: {plain(run.values[measure], 4)}" for run in inside])  # fmt: skip

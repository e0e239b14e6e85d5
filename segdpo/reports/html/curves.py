"""Curves over the steps: of one run (policy and reference), and of a sweep's groups on common axes."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from segdpo.reports.curves import Series
from segdpo.reports.html.svg import Plot, finite, range_of, sane_range

Curves = Mapping[str, Series]
# key in metrics.csv, title, colour
PANELS = (
    ("score/policy_chosen", "s⁺, score of the chosen masks", "c0"),
    ("score/policy_rejected", "s⁻, score of the rejected masks", "c1"),
    ("pairs/margin", "h, margin gained over the reference", "c2"),
    ("pairs/chosen_gain", "Chosen gain, s⁺ of policy − reference", "c0"),
    ("iou", "IoU with gold, validation", "c0"),
    ("loss", "Loss", "c5"),
)
MEANT_BY_ZERO = ("pairs/margin", "pairs/chosen_gain")
REFERENCE = {"score/policy_chosen": "score/reference_chosen", "score/policy_rejected": "score/reference_rejected"}
DASHES = ("", "6 3", "2 3")
COLOURS = 8


@dataclass(frozen=True)
class Figure:
    """A picture and what stands below it."""

    title: str
    svg: Markup
    note: str = ""


@dataclass(frozen=True)
class Bundle:
    """The runs of a group: its name, its place in the legend, and the curves of each run."""

    name: str
    place: int
    runs: Sequence[Curves]

    @property
    def colour(self) -> str:
        """The class of its colour."""
        return f"c{self.place % COLOURS}"

    @property
    def dashes(self) -> str:
        """How its line is broken: colours come again after eight."""
        return DASHES[self.place // COLOURS % len(DASHES)]


def run_curves(series: Curves, reference_iou: float = math.nan) -> list[Figure]:
    """Return the panels of one run; those of what was not logged are left out.

    Thin lines are steps of training, thick ones their mean over a twentieth of the run, circles validation.
    """
    figures = []
    for key, title, colour in PANELS:
        train, val = _train(series, key), series.get(f"val/{key}")
        other = REFERENCE.get(key, "")
        lines = [(train, val, colour, "policy", "")]
        if other:
            lines.append((_train(series, other), series.get(f"val/{other}"), "muted", "reference", "5 4"))
        if train or val:
            level = reference_iou if key == "iou" else math.nan
            if key == "pairs/margin" and not any("score/reference" in name for name in series):
                title = "s⁺ − s⁻ of the policy; the loss asks for no reference"
            figures.append(_panel(title, key, lines, level))
    return figures


def group_curves(bundles: Sequence[Bundle]) -> list[Figure]:
    """Return the panels of several groups: thin lines are runs, thick ones their mean over the seeds."""
    figures = []
    # Losses differ in kind and size from objective to objective: on common axes they say nothing.
    for key, title, _ in PANELS[:-1]:
        found = [(bundle, [line for run in bundle.runs if (line := _any(run, key))]) for bundle in bundles]
        if not any(lines for _, lines in found):
            continue
        everything = [line for _, lines in found for line in lines]
        zero = [0.0] if key in MEANT_BY_ZERO else []
        shown = [value for _, values in everything for value in values]
        plot = Plot(
            range_of([x for xs, _ in everything for x in xs], pad=0),
            sane_range(shown, include=zero, times=8),
            f"{title} over the steps, one line a group",
            "step",
        )
        _shade(plot, key)
        for bundle, lines in found:
            for steps, values in lines if len(lines) > 1 else ():
                plot.line(steps, values, bundle.colour, width=0.8, faint=True)
            if lines:
                plot.line(*mean_line(lines), bundle.colour, width=2.2, dashes=bundle.dashes, title=bundle.name)
        outside = sum(not plot.y[0] <= value <= plot.y[1] for value in finite(shown))
        figures.append(Figure(title, plot.svg(), "some values lie outside the frame" if outside else ""))
    return figures


def mean_line(lines: Sequence[Series]) -> Series:
    """Return the mean at each step over the runs that have a finite value there.

    >>> mean_line([([1, 2], [0.0, 1.0]), ([1], [1.0])])
    ([1, 2], [0.5, 1.0])
    """
    at_step: dict[float, list[float]] = {}
    for steps, values in lines:
        for step, value in zip(steps, values, strict=True):
            at_step.setdefault(step, []).extend([value] if math.isfinite(value) else [])
    steps = sorted(at_step)
    return steps, [float(np.mean(at_step[step])) if at_step[step] else math.nan for step in steps]


def _panel(
    title: str, key: str, lines: Sequence[tuple[Series | None, Series | None, str, str, str]], level: float
) -> Figure:
    drawn = [part for train, val, *_ in lines for part in (train, val) if part]
    values = [value for _, part in drawn for value in part]
    include = [*finite([level]), *([0.0] if key in MEANT_BY_ZERO else [])]
    low, high = range_of(values, include=include)
    if key == "pairs/chosen_gain":
        # A good part below 0 is in view even if all is well, so that one sees which side is which.
        low = min(low, -0.15 * high)
    steps_seen = range_of([step for steps, _ in drawn for step in steps], pad=0.02)
    plot = Plot(steps_seen, (low, high), f"{title} over the steps", "step")
    _shade(plot, key)
    if math.isfinite(level):
        plot.across(level, "muted", "5 4", f"reference {level:.3f}")
    for train, val, colour, name, dashes in lines:
        if train:
            _train_line(plot, train, colour, dashes, name)
        if val:
            if not train:
                plot.line(*val, colour, dashes=dashes, title=name)
            plot.dots(*val, colour, hollow=bool(dashes), titles=[f"{name}, validation: {y:.4g}" for y in val[1]])
    broken = [step for steps, part in drawn for step, y in zip(steps, part, strict=True) if not math.isfinite(y)]
    if broken:
        plot.upright(min(broken), "worse", "3 3", "not finite from here")
    return Figure(title, plot.svg(), f"not finite from step {min(broken):.0f}" if broken else "")


def _train_line(plot: Plot, line: Series, colour: str, dashes: str, name: str) -> None:
    steps, values = line
    width = max(1, len(values) // 20)
    if width > 1:
        plot.line(steps, values, colour, width=0.8, faint=True)
    plot.line(steps, _smooth(values, width), colour, dashes=dashes, title=name)


def _smooth(values: Sequence[float], width: int) -> list[float]:
    """Return the mean of what is finite around each value; NaN stays where the value itself is."""
    if width == 1:
        return list(values)
    array = np.asarray(values, dtype=np.float64)
    known, kernel = np.isfinite(array), np.ones(width)
    total = np.convolve(np.where(known, array, 0), kernel, "same")
    count = np.convolve(known.astype(float), kernel, "same")
    return [float(x) for x in np.where(known, total / np.maximum(count, 1), math.nan)]


def _shade(plot: Plot, key: str) -> None:
    if key in MEANT_BY_ZERO:
        plot.across(0)
    if key == "pairs/chosen_gain":
        plot.bar(plot.x, (plot.y[0], 0), "worse", opacity=0.09)
        plot.words(0.99, 0.97, "below 0: displacement", "worse", "end")


def _train(series: Curves, key: str) -> Series | None:
    return next((series[name] for name in (f"train/{key}", f"train/{key}_step") if name in series), None)


def _any(series: Curves, key: str) -> Series | None:
    """Return what was logged of a key: in training, or where there is none, in validation."""
    return _train(series, key) or series.get(f"val/{key}")

"""Pictures of what was measured: image by image, bin by bin of confidence, seed by seed."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from segdpo.reports.html.curves import Figure
from segdpo.reports.html.files import ImageValues, at, number
from segdpo.reports.html.svg import Plot, finite, range_of, sane_range
from segdpo.reports.html.text import plain, signed
from segdpo.reports.sweep import Sweep

BINS = 20
MOST_DOTS = 1500
ROW = 38
NAME_LENGTH = 50


def image_figures(images: Sequence[ImageValues]) -> list[Figure]:
    """Return how the images' IoU is spread under both networks, how each changed, and one against the other."""
    values = {name: [image.values.get(f"{name}_iou", math.nan) for image in images] for name in SIDES}
    changes = finite(image.change() for image in images)
    figures = [_spread(values)] if any(finite(each) for each in values.values()) else []
    if changes:
        figures += [_changes(changes), _against(images)]
    return figures


SIDES = {"reference": "muted", "policy": "c0"}


def _spread(values: Mapping[str, Sequence[float]]) -> Figure:
    edges = np.linspace(0, 1, BINS + 1)
    counts = {name: np.histogram(finite(each), edges)[0] for name, each in values.items()}
    plot = Plot(
        (0, 1), (0, _top(counts.values())), "histogram of the images’ IoU, reference and policy", "IoU", counts=True
    )
    for name, colour in SIDES.items():
        for low, high, count in zip(edges[:-1], edges[1:], counts[name], strict=True):
            if count:
                plot.bar((low + 0.002, high - 0.002), (0, count), colour, opacity=0.45, title=f"{name}: {count} images")
        if found := finite(values[name]):
            mean = float(np.mean(found))
            plot.upright(mean, colour, "" if name == "policy" else "5 4", f"mean of the {name}: {mean:.3f}")
    return Figure("IoU, image by image", plot.svg(), "blue: policy; grey: reference; upright: their means")


def _changes(changes: Sequence[float]) -> Figure:
    far = max(0.05, max(abs(change) for change in changes))
    # An even number of bins: 0 is an edge, so that no bar has better and worse in it.
    edges = np.linspace(-far, far, BINS + 1)
    counts = np.histogram(changes, edges)[0]
    plot = Plot(
        (-far, far),
        (0, _top([counts])),
        "histogram of the images’ change in IoU",
        "policy − reference, IoU",
        counts=True,
    )
    for low, high, count in zip(edges[:-1], edges[1:], counts, strict=True):
        if count:
            title = f"{signed(low)} to {signed(high)}: {count} images"
            plot.bar((low, high), (0, count), "better" if high > 1e-12 else "worse", opacity=0.6, title=title)
    plot.upright(0)
    return Figure("Change, image by image", plot.svg(), f"{len(changes)} images; no change counts right of 0")


def _against(images: Sequence[ImageValues]) -> Figure:
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


def reliability(calibration: object) -> list[Figure]:
    """Return the reliability diagram of each network, and of how many pixels each bin speaks."""
    figures = []
    for name, colour in SIDES.items():
        found = at(calibration, name)
        confidence = [number(value) for value in at(found, "confidence") or []]
        accuracy = [number(value) for value in at(found, "accuracy") or []]
        bins = [number(value) for value in at(found, "bins") or []]
        if not finite(accuracy) or not len(confidence) == len(accuracy) == len(bins):
            continue
        note = f"ECE {plain(at(found, 'ece'), 4)}, Brier {plain(at(found, 'brier'), 4)}; bars: share of the pixels"
        picture = _reliability(name, colour, confidence, accuracy, bins)
        figures.append(Figure(f"Reliability of the {name}", picture, note))
    return figures


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
    said = [f"confidence {plain(x)}, right {plain(y)}" for x, y in zip(confidence, accuracy, strict=True)]
    plot.dots(confidence, accuracy, colour, titles=said)
    return plot.svg()


def seed_figure(sweep: Sweep, measure: str, title: str, *, zero: bool) -> Figure | None:
    """Return one row a group: its seeds as points, its mean and interval as a line; None if nothing was measured."""
    values = [[run.values[measure] for run in group.runs] for group in sweep.groups]
    everything = finite(value for each in values for value in each)
    if not everything:
        return None
    intervals = [group.interval(measure) for group in sweep.groups]
    include = [0.0] if zero else []
    x = sane_range(everything, include=include, times=20)
    plot = Plot(x, (0, len(values)), title, title, height=ROW * len(values) + 44, left=10, bottom=36, y_ticks=False)
    if zero:
        plot.upright(0)
    for row, (group, interval) in enumerate(zip(sweep.groups, intervals, strict=True)):
        y = len(values) - row - 0.68
        name = group.name if len(group.name) <= NAME_LENGTH else f"{group.name[: NAME_LENGTH - 1]}…"
        if row:
            plot.across(len(values) - row, "rule")
        plot.words(0, (row + 0.36) / len(values), name, "ink")
        outside = [value for value in finite(values[row]) if not x[0] <= value <= x[1]]
        if math.isfinite(interval.low) and not outside:
            said = f"{plain(interval.mean)} [{plain(interval.low)}, {plain(interval.high)}], {interval.n} runs"
            plot.line((max(interval.low, x[0]), min(interval.high, x[1])), (y, y), "c1", width=2.4, title=said)
        if not outside:
            plot.dots([interval.mean], [y], "c1", radius=4.2, hollow=True)
        inside = [run for run in group.runs if x[0] <= run.values[measure] <= x[1]]
        plot.dots([run.values[measure] for run in inside], [y] * len(inside), "c0", opacity=0.6,
                  titles=[f"seed {run.seed}: {plain(run.values[measure], 4)}" for run in inside])  # fmt: skip
        if outside:
            low = min(outside) < x[0]
            said = f"{'◂ ' if low else ''}{len(outside)} outside, to {plain(min(outside) if low else max(outside))}"
            plot.words(0.0 if low else 1.0, (row + 0.78) / len(values), said, "worse", "start" if low else "end")
    return Figure(title, plot.svg(), "")

"""The picture of a frontier: reward against KL to the reference, one line a method, every seed a point."""

import io
import math
from collections.abc import Sequence

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from segdpo.reports.colours import COLOURS, GREY
from segdpo.reports.frontier import REFERENCE, Frontier, Row

# They help where there are more methods than colours.
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
PANELS = {"reward": "most probable masks", "sampled": "masks drawn pixel by pixel"}


def picture(frontier: Frontier, form: str) -> bytes:
    """Return the picture as "svg" or "png"; the same runs give the same bytes."""
    with mpl.rc_context({"svg.hashsalt": "segdpo", "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(10, 4.6), layout="constrained")
        FigureCanvasAgg(figure)
        for axes, (measure, title) in zip(figure.subplots(1, len(PANELS), sharey=True), PANELS.items(), strict=True):
            _draw(axes, frontier, measure)
            axes.set_title(title)
            axes.set_xlabel("KL(policy ‖ reference), nats an image")
        figure.axes[0].set_ylabel(f"reward, {frontier.judge}", wrap=True)
        handles, names = figure.axes[0].get_legend_handles_labels()
        if handles:
            figure.legend(handles, names, loc="outside right center", frameon=False)
        buffer = io.BytesIO()
        figure.savefig(buffer, format=form, dpi=120, metadata={"Date": None} if form == "svg" else None)
    return buffer.getvalue()


def _draw(axes: Axes, frontier: Frontier, measure: str) -> None:
    # Best-of-K goes a few nats, training hundreds to thousands.
    axes.set_xscale("log")
    methods = list(dict.fromkeys(row.method for row in frontier.rows if row.method != REFERENCE))
    for number, method in enumerate(methods):
        rows = [row for row in frontier.rows if row.method == method]
        colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
        seeds = [place for row in rows for place in places(row, measure)]
        axes.scatter(*_columns(seeds), s=12, color=colour, marker=marker, alpha=0.35, linewidths=0)
        means = [(row.interval("KL").mean, row.interval(measure).mean) for row in rows if places(row, measure)]
        axes.plot(*_columns(means), color=colour, marker=marker, markersize=5, label=method)
    for row in frontier.rows:
        if row.method == REFERENCE and not math.isnan(start := row.interval(measure).mean):
            axes.axhline(start, color=GREY, linestyle="--", linewidth=0.9, label=REFERENCE)


def places(row: Row, measure: str) -> list[tuple[float, float]]:
    """Return KL and reward of each seed that a logarithmic axis can show."""
    found = [(point.values["KL"], point.values[measure]) for point in row.points]
    return [(far, reward) for far, reward in found if far > 0 and math.isfinite(far) and math.isfinite(reward)]


def _columns(places: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [far for far, _ in places], [reward for _, reward in places]

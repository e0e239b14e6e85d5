"""A sweep as a table for the terminal, as Markdown and as CSV, and as a picture with every seed in it."""

import csv
import io
import math

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.table import Table

from segdpo.reports.sweep import MEASURES, Group, Interval, Sweep

BLUE, VERMILION, GREY = "#0072B2", "#D55E00", "#6b6b6b"
SIGNED = ("difference", "chosen gain")
DRAWN = {"difference": "policy − reference, IoU", "chosen gain": "chosen gain"}


def as_text(interval: Interval, signed: bool) -> str:
    """Return "mean ± half width", or the mean alone where there is one run; a dash where nothing was measured."""
    if not interval.n:
        return "–"
    # What diverged fits no fixed number of digits.
    form = ".3f" if abs(interval.mean) < 1000 else ".1e"
    mean = format(interval.mean, f"{'+' if signed else ''}{form}")
    return mean if math.isnan(interval.half) else f"{mean} ± {interval.half:{form}}"


def cells(group: Group) -> list[str]:
    """Return a group's row: name, one cell a measure, number of runs."""
    return [
        group.name,
        *(as_text(group.interval(measure), measure in SIGNED) for measure in MEASURES),
        str(len(group.runs)),
    ]


def terminal_table(sweep: Sweep) -> Table:
    """Return the table for rich."""
    table = Table(title="IoU with gold, mean over seeds ± half of Student's 95 % interval")
    table.add_column("run", overflow="fold")
    for measure in (*MEASURES, "runs"):
        table.add_column(measure, justify="right", no_wrap=True)
    for group in sweep.groups:
        # A difference that is surely above 0 is green, one surely below red.
        interval = group.interval("difference")
        style = "green" if interval.low > 0 else "red" if interval.high < 0 else None
        table.add_row(*cells(group), style=style)
    return table


def as_markdown(sweep: Sweep) -> str:
    """Return the table in Markdown, with a line on the runs that are missing."""
    rows = [f"| run | {' | '.join(MEASURES)} | runs |", "|---" * (len(MEASURES) + 2) + "|"]
    for group in sweep.groups:
        name, *rest = cells(group)
        rows.append(f"| `{name}` | {' | '.join(rest)} |")
    if sweep.unfinished:
        rows += ["", f"{unfinished_text(sweep)}"]
    return "\n".join(rows) + "\n"


def unfinished_text(sweep: Sweep) -> str:
    """Return which runs did not come to their end."""
    names = ", ".join(str(path) for path in sweep.unfinished)
    return f"{len(sweep.unfinished)} unfinished: {names}" if names else ""


def as_csv(sweep: Sweep) -> str:
    """Return one line a run (its own numbers) after one line a group (mean, low, high, n of each measure)."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    bounds = ("mean", "low", "high", "n")
    writer.writerow(["run", "seed", "folder", *(f"{measure} {bound}" for measure in MEASURES for bound in bounds)])
    for group in sweep.groups:
        intervals = [group.interval(measure) for measure in MEASURES]
        writer.writerow([group.name, "all", "", *(x for i in intervals for x in (i.mean, i.low, i.high, i.n))])
        for run in group.runs:
            numbers = [x for measure in MEASURES for x in (run.values[measure], "", "", "")]
            writer.writerow([group.name, run.seed, run.folder, *numbers])
    return out.getvalue()


def picture(sweep: Sweep) -> bytes:
    """Return a PNG: each group's difference and chosen gain, seeds as points, the interval as a line."""
    figure = Figure(figsize=(10, 1.4 + 0.4 * len(sweep.groups)), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (measure, title) in zip(figure.subplots(1, len(DRAWN), sharey=True), DRAWN.items(), strict=True):
        _draw(axes, sweep, measure)
        axes.set_title(title)
        axes.axvline(0, color=GREY, linewidth=0.8)
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=120, format="png")
    return buffer.getvalue()


def _draw(axes: Axes, sweep: Sweep, measure: str) -> None:
    for row, group in enumerate(sweep.groups):
        values = [run.values[measure] for run in group.runs]
        axes.scatter(values, [row] * len(values), s=14, color=BLUE, alpha=0.5, zorder=2)
        interval = group.interval(measure)
        if not math.isnan(interval.half):
            axes.errorbar(interval.mean, row, xerr=interval.half, color=VERMILION, capsize=4, marker="|", zorder=3)
    axes.set_yticks(range(len(sweep.groups)), [group.name for group in sweep.groups])
    axes.set_ylim(len(sweep.groups) - 0.5, -0.5)

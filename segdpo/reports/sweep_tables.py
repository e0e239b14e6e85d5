"""A sweep as a table for the terminal, as Markdown and as CSV, and as a picture with every seed in it."""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.markup import escape
from rich.table import Table

from segdpo.metrics.statistics import Interval
from segdpo.reports.colours import BLUE, GREY, VERMILION
from segdpo.reports.sweep import COUNTED, MEASURES, Group, Sweep
from segdpo.reports.sweep_contrasts import sure_of_all

Columns = Mapping[str, Sequence[Interval]]

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
        *(with_n(as_text(at, name in SIGNED), at, group) for name in MEASURES for at in [group.interval(name)]),
        str(len(group.runs)),
    ]


def with_n(text: str, interval: Interval, group: Group) -> str:
    """Return a cell that says over how many runs it is, where that is not all of the row's."""
    return f"{text} (n {interval.n})" if group.in_part(interval) else text


def headings(sweep: Sweep, contrasts: Columns) -> list[str]:
    """Return the names of all columns but the first."""
    return [*MEASURES, "runs", *_counted(sweep), *contrasts]


def rows(sweep: Sweep, contrasts: Columns) -> list[list[str]]:
    """Return the table's cells, row by row."""
    found = []
    for number, group in enumerate(sweep.groups):
        counts = [f"{group.interval(name).mean:.0f}".replace("nan", "–") for name in _counted(sweep)]
        held = [
            with_n(as_share(at) if title == "recovery" else as_text(at, signed=True), at, group)
            for title, column in contrasts.items()
            for at in [column[number]]
        ]
        found.append([*cells(group), *counts, *held])
    return found


def as_share(interval: Interval) -> str:
    """Return "71 % [50, 93]"; "undefined" where dense masks were not surely better than the reference."""
    if not interval.n:
        return "–"
    if math.isnan(interval.mean):
        return "undefined"
    return f"{100 * interval.mean:.0f} % [{100 * interval.low:.0f}, {100 * interval.high:.0f}]"


def terminal_table(sweep: Sweep, contrasts: Columns = MappingProxyType({})) -> Table:
    """Return the table for rich."""
    table = Table(title="IoU with gold, mean over seeds ± half of Student's 95 % interval")
    table.add_column("run", overflow="fold")
    for measure in headings(sweep, contrasts):
        table.add_column(measure, justify="right", no_wrap=True)
    for group, (name, *rest) in zip(sweep.groups, rows(sweep, contrasts), strict=True):
        # A difference that is surely above 0 is green, one surely below red.
        interval = group.interval("difference")
        style = "green" if interval.low > 0 else "red" if interval.high < 0 else None
        table.add_row(escape(name), *map(escape, rest), style=style)
    return table


def as_markdown(sweep: Sweep, contrasts: Columns = MappingProxyType({})) -> str:
    """Return the table in Markdown, with lines on what the further columns are and on the runs that are missing."""
    names = headings(sweep, contrasts)
    lines = [f"| run | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    lines += [f"| `{name}` | {' | '.join(rest)} |" for name, *rest in rows(sweep, contrasts)]
    for text in (*explanations(sweep, contrasts, mark="`"), unfinished_text(sweep)):
        lines += ["", text] if text else []
    return "\n".join(lines) + "\n"


def explanations(sweep: Sweep, contrasts: Columns, mark: str = "") -> list[str]:
    """Return a line on each column that holds rows against one another, and which differences stay sure of all."""
    said = {"recovery": "recovery: (policy − reference)/(dense − reference), 95 % interval by Fieller over the seeds."}
    other = "{}: policy IoU minus that row's, seed by seed, ± half of Student's 95 % interval."
    return [*(said.get(title, other.format(title)) for title in contrasts), *sure_of_all(sweep, contrasts, mark)]


def unfinished_text(sweep: Sweep) -> str:
    """Return which runs did not come to their end."""
    names = ", ".join(str(path) for path in sweep.unfinished)
    return f"{len(sweep.unfinished)} unfinished: {names}" if names else ""


def as_csv(sweep: Sweep, contrasts: Columns = MappingProxyType({})) -> str:
    """Return one line a run (its own numbers) after one line a group (mean, low, high, n of each measure)."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    bounds = ("mean", "low", "high", "n")
    measures = [*MEASURES, *_counted(sweep)]
    titles = [*measures, *contrasts]
    writer.writerow(["run", "seed", "folder", *(f"{title} {bound}" for title in titles for bound in bounds)])
    for number, group in enumerate(sweep.groups):
        held = [column[number] for column in contrasts.values()]
        intervals = [*(group.interval(measure) for measure in measures), *held]
        writer.writerow([group.name, "all", "", *(x for i in intervals for x in (i.mean, i.low, i.high, i.n))])
        for run in group.runs:
            numbers = [x for measure in measures for x in (run.values[measure], "", "", "")]
            writer.writerow([group.name, run.seed, run.folder, *numbers, *[""] * (len(bounds) * len(contrasts))])
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


def _counted(sweep: Sweep) -> list[str]:
    """Return the counts that any run has."""
    runs = [run for group in sweep.groups for run in group.runs]
    return [name for name in COUNTED if any(not math.isnan(run.values.get(name, math.nan)) for run in runs)]


def _draw(axes: Axes, sweep: Sweep, measure: str) -> None:
    for row, group in enumerate(sweep.groups):
        values = [run.values[measure] for run in group.runs]
        axes.scatter(values, [row] * len(values), s=14, color=BLUE, alpha=0.5, zorder=2)
        interval = group.interval(measure)
        if not math.isnan(interval.half):
            axes.errorbar(interval.mean, row, xerr=interval.half, color=VERMILION, capsize=4, marker="|", zorder=3)
    axes.set_yticks(range(len(sweep.groups)), [group.name for group in sweep.groups])
    axes.set_ylim(len(sweep.groups) - 0.5, -0.5)

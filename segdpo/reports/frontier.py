"""Reward against KL to the reference: points, table and plot."""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from segdpo.metrics import Interval
from segdpo.reports.curves import COLOURS, GREY
from segdpo.reports.html.files import at, number
from segdpo.reports.sweep import METHODS, NOT_GROUPED, Run, as_text, read_runs, t_interval

# Where the frontier of a summary.json has what.
MEASURES = {
    "reward": ("reward", "mean"),
    "sampled": ("reward_sampled", "mean"),
    "KL": ("kl", "mean"),
    "KL a pixel": ("kl_per_pixel", "mean"),
    "IoU": ("iou", "mean"),
    "seconds": ("seconds",),
    "MiB": ("peak_memory",),
}
REFERENCE = "reference"


@dataclass(frozen=True)
class Point:
    """One seed of a method at one strength; `order` sorts strengths, `start` is the reference's greedy reward."""

    method: str
    strength: str
    order: float
    seed: str
    values: Mapping[str, float]
    start: float


@dataclass(frozen=True)
class Row:
    """A method at one strength, over its seeds."""

    method: str
    strength: str
    points: Sequence[Point]

    @property
    def name(self) -> str:
        """Return method and strength as one."""
        return f"{self.method} {self.strength}".strip()

    def interval(self, measure: str) -> Interval:
        """Return the interval of a measure over the seeds."""
        return t_interval(point.values[measure] for point in self.points)


@dataclass(frozen=True)
class Frontier:
    """All rows, the reference first; `judge` is the one of all runs, `absent` says which runs are not in the rows."""

    judge: str
    rows: Sequence[Row]
    absent: Sequence[str]


def read_frontier(folder: Path) -> Frontier:
    """Return the frontier of the runs under `folder`; refuse runs that were rewarded by different judges."""
    runs, unfinished = read_runs(folder)
    told: list[Run] = []
    bare: list[Run] = []
    for run in runs:
        (told if isinstance(run.summary.get("frontier"), Mapping) else bare).append(run)
    if not told:
        raise ValueError(
            f"Expected runs whose summary.json has a frontier under {folder} but found none among "
            f"{len(runs) + len(unfinished)} runs, {len(unfinished)} of them unfinished; run "
            "`python train.py -m experiment=frontier` first."
        )
    absent = {"unfinished": unfinished, "without a frontier": [run.folder for run in bare]}
    notes = [f"{len(found)} {what}: {', '.join(map(str, found))}" for what, found in absent.items() if found]
    return Frontier(_judge(told), _rows(_points(told)), notes)


def _judge(told: Sequence[Run]) -> str:
    judges = {str(run.summary["frontier"].get("judge", "unknown")): run.folder for run in told}
    if len(judges) > 1:
        said = "; ".join(f"{judge} in {folder}" for judge, folder in sorted(judges.items()))
        raise ValueError(
            f"Expected one judge for all runs, since their rewards cannot be compared otherwise, but got {said}; "
            "gather the runs of one judge, each in a folder of their own."
        )
    return next(iter(judges))


def _points(told: Sequence[Run]) -> list[Point]:
    varied = _varied(told)
    found: dict[tuple[str, str, str], Point] = {}
    for run in told:
        frontier = run.summary["frontier"]
        start = number(at(frontier, REFERENCE, "reward", "mean"))
        for one in frontier.get("points", [frontier]):
            method, strength, order = _label(run, frontier, one, varied)
            own = {"iou": {"mean": run.values["policy"]}, "peak_memory": frontier.get("peak_memory"), **one}
            values = {name: number(at(own, *place)) for name, place in MEASURES.items()}
            found.setdefault((method, strength, run.seed), Point(method, strength, order, run.seed, values, start))
        first = _reference(run.seed, frontier, number(at(run.summary, REFERENCE, "iou", "mean")), start)
        found.setdefault((REFERENCE, "", run.seed), first)
    return list(found.values())


def _reference(seed: str, frontier: Mapping[str, Any], iou: float, start: float) -> Point:
    before = frontier.get(REFERENCE, {})
    known = {**before, "kl": {"mean": 0.0}, "kl_per_pixel": {"mean": 0.0}, "iou": {"mean": iou}}
    values = {name: number(at(known, *place)) for name, place in MEASURES.items()}
    return Point(REFERENCE, "", 0.0, seed, values, start)


def _label(
    run: Run, frontier: Mapping[str, Any], one: Mapping[str, Any], varied: Sequence[str]
) -> tuple[str, str, float]:
    """Return method, strength and where the strength stands among others: what the run says, else what was typed."""
    said = frontier.get("point", {})
    methods = [run.overrides[key] for key in ("task", "algorithm", *METHODS) if key in run.overrides]
    method = str(said.get("method", methods[-1] if methods else "default"))
    if "k" in one:
        return method if said or methods else "best_of", f"K={one['k']}", float(one["k"])
    if said:
        return method, f"{said['knob']}={said['value']:g}", float(said["value"])
    words = [f"{key}={run.overrides[key]}" for key in varied if key in run.overrides]
    return method, " ".join(words), 0.0


def _varied(runs: Sequence[Run]) -> list[str]:
    """Return the options, methods and seeds aside, that are not the same in all runs."""
    apart = {*NOT_GROUPED, *METHODS, "task", "algorithm", "experiment"}
    keys = sorted({key for run in runs for key in run.overrides} - apart)
    return [key for key in keys if len({run.overrides.get(key) for run in runs}) > 1]


def _rows(points: Sequence[Point]) -> list[Row]:
    groups: dict[tuple[str, str], list[Point]] = {}
    for point in points:
        groups.setdefault((point.method, point.strength), []).append(point)
    rows = [Row(*key, sorted(members, key=lambda point: point.seed)) for key, members in groups.items()]
    return sorted(rows, key=lambda row: (row.method != REFERENCE, row.method, row.points[0].order, row.strength))


# They help where there are more methods than colours.
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
PANELS = {"reward": "most probable masks", "sampled": "masks drawn pixel by pixel"}


def frontier_picture(frontier: Frontier, form: str) -> bytes:
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
    for order, method in enumerate(methods):
        rows = [row for row in frontier.rows if row.method == method]
        colour, marker = COLOURS[order % len(COLOURS)], MARKERS[order % len(MARKERS)]
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


# Digits enough to tell neighbours apart, and no more than one can read.
FORMS = {"KL": ".1f", "seconds": ".1f", "MiB": ".0f"}
# Two trainings from the same weights measure them alike, up to the order of sums.
SAME = 1e-6


def frontier_markdown(frontier: Frontier) -> str:
    """Return the table, what its columns are, and what is missing or cannot be compared."""
    lines = [f"| method | {' | '.join(MEASURES)} | n |", "|---" * (len(MEASURES) + 2) + "|"]
    lines += [f"| `{row.name}` | {' | '.join(cells(row))} | {len(row.points)} |" for row in frontier.rows]
    lines += ["", f"Rewards by {frontier.judge}; mean over n seeds ± half of Student's 95 % interval."]
    for note in notes(frontier):
        lines += ["", note]
    return "\n".join(lines) + "\n"


def cells(row: Row) -> list[str]:
    """Return a row's numbers as text."""
    return [in_form(row.interval(measure), measure) for measure in MEASURES]


def in_form(interval: Interval, measure: str) -> str:
    """Return "mean ± half width" with the digits that the measure has; a dash where nothing was measured."""
    if measure not in FORMS or abs(interval.mean) >= 1e6:
        return as_text(interval, signed=False)
    if not interval.n:
        return "–"
    form = FORMS[measure]
    return f"{interval.mean:{form}}" + ("" if math.isnan(interval.half) else f" ± {interval.half:{form}}")


def frontier_csv(frontier: Frontier) -> str:
    """Return one line a row (mean, low, high, n of each measure) and after it one line a seed."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    bounds = ("mean", "low", "high", "n")
    writer.writerow(["method", "strength", "seed", *(f"{name} {bound}" for name in MEASURES for bound in bounds)])
    for row in frontier.rows:
        intervals = [row.interval(measure) for measure in MEASURES]
        writer.writerow(
            [row.method, row.strength, "all", *(x for i in intervals for x in (i.mean, i.low, i.high, i.n))]
        )
        for point in row.points:
            numbers = [x for measure in MEASURES for x in (point.values[measure], "", "", "")]
            writer.writerow([row.method, row.strength, point.seed, *numbers])
    return out.getvalue()


def notes(frontier: Frontier) -> list[str]:
    """Return what a reader has to know: runs and seeds that are missing, numbers that are none, other references."""
    rows = frontier.rows
    return [*frontier.absent, *_missing(rows), *_starts(rows), *_unmeasured(rows)]


def _missing(rows: Sequence[Row]) -> list[str]:
    """Return a line for each row that lacks seeds which another has."""
    every = {point.seed for row in rows for point in row.points}
    lacking = [(row.name, sorted(every - {point.seed for point in row.points})) for row in rows]
    return [f"{name}: no seed {', '.join(seeds)}" for name, seeds in lacking if seeds]


def _starts(rows: Sequence[Row]) -> list[str]:
    """Return a line for each seed whose runs do not start from one reference."""
    starts: dict[str, list[float]] = {}
    for point in (point for row in rows for point in row.points if not math.isnan(point.start)):
        starts.setdefault(point.seed, []).append(point.start)
    apart = sorted(seed for seed, found in starts.items() if max(found) - min(found) > SAME)
    return [f"seed {seed}: its runs start from different references and cannot be compared" for seed in apart]


def _unmeasured(rows: Sequence[Row]) -> list[str]:
    """Return a line for each row with a reward or KL that is no number."""
    found = []
    for row in rows:
        lost = [p.seed for p in row.points if any(math.isnan(p.values[name]) for name in ("reward", "sampled", "KL"))]
        found += [f"{row.name}: reward or KL is no number for seed {', '.join(lost)}"] if lost else []
    return found

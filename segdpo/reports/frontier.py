"""The frontier of a sweep: reward against KL to the reference, a row for each method and strength, over seeds."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes

from segdpo.metrics import Interval
from segdpo.reports.plots import COLOURS, GREY, new_figure, to_bytes
from segdpo.reports.run_files import at, number
from segdpo.reports.runs import METHODS, NOT_GROUPED, Run, read_runs, student_interval, varied_options
from segdpo.reports.text import intervals_csv, markdown_table, plus_minus

# Where the "frontier" of a summary.json has each measure.
MEASURES = {
    "reward": ("reward", "mean"),
    "sampled": ("reward_sampled", "mean"),
    "KL": ("kl", "mean"),
    "KL a pixel": ("kl_per_pixel", "mean"),
    "IoU": ("iou", "mean"),
    "seconds": ("seconds",),
    "MiB": ("peak_memory",),
}
DIGITS = {"KL": 1, "seconds": 1, "MiB": 0}
REFERENCE = "reference"
PANELS = {"reward": "most probable masks", "sampled": "masks drawn pixel by pixel"}
# They tell methods apart where there are more of them than colours.
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
# Measuring the same weights twice gives rewards that differ by less than this.
SAME_REWARD = 1e-6


@dataclass(frozen=True)
class Point:
    """A method at one strength with one seed.

    `order` sorts strengths; `reference_reward` is the reward of the reference's most probable masks.
    """

    method: str
    strength: str
    order: float
    seed: str
    values: Mapping[str, float]
    reference_reward: float


@dataclass(frozen=True)
class Row:
    """A method at one strength, over its seeds."""

    method: str
    strength: str
    points: Sequence[Point]

    @property
    def name(self) -> str:
        """Method and strength."""
        return f"{self.method} {self.strength}".strip()

    def interval(self, measure: str) -> Interval:
        """Return the interval of a measure over the seeds."""
        return student_interval(point.values[measure] for point in self.points)

    def drawable(self, measure: str) -> list[tuple[float, float]]:
        """Return KL and `measure` of each seed that a logarithmic axis can show."""
        found = [(point.values["KL"], point.values[measure]) for point in self.points]
        return [(kl, value) for kl, value in found if kl > 0 and math.isfinite(kl) and math.isfinite(value)]


@dataclass(frozen=True)
class Frontier:
    """All rows, the reference first; `judge` gave all rewards; `left_out` names the runs that are in no row."""

    judge: str
    rows: Sequence[Row]
    left_out: Sequence[str]

    def markdown(self) -> str:
        """Return the table in Markdown, with notes below it."""
        cells = [
            [
                row.name,
                *(plus_minus(row.interval(name), DIGITS.get(name, 3)) for name in MEASURES),
                str(len(row.points)),
            ]
            for row in self.rows
        ]
        lines = markdown_table(["method", *MEASURES, "n"], cells)
        lines += ["", f"Rewards by {self.judge}; mean over n seeds ± half of Student's 95 % interval."]
        for note in self.notes():
            lines += ["", note]
        return "\n".join(lines) + "\n"

    def csv(self) -> str:
        """Return a line for each row (mean, low, high, n of each measure), each followed by a line for each seed."""
        lines: list[tuple[Sequence[object], Sequence[Interval | float]]] = []
        for row in self.rows:
            lines.append(([row.method, row.strength, "all"], [row.interval(measure) for measure in MEASURES]))
            for point in row.points:
                lines.append(([row.method, row.strength, point.seed], [point.values[measure] for measure in MEASURES]))
        return intervals_csv(["method", "strength", "seed"], [*MEASURES], lines)

    def picture(self, form: str) -> bytes:
        """Return the picture as "svg" or "png"; the same runs give the same bytes."""
        with mpl.rc_context({"svg.hashsalt": "segdpo", "axes.spines.top": False, "axes.spines.right": False}):
            figure = new_figure(10, 4.6)
            for axes, (measure, title) in zip(
                figure.subplots(1, len(PANELS), sharey=True), PANELS.items(), strict=True
            ):
                _draw(axes, self.rows, measure)
                axes.set_title(title)
                axes.set_xlabel("KL(policy ‖ reference), nats an image")
            figure.axes[0].set_ylabel(f"reward, {self.judge}", wrap=True)
            handles, names = figure.axes[0].get_legend_handles_labels()
            if handles:
                figure.legend(handles, names, loc="outside right center", frameon=False)
            return to_bytes(figure, form)

    def notes(self) -> list[str]:
        """Return which runs, seeds and numbers are missing, and which runs have different references."""
        return [*self.left_out, *_missing_seeds(self.rows), *_references(self.rows), *_unmeasured(self.rows)]


def read_frontier(folder: Path) -> Frontier:
    """Return the frontier of the runs under `folder`.

    Raises:
        ValueError: no run has a frontier, one cannot be read, or their rewards come from different judges.
    """
    runs, unfinished = read_runs(folder)
    measured = [run for run in runs if _has_frontier(run)]
    if not measured:
        raise ValueError(
            f"Expected runs whose summary.json has a frontier under {folder} but found none among "
            f"{len(runs) + len(unfinished)} runs, {len(unfinished)} of them unfinished; run "
            "`segdpo train -m experiment=frontier` first."
        )
    left_out = {
        "unfinished": unfinished,
        "without a frontier": [run.folder for run in runs if not _has_frontier(run)],
    }
    notes = [f"{len(found)} {what}: {', '.join(map(str, found))}" for what, found in left_out.items() if found]
    return Frontier(_judge(measured), _rows(_points(measured)), notes)


def _has_frontier(run: Run) -> bool:
    return isinstance(run.summary.get("frontier"), Mapping)


def _judge(runs: Sequence[Run]) -> str:
    judges = {str(run.summary["frontier"].get("judge", "unknown")): run.folder for run in runs}
    if len(judges) > 1:
        found = "; ".join(f"{judge} in {folder}" for judge, folder in sorted(judges.items()))
        raise ValueError(
            f"Expected one judge for all runs, since rewards of different judges cannot be compared, but got {found}; "
            "collect the runs of each judge in a folder of their own."
        )
    return next(iter(judges))


def _points(runs: Sequence[Run]) -> list[Point]:
    varied = varied_options(runs, {*NOT_GROUPED, *METHODS, "task", "algorithm", "experiment"})
    found: dict[tuple[str, str, str], Point] = {}
    for run in runs:
        frontier = run.summary["frontier"]
        before = number(at(frontier, REFERENCE, "reward", "mean"))
        # A run of best-of-K has a point for each K.
        for one in frontier.get("points", [frontier]):
            method, strength, order = _label(run, frontier, one, varied)
            own = {"iou": {"mean": run.values["policy"]}, "peak_memory": frontier.get("peak_memory"), **one}
            point = Point(method, strength, order, run.seed, _values(own), before)
            found.setdefault((method, strength, run.seed), point)
        found.setdefault((REFERENCE, "", run.seed), _reference(run, frontier, before))
    return list(found.values())


def _values(tree: Mapping[str, Any]) -> dict[str, float]:
    return {name: number(at(tree, *place)) for name, place in MEASURES.items()}


def _reference(run: Run, frontier: Mapping[str, Any], reward: float) -> Point:
    iou = number(at(run.summary, REFERENCE, "iou", "mean"))
    measured = {"kl": {"mean": 0.0}, "kl_per_pixel": {"mean": 0.0}, "iou": {"mean": iou}}
    return Point(REFERENCE, "", 0.0, run.seed, _values({**frontier.get(REFERENCE, {}), **measured}), reward)


def _label(
    run: Run, frontier: Mapping[str, Any], one: Mapping[str, Any], varied: Sequence[str]
) -> tuple[str, str, float]:
    """Return method, strength and a number that sorts strengths: as the run names them, else from its options."""
    named = frontier.get("point", {})
    methods = [run.options[key] for key in ("task", "algorithm", *METHODS) if key in run.options]
    method = str(named.get("method", methods[-1] if methods else "default"))
    if "k" in one:
        return method if named or methods else "best_of", f"K={one['k']}", float(one["k"])
    if named:
        return method, f"{named['knob']}={named['value']:g}", float(named["value"])
    words = [f"{key}={run.options[key]}" for key in varied if key in run.options]
    return method, " ".join(words), 0.0


def _rows(points: Sequence[Point]) -> list[Row]:
    groups: dict[tuple[str, str], list[Point]] = {}
    for point in points:
        groups.setdefault((point.method, point.strength), []).append(point)
    rows = [Row(*key, sorted(members, key=lambda point: point.seed)) for key, members in groups.items()]
    return sorted(rows, key=lambda row: (row.method != REFERENCE, row.method, row.points[0].order, row.strength))


def _draw(axes: Axes, rows: Sequence[Row], measure: str) -> None:
    # Best-of-K moves a few nats away from the reference, training hundreds to thousands.
    axes.set_xscale("log")
    methods = list(dict.fromkeys(row.method for row in rows if row.method != REFERENCE))
    for order, method in enumerate(methods):
        own = [row for row in rows if row.method == method]
        colour, marker = COLOURS[order % len(COLOURS)], MARKERS[order % len(MARKERS)]
        seeds = [place for row in own for place in row.drawable(measure)]
        axes.scatter(*_columns(seeds), s=12, color=colour, marker=marker, alpha=0.35, linewidths=0)
        means = [(row.interval("KL").mean, row.interval(measure).mean) for row in own if row.drawable(measure)]
        axes.plot(*_columns(means), color=colour, marker=marker, markersize=5, label=method)
    for row in rows:
        if row.method == REFERENCE and not math.isnan(mean := row.interval(measure).mean):
            axes.axhline(mean, color=GREY, linestyle="--", linewidth=0.9, label=REFERENCE)


def _columns(places: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [kl for kl, _ in places], [value for _, value in places]


def _missing_seeds(rows: Sequence[Row]) -> list[str]:
    """Return a line for each row that lacks seeds of another row."""
    every = {point.seed for row in rows for point in row.points}
    lacking = [(row.name, sorted(every - {point.seed for point in row.points})) for row in rows]
    return [f"{name}: no seed {', '.join(seeds)}" for name, seeds in lacking if seeds]


def _references(rows: Sequence[Row]) -> list[str]:
    """Return a line for each seed whose runs have different references."""
    rewards: dict[str, list[float]] = {}
    for point in (point for row in rows for point in row.points if not math.isnan(point.reference_reward)):
        rewards.setdefault(point.seed, []).append(point.reference_reward)
    different = sorted(seed for seed, found in rewards.items() if max(found) - min(found) > SAME_REWARD)
    return [f"seed {seed}: its runs start from different references and cannot be compared" for seed in different]


def _unmeasured(rows: Sequence[Row]) -> list[str]:
    """Return a line for each row with a reward or KL that is not a number."""
    found = []
    for row in rows:
        lost = [p.seed for p in row.points if any(math.isnan(p.values[name]) for name in ("reward", "sampled", "KL"))]
        found += [f"{row.name}: reward or KL is not a number for seed {', '.join(lost)}"] if lost else []
    return found

"""The frontier, gathered from runs: reward against KL to the reference, method by method, strength by strength."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segdpo.metrics.statistics import Interval
from segdpo.reports.html_tolerant import at, number
from segdpo.reports.sweep import METHODS, NOT_GROUPED, Run, read_runs, t_interval

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

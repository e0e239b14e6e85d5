"""Finished runs, read from their folders, and groups of runs that differ in their seeds alone."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from segdpo.metrics import Interval, student
from segdpo.renamed import current_name, current_word
from segdpo.reports.run_files import at, read_yaml

# Where a summary.json has each measure.
MEASURES = {
    "reference": ("reference", "iou", "mean"),
    "policy": ("policy", "iou", "mean"),
    "difference": ("difference", "iou", "mean"),
    "chosen gain": ("pairs", "chosen_gain"),
    "win rate": ("difference", "win_rate", "rate"),
}
# Differences, shown with their sign and drawn with a line at 0.
SIGNED = ("difference", "chosen gain")
# Of runs under the safety rule: the difference of the network that was kept, 0 if that is the reference.
RETURNED = "returned"
# Shown as a mean without an interval.
COUNTS = {"judgements": ("pairs", "judgements")}
# Options whose value alone names a row: `dpo` rather than `loss=dpo`.
METHODS = ("loss", "experiment/variant")
# Options that do not make an experiment another one.
NOT_GROUPED = ("seed", "threads", "jobs", "resume", "cache")


@dataclass(frozen=True)
class Run:
    """A finished run: its options and seed, what it measured (NaN where it did not), and its summary.json."""

    folder: Path
    options: Mapping[str, str]
    seed: str
    values: Mapping[str, float]
    summary: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Group:
    """Runs that differ in their seeds alone; `options` are those in which the group differs from other groups."""

    name: str
    runs: Sequence[Run]
    options: Mapping[str, str | None] = field(default_factory=dict)

    def interval(self, measure: str) -> Interval:
        """Return the interval of a measure over the runs."""
        return student_interval(run.values[measure] for run in self.runs)

    def by_seed(self, measure: str) -> dict[str, float]:
        """Return the mean of a measure for each seed; a seed without a finite value is left out."""
        found: dict[str, list[float]] = {}
        for run in self.runs:
            if math.isfinite(run.values[measure]):
                found.setdefault(run.seed, []).append(run.values[measure])
        return {seed: fmean(values) for seed, values in found.items()}

    def covers_part(self, interval: Interval) -> bool:
        """Return whether an interval is over only some of the runs, so that its n has to be shown."""
        return 0 < interval.n != len(self.runs)


def read_runs(folder: Path) -> tuple[list[Run], list[Path]]:
    """Return the finished runs under `folder`, and the folders of the unfinished ones."""
    runs, unfinished = [], []
    for place in sorted({path.parent.parent for path in folder.rglob(".hydra/overrides.yaml")}):
        if (place / "summary.json").exists():
            runs.append(read_run(place))
        else:
            unfinished.append(place)
    return runs, unfinished


def read_run(folder: Path) -> Run:
    """Return the run in a folder.

    Raises:
        ValueError: a file cannot be read, or a measure is no number.
    """
    path = folder / "summary.json"
    try:
        summary = json.loads(path.read_text())
        if not isinstance(summary, Mapping):
            raise ValueError(f"Expected a mapping but got a {type(summary).__name__}")
        return run_of(folder, summary, read_yaml((folder / ".hydra/overrides.yaml").read_text()))
    except (ValueError, OSError) as error:
        raise ValueError(f"{path}: cannot be read ({error}); start that run again, or remove its folder.") from error


def run_of(folder: Path, summary: Mapping[str, Any], overrides: object) -> Run:
    """Return a run from the content of its files; the overrides that the summary names come first.

    Raises:
        ValueError: a measure is no number, or there is no list of overrides.
    """
    words = summary.get("overrides") or overrides
    if not isinstance(words, Sequence) or isinstance(words, str):
        raise ValueError(f"Expected a list of overrides but got {words!r}")
    options = dict(option_of(str(word)) for word in words)
    values = {name: _value(summary, place) for name, place in (MEASURES | COUNTS).items()}
    values[RETURNED] = _returned(summary, values["difference"])
    return Run(folder, options, str(summary.get("seed", options.get("seed", "?"))), values, summary)


def option_of(override: str) -> tuple[str, str]:
    """Return an override as key and value, under today's names, so that old and new runs of one experiment are one row.

    >>> option_of("+pairs.temperature=2"), option_of("start=cheap_masks")
    (('candidates.temperature', '2'), ('reference_training', 'noisy_masks'))
    """
    key, _, value = (current_word(override) or override).lstrip("+").partition("=")
    return current_name(key), value


def group_runs(runs: Sequence[Run], ignore: Iterable[str] = ()) -> list[Group]:
    """Return groups of runs with the same options, the best policy first and those without a number last.

    Seeds, threads, jobs and `ignore` make no group. The name of a group leaves out what all groups share; an option
    that a run does not set is shown as a dash.
    """
    ignored = {*NOT_GROUPED, *(option_of(key)[0] for key in ignore)}
    keys = varied_options(runs, ignored)
    groups: dict[tuple[str | None, ...], list[Run]] = {}
    for run in runs:
        groups.setdefault(tuple(run.options.get(key) for key in keys), []).append(run)
    found = [Group(_name(keys, values), each, dict(zip(keys, values, strict=True))) for values, each in groups.items()]
    return sorted(found, key=_best_first)


def varied_options(runs: Sequence[Run], ignored: Iterable[str]) -> list[str]:
    """Return the options that are not the same in all runs, methods first."""
    keys = sorted({key for run in runs for key in run.options} - {*ignored}, key=lambda key: (key not in METHODS, key))
    return [key for key in keys if len({run.options.get(key) for run in runs}) > 1]


def student_interval(values: Iterable[float]) -> Interval:
    """Return the mean and Student's 95 % interval; NaN and infinite values do not count.

    >>> round(student_interval([0.0, 2.0]).half, 4)
    12.7062
    """
    kept = [value for value in values if math.isfinite(value)]
    if not kept:
        return Interval(math.nan, math.nan, math.nan, 0)
    mean = fmean(kept)
    half = student(len(kept) - 1) * stdev(kept) / math.sqrt(len(kept)) if len(kept) > 1 else math.nan
    return Interval(mean, mean - half, mean + half, len(kept))


def _value(summary: Mapping[str, Any], place: Sequence[str]) -> float:
    found = at(summary, *place)
    if found is None:
        return math.nan
    try:
        return float(found)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"Expected a number at {'.'.join(place)} but got {found!r}") from None


def _returned(summary: Mapping[str, Any], difference: float) -> float:
    if at(summary, "kept", "rule") != "safe":
        return math.nan
    return difference if at(summary, "kept", "network") == "policy" else 0.0


def _name(keys: Sequence[str], values: Sequence[str | None]) -> str:
    words = [
        (value or "–") if key in METHODS else f"{key}={value or '–'}" for key, value in zip(keys, values, strict=True)
    ]
    return " ".join(words) or "all runs"


def _best_first(group: Group) -> float:
    mean = group.interval("policy").mean
    return math.inf if math.isnan(mean) else -mean

"""The runs of a sweep, gathered over their seeds: means with Student's 95 % intervals."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, cast

from omegaconf import OmegaConf

from segdpo.metrics.statistics import Interval, student
from segdpo.reports.html_tolerant import at

# Where a summary.json has what; "gain" falls below 0 when the policy loses the chosen masks.
MEASURES = {
    "reference": ("reference", "iou", "mean"),
    "policy": ("policy", "iou", "mean"),
    "difference": ("difference", "iou", "mean"),
    "chosen gain": ("pairs", "chosen_gain"),
    "win rate": ("difference", "win_rate", "rate"),
}
# What has no interval worth a place in the table.
COUNTED = {"judgements": ("pairs", "judgements")}
# Choices that say what was done, not only with which value: they speak for themselves in a row's name.
METHODS = ("loss", "cell")
# What does not make an experiment another one.
NOT_GROUPED = ("seed", "threads", "jobs", "ckpt_path", "cache")


@dataclass(frozen=True)
class Run:
    """A run that came to its end: what was chosen, the seed, what it measured (NaN where it did not), its summary."""

    folder: Path
    overrides: Mapping[str, str]
    seed: str
    values: Mapping[str, float]
    summary: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Group:
    """Runs that differ in their seeds alone, named by `choices`: what sets them apart from the other groups."""

    name: str
    runs: Sequence[Run]
    choices: Mapping[str, str | None] = field(default_factory=dict)

    def interval(self, measure: str) -> Interval:
        """Return the interval of a measure over the runs."""
        return t_interval(run.values[measure] for run in self.runs)

    def in_part(self, interval: Interval) -> bool:
        """Say whether an interval is over some of the runs alone, so that its n has to be said."""
        return 0 < interval.n != len(self.runs)


@dataclass(frozen=True)
class Sweep:
    """All groups, the best policy first, and the folders of runs that did not come to their end."""

    groups: Sequence[Group]
    unfinished: Sequence[Path]


def read_sweep(folder: Path, ignore: Iterable[str] = ()) -> Sweep:
    """Return the sweep under `folder`; `ignore` names further keys that do not make an experiment another one."""
    runs, unfinished = read_runs(folder)
    if not runs:
        hint = f"{len(unfinished)} runs there did not come to their end" if unfinished else "run train.py -m first"
        raise ValueError(f"Expected runs with a summary.json under {folder} but found none; {hint}.")
    groups = group_runs(runs, (*NOT_GROUPED, *ignore))
    return Sweep(sorted(groups, key=best_first), unfinished)


def read_runs(folder: Path) -> tuple[list[Run], list[Path]]:
    """Return the runs under `folder` that came to their end, and the folders of those that did not."""
    runs, unfinished = [], []
    for place in sorted({path.parent.parent for path in folder.rglob(".hydra/overrides.yaml")}):
        if (place / "summary.json").exists():
            runs.append(read_run(place))
        else:
            unfinished.append(place)
    return runs, unfinished


def read_run(folder: Path) -> Run:
    """Return what a run's folder says."""
    path = folder / "summary.json"
    try:
        summary = json.loads(path.read_text())
        words = summary.get("overrides") or _words(folder / ".hydra/overrides.yaml")
    except (ValueError, OSError) as error:
        raise ValueError(f"{path}: cannot be read ({error}); run that run again, or remove its folder.") from error
    overrides = dict(word.lstrip("+").partition("=")[::2] for word in words)
    values = {name: _value(summary, place) for name, place in (MEASURES | COUNTED).items()}
    return Run(folder, overrides, str(summary.get("seed", overrides.get("seed", "?"))), values, summary)


def group_runs(runs: Sequence[Run], ignore: Iterable[str] = NOT_GROUPED) -> list[Group]:
    """Return groups of runs with the same overrides, `ignore` aside; what all groups share is left out of their names.

    A key that some runs do not set is at its default there, and shows as a dash.
    """
    ignored = set(ignore)
    keys = sorted({key for run in runs for key in run.overrides} - ignored, key=lambda key: (key not in METHODS, key))
    keys = [key for key in keys if len({run.overrides.get(key) for run in runs}) > 1]
    groups: dict[tuple[str | None, ...], list[Run]] = {}
    for run in runs:
        groups.setdefault(tuple(run.overrides.get(key) for key in keys), []).append(run)
    return [
        Group(_name(keys, values), members, dict(zip(keys, values, strict=True))) for values, members in groups.items()
    ]


def best_first(group: Group) -> float:
    """Return what sorts groups, the best policy first and those without a number last."""
    mean = group.interval("policy").mean
    return math.inf if math.isnan(mean) else -mean


def t_interval(values: Iterable[float]) -> Interval:
    """Return the mean and Student's 95 % interval; NaN and infinite values do not count.

    >>> round(t_interval([0.0, 2.0]).half, 4)
    12.7062
    """
    kept = [value for value in values if math.isfinite(value)]
    if not kept:
        return Interval(math.nan, math.nan, math.nan, 0)
    mean = fmean(kept)
    half = student(len(kept) - 1) * stdev(kept) / math.sqrt(len(kept)) if len(kept) > 1 else math.nan
    return Interval(mean, mean - half, mean + half, len(kept))


def _name(keys: Sequence[str], values: Sequence[str | None]) -> str:
    words = [
        (value or "–") if key in METHODS else f"{key}={value or '–'}" for key, value in zip(keys, values, strict=True)
    ]
    return " ".join(words) or "all runs"


def _words(path: Path) -> list[str]:
    return cast(list[str], OmegaConf.to_container(OmegaConf.load(path)))


def _value(summary: Mapping[str, Any], place: Sequence[str]) -> float:
    found = at(summary, *place)
    return math.nan if found is None else float(found)

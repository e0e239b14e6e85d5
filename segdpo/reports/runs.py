"""Finished runs, read from their folders, and groups of runs that differ in their seeds alone."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np

from segdpo.files import MAX_TEXT_BYTES, parse_json, read_file
from segdpo.metrics import Interval, folds_of, pooled_difference, pooled_win_rate, student
from segdpo.renamed import current_name, current_word
from segdpo.reports.run_files import ImageValues, at, read_images, read_yaml

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
# A share: its interval stays in [0, 1].
WIN_RATE = "win rate"
# The fold that a run was tested on, where its images are not known.
FOLD = "datamodule.split.fold"
# Options that do not make an experiment another one.
NOT_GROUPED = ("seed", "threads", "jobs", "resume", "cache", FOLD)
UNKNOWN = Interval(math.nan, math.nan, math.nan, 0)


@dataclass(frozen=True)
class Run:
    """A finished run: its options and seed, what it measured (NaN where it did not), and its summary.json.

    `changes` is policy − reference of each test image by its id, in IoU; empty where evaluation/ is missing.
    """

    folder: Path
    options: Mapping[str, str]
    seed: str
    values: Mapping[str, float]
    summary: Mapping[str, Any] = field(default_factory=dict)
    changes: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Group:
    """Runs that differ in their seeds alone; `options` are those in which the group differs from other groups."""

    name: str
    runs: Sequence[Run]
    options: Mapping[str, str | None] = field(default_factory=dict)

    def interval(self, measure: str) -> Interval:
        """Return the interval of a measure over the runs; over the folds, if several seeds were tested on some fold.

        Seeds of one fold share its images, so that they are one number, their mean.
        """
        found = student_interval(per_fold(self._folds(), [run.values[measure] for run in self.runs]))
        return self._win_rate(found) if measure == WIN_RATE else found

    def over_images(self) -> Interval:
        """Return the mean difference over all test images, with folds as clusters; unknown without images."""
        return pooled_difference(*self._changes()) if all(run.changes for run in self.runs) else UNKNOWN

    def by_run(self, measure: str) -> dict[str, float]:
        """Return the mean of a measure by seed, or by seed and fold; what has no finite value is left out."""
        found: dict[str, list[float]] = {}
        for run, key in zip(self.runs, self._keys(), strict=True):
            if math.isfinite(run.values[measure]):
                found.setdefault(key, []).append(run.values[measure])
        return {key: fmean(values) for key, values in found.items()}

    def per_fold(self, values: Mapping[str, float]) -> list[float]:
        """Return values by seed (and fold), as one number a fold if several seeds were tested on some fold."""
        folds = dict(zip(self._keys(), self._folds(), strict=True))
        return per_fold([folds[key] for key in values], list(values.values()))

    def _keys(self) -> list[str]:
        seeds = [run.seed for run in self.runs]
        if len(set(seeds)) == len(seeds):
            return seeds
        return [f"{seed} {fold}".strip() for seed, fold in zip(seeds, self._folds(), strict=True)]

    def _folds(self) -> list[str]:
        """Return a name for the fold of each run, the same in all groups: an image of it, else the option."""
        if not all(run.changes for run in self.runs):
            return [run.options.get(FOLD, "") for run in self.runs]
        numbers = folds_of([list(run.changes) for run in self.runs])
        first: dict[int, str] = {}
        for number, run in zip(numbers, self.runs, strict=True):
            first[number] = min(first.get(number, min(run.changes)), min(run.changes))
        return [first[number] for number in numbers]

    def _changes(self) -> tuple[list[list[float]], list[list[str]]]:
        return [list(run.changes.values()) for run in self.runs], [list(run.changes) for run in self.runs]

    def _win_rate(self, over_runs: Interval) -> Interval:
        if all(run.changes for run in self.runs):
            found = pooled_win_rate(*self._changes())
            return Interval(found.mean, found.low, found.high, over_runs.n)
        low, high = np.clip([over_runs.low, over_runs.high], 0.0, 1.0).tolist()  # NaN stays
        return replace(over_runs, low=low, high=high)

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
        summary = parse_json(read_file(path), str(path))
        if not isinstance(summary, Mapping):
            raise ValueError(f"Expected a mapping but got a {type(summary).__name__}")
        overrides = read_yaml(read_file(folder / ".hydra/overrides.yaml", MAX_TEXT_BYTES).decode())
        return run_of(folder, summary, overrides, read_images(folder / "evaluation" / "images.csv"))
    except (ValueError, OSError) as error:
        raise ValueError(f"{path}: cannot be read ({error}); start that run again, or remove its folder.") from error


def run_of(folder: Path, summary: Mapping[str, Any], overrides: object, images: Sequence[ImageValues] = ()) -> Run:
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
    seed = str(summary.get("seed", options.get("seed", "?")))
    return Run(folder, options, seed, values, summary, _changes_of(images))


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


def per_fold(folds: Sequence[str], values: Sequence[float]) -> list[float]:
    """Return the finite values; their means by fold, if there are several folds and some fold has several values.

    >>> per_fold(["a", "a", "b"], [1.0, 3.0, 5.0]), per_fold(["a", "a"], [1.0, 3.0])
    ([2.0, 5.0], [1.0, 3.0])
    """
    finite = [(fold, value) for fold, value in zip(folds, values, strict=True) if math.isfinite(value)]
    found: dict[str, list[float]] = {}
    for fold, value in finite:
        found.setdefault(fold, []).append(value)
    return [value for _, value in finite] if len(found) < 2 else [fmean(group) for group in found.values()]


def _changes_of(images: Sequence[ImageValues]) -> dict[str, float]:
    """Return the change of each image by a unique id: images of the same id are in the same order in each run."""
    seen: Counter[str] = Counter()
    changes = {}
    for image in images:
        seen[image.id] += 1
        changes[image.id if seen[image.id] == 1 else f"{image.id}\0{seen[image.id]}"] = image.change()
    return changes if any(not math.isnan(change) for change in changes.values()) else {}


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

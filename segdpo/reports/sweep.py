"""A sweep as one table, with intervals over seeds and paired differences."""

import csv
import io
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, stdev, variance
from types import MappingProxyType
from typing import Any, cast

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from omegaconf import OmegaConf
from rich.markup import escape
from rich.table import Table

from segdpo.metrics import LEVEL, Interval, holm, student, student_p
from segdpo.reports.curves import BLUE, GREY, VERMILION
from segdpo.reports.html.files import at

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
METHODS = ("loss", "experiment/variant")
# What does not make an experiment another one.
NOT_GROUPED = ("seed", "threads", "jobs", "resume", "cache")


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


NOTHING = Interval(math.nan, math.nan, math.nan, 0)
Contrast = Callable[[Group, Group], Interval]
MINUS = "− "


def contrasts(sweep: Sweep, dense: str | None, against: str | None) -> dict[str, list[Interval]]:
    """Return a column for each of the two that is named, with an interval for each group of the sweep."""
    wanted: list[tuple[str, str | None, Contrast]] = [
        ("recovery", dense, recovery),
        (f"{MINUS}{against}", against, paired_difference),
    ]
    return {title: _column(sweep, cell, contrast) for title, cell, contrast in wanted if cell is not None}


def paired_difference(group: Group, other: Group) -> Interval:
    """Return policy IoU minus the other's over the seeds that both have, with Student's interval."""
    ours, theirs = by_seed(group, "policy"), by_seed(other, "policy")
    return t_interval(ours[seed] - theirs[seed] for seed in ours if seed in theirs)


def recovery(group: Group, dense: Group) -> Interval:
    """Return (policy − reference)/(dense − reference), a ratio of means over the seeds that both have.

    The interval is Fieller's: all ratios θ for which the mean of (policy − reference) − θ·(dense − reference) is not
    surely other than 0. It is exact for normal differences, also for five seeds, where a bootstrap is too narrow. There
    is none, and the ratio is NaN, where dense − reference is not surely above 0 itself.
    """
    gains, most = by_seed(group, "difference"), by_seed(dense, "difference")
    seeds = [seed for seed in gains if seed in most]
    return fieller([gains[seed] for seed in seeds], [most[seed] for seed in seeds])


def fieller(above: Sequence[float], below: Sequence[float]) -> Interval:
    """Return mean(above)/mean(below) of pairs with Fieller's 95 % interval; NaN where the interval has no bounds.

    >>> fieller([1.0, 2.0, 3.0], [2.0, 4.0, 6.0])
    Interval(mean=nan, low=nan, high=nan, n=3)
    >>> fieller([2.0, 2.1, 2.2], [4.0, 4.2, 4.4]).mean
    0.5
    """
    n = len(above)
    if n < 2:
        return Interval(math.nan, math.nan, math.nan, n)
    mean_above, mean_below = fmean(above), fmean(below)
    both = sum((a - mean_above) * (b - mean_below) for a, b in zip(above, below, strict=True)) / (n - 1)
    scale = student(n - 1) ** 2 / n
    # (ā − θb̄)² ≤ t²/n · (s_aa − 2θ s_ab + θ² s_bb), a quadratic in θ: pθ² − 2qθ + r ≤ 0.
    p = mean_below**2 - scale * variance(below)
    q = mean_above * mean_below - scale * both
    r = mean_above**2 - scale * variance(above)
    if p <= 0 or mean_below <= 0:
        return Interval(math.nan, math.nan, math.nan, n)
    # The ratio of the means itself meets the condition, so there is a root; rounding may say otherwise.
    half = math.sqrt(max(0.0, q**2 - p * r)) / p
    return Interval(mean_above / mean_below, q / p - half, q / p + half, n)


def sure_of_all(sweep: Sweep, held: Mapping[str, Sequence[Interval]], mark: str = "") -> list[str]:
    """Return, for each column of differences, the rows whose difference stays sure after Holm's correction.

    A table of twenty rows that change nothing has one that looks sure. `mark` is put on both sides of a row's name.
    """
    lines = []
    for title, column in held.items():
        cell = title.removeprefix(MINUS)
        if cell == title:
            continue
        others = [k for k, group in enumerate(sweep.groups) if partner(sweep, group, cell) is not group]
        corrected = dict(zip(others, holm([student_p(column[k]) for k in others]), strict=True))
        said = {k: f"{mark}{sweep.groups[k].name}{mark} ({_p(p)})" for k, p in corrected.items() if p < 1 - LEVEL}
        above = ", ".join(text for k, text in said.items() if column[k].mean > 0)
        below = ", ".join(text for k, text in said.items() if column[k].mean < 0)
        count = sum(not math.isnan(p) for p in corrected.values())
        sure = f"above 0: {above or 'none'}; below 0: {below or 'none'}"
        lines.append(f"{title}, corrected for {count} rows (Holm): {sure}.")
    return lines


def by_seed(group: Group, measure: str) -> dict[str, float]:
    """Return the mean of a measure for each seed; a seed that did not measure it is left out."""
    found: dict[str, list[float]] = {}
    for run in group.runs:
        if math.isfinite(run.values[measure]):
            found.setdefault(run.seed, []).append(run.values[measure])
    return {seed: fmean(values) for seed, values in found.items()}


def partner(sweep: Sweep, group: Group, cell: str) -> Group | None:
    """Return the group that chose `cell` and is like this one in all else; the only one that chose it serves all."""
    named = [other for other in sweep.groups if cell in other.choices.values() or other.name == cell]
    if not named:
        names = ", ".join(other.name for other in sweep.groups)
        raise ValueError(f"Expected a row of the sweep called {cell!r} but there are {names}.")
    if len(named) == 1:
        return named[0]
    alike = [other for other in named if _rest(other.choices, other, cell) == _rest(group.choices, other, cell)]
    return alike[0] if len(alike) == 1 else None


def _rest(choices: Mapping[str, str | None], named: Group, cell: str) -> dict[str, str | None]:
    """Return the choices but those by which the named group is called after `cell`."""
    return {key: value for key, value in choices.items() if named.choices.get(key) != cell}


def _p(value: float) -> str:
    return "p < 0.001" if value < 0.001 else f"p {value:.3f}"


def _column(sweep: Sweep, cell: str, contrast: Contrast) -> list[Interval]:
    partners = [partner(sweep, group, cell) for group in sweep.groups]
    return [NOTHING if one is None else contrast(group, one) for group, one in zip(sweep.groups, partners, strict=True)]


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


def sweep_markdown(sweep: Sweep, contrasts: Columns = MappingProxyType({})) -> str:
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


def sweep_csv(sweep: Sweep, contrasts: Columns = MappingProxyType({})) -> str:
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


def sweep_picture(sweep: Sweep) -> bytes:
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

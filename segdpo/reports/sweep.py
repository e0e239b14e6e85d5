"""A sweep as one table: a row for each group of runs, with intervals over seeds and comparisons of rows."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, variance

from matplotlib.axes import Axes
from rich.markup import escape
from rich.table import Table

from segdpo.metrics import LEVEL, Interval, Pooled, holm, student, student_p
from segdpo.reports.plots import BLUE, GREY, VERMILION, new_figure, to_bytes
from segdpo.reports.runs import (
    COUNTS,
    MEASURES,
    RETURNED,
    SIGNED,
    UNKNOWN,
    WIN_RATE,
    Group,
    Run,
    group_runs,
    read_runs,
    student_interval,
)
from segdpo.reports.text import (
    decimal,
    in_brackets,
    intervals_csv,
    markdown_table,
    p_value,
    percent,
    plus_minus,
    verdict_of,
)

# What is drawn of a group, and the title of the plot.
SEED_PLOTS = {
    "policy": "IoU of the policy with gold",
    "difference": "Policy − reference, IoU",
    "chosen gain": "Chosen gain; below 0: displacement",
}
STYLES = {"better": "green", "worse": "red"}
OVER_IMAGES = "over images"
POOLED = "over images: policy − reference pooled over all test images, with a 95 % interval for folds as clusters."
KEPT_NOTE = "returned: the difference of the network kept by keep=safe, 0 where that is the reference."


@dataclass(frozen=True)
class Comparison:
    """A column that compares the policy of each group with that of another group, over the seeds that both have.

    `partners` are the groups that each one is compared with, None where there is none; `recovery` says whether the
    column has the share of (partner − reference) that a group recovers, rather than its difference to the partner.
    """

    other: str
    recovery: bool
    partners: Sequence[Group | None]
    intervals: Sequence[Interval]

    @property
    def title(self) -> str:
        """The heading of the column."""
        return "recovery" if self.recovery else f"− {self.other}"

    @property
    def explanation(self) -> str:
        """The column in words."""
        if self.recovery:
            return "recovery: (policy − reference)/(dense − reference), with Fieller's 95 % interval over the seeds."
        return f"{self.title}: policy IoU minus that row's, seed by seed, with Student's 95 % interval."


@dataclass(frozen=True)
class Sweep:
    """The groups of a sweep, best policy first, the folders of unfinished runs, and further columns."""

    groups: Sequence[Group]
    unfinished: Sequence[Path] = ()
    comparisons: Sequence[Comparison] = ()

    def counts(self) -> list[str]:
        """Return the counts that any run has."""
        return [name for name in COUNTS if self._any_has(name)]

    def measures(self) -> list[str]:
        """Return the measures shown with an interval; what the safety rule returned only if any run was under it."""
        return [*MEASURES, *([RETURNED] if self._any_has(RETURNED) else [])]

    def _any_has(self, name: str) -> bool:
        return not all(math.isnan(run.values[name]) for group in self.groups for run in group.runs)

    def pooled(self) -> list[Interval]:
        """Return the difference over the images of each group, if any group was tested in several folds; else nothing.

        Where all runs share their test images, the interval for other images is in each run's own summary.json.
        """
        found = [group.over_images() for group in self.groups]
        return found if any(isinstance(one, Pooled) and one.folds > 1 for one in found) else []

    def notes(self, mark: str = "") -> list[str]:
        """Return lines that explain the comparisons and name the rows whose difference is significant.

        `mark` is put on both sides of a row's name.
        """
        significant = [_after_holm(each, self.groups, mark) for each in self.comparisons if not each.recovery]
        kept = [KEPT_NOTE] if RETURNED in self.measures() else []
        pooled = [POOLED] if self.pooled() else []
        return [*kept, *pooled, *(each.explanation for each in self.comparisons), *significant]

    def unfinished_note(self) -> str:
        """Return how many runs are unfinished, and which; nothing if there are none."""
        names = ", ".join(str(path) for path in self.unfinished)
        return f"{len(self.unfinished)} unfinished: {names}" if names else ""

    def markdown(self) -> str:
        """Return the table in Markdown, with notes below it."""
        lines = markdown_table(self._headings(), self._rows())
        for note in (*self.notes(mark="`"), self.unfinished_note()):
            lines += ["", note] if note else []
        return "\n".join(lines) + "\n"

    def csv(self) -> str:
        """Return a line for each group (mean, low, high, n of each measure), each followed by a line for each run."""
        measures = [*self.measures(), *self.counts()]
        rows: list[tuple[Sequence[object], Sequence[Interval | float | None]]] = []
        pooled = self.pooled()
        for place, group in enumerate(self.groups):
            compared = [*pooled[place : place + 1], *(each.intervals[place] for each in self.comparisons)]
            rows.append(([group.name, "all", ""], [*map(group.interval, measures), *compared]))
            for run in group.runs:
                numbers = [run.values[measure] for measure in measures]
                rows.append(([group.name, run.seed, run.folder], [*numbers, *[None] * len(compared)]))
        further = [*([OVER_IMAGES] if pooled else []), *(each.title for each in self.comparisons)]
        return intervals_csv(["run", "seed", "folder"], [*measures, *further], rows)

    def terminal(self) -> Table:
        """Return the table for rich; green and red: 0 lies outside the interval of the difference."""
        table = Table(title="IoU with gold, mean over seeds ± half of Student's 95 % interval")
        first, *others = self._headings()
        table.add_column(first, overflow="fold")
        for heading in others:
            table.add_column(heading, justify="right", no_wrap=True)
        for group, cells in zip(self.groups, self._rows(), strict=True):
            style = STYLES.get(verdict_of(group.interval("difference")))
            table.add_row(*map(escape, cells), style=style)
        return table

    def png(self) -> bytes:
        """Return a picture of each group's difference and chosen gain: seeds as points, intervals as lines."""
        figure = new_figure(10, 1.4 + 0.4 * len(self.groups))
        for axes, measure in zip(figure.subplots(1, len(SIGNED), sharey=True), SIGNED, strict=True):
            _draw_seeds(axes, self.groups, measure)
            axes.set_title(SEED_PLOTS[measure])
        return to_bytes(figure)

    def _headings(self) -> list[str]:
        pooled = [OVER_IMAGES] if self.pooled() else []
        return ["run", *self.measures(), *pooled, "runs", *self.counts(), *(each.title for each in self.comparisons)]

    def _rows(self) -> list[list[str]]:
        pooled = self.pooled()
        return [self._row(place, group, pooled[place : place + 1]) for place, group in enumerate(self.groups)]

    def _row(self, place: int, group: Group, pooled: Sequence[Interval]) -> list[str]:
        measured = {name: group.interval(name) for name in self.measures()}
        cells = [_with_n(_text_of(name, interval), interval, group) for name, interval in measured.items()]
        cells += [f"{plus_minus(one, sign=True)} (n {one.n})" for one in pooled]
        counts = [decimal(group.interval(name).mean, 0) for name in self.counts()]
        compared = []
        for each in self.comparisons:
            interval = each.intervals[place]
            text = percent(interval) if each.recovery else plus_minus(interval, sign=True)
            compared.append(_with_n(text, interval, group))
        return [group.name, *cells, str(len(group.runs)), *counts, *compared]


def read_sweep(
    folder: Path, ignore: Iterable[str] = (), *, dense: str | None = None, against: str | None = None
) -> Sweep:
    """Return the sweep under a folder.

    Args:
        folder: where the runs lie, at any depth.
        ignore: options that make no group of their own, besides seed, threads and jobs.
        dense: the row trained on dense gold masks; adds the share of its gain that each row recovers.
        against: a row; adds the difference of each row to it.

    Raises:
        ValueError: there are no finished runs, one cannot be read, or there is no row called `dense` or `against`.
    """
    runs, unfinished = read_runs(folder)
    if not runs:
        hint = f"{len(unfinished)} runs there are unfinished" if unfinished else "run segdpo train -m first"
        raise ValueError(f"Expected runs with a summary.json under {folder} but found none; {hint}.")
    return sweep_of(runs, unfinished, ignore=ignore, dense=dense, against=against)


def sweep_of(
    runs: Sequence[Run],
    unfinished: Sequence[Path] = (),
    *,
    ignore: Iterable[str] = (),
    dense: str | None = None,
    against: str | None = None,
) -> Sweep:
    """Return the sweep that these runs make up; the arguments are those of `read_sweep`."""
    groups = group_runs(runs, ignore)
    comparisons = [] if dense is None else [_compare(groups, dense, recovery=True)]
    comparisons += [] if against is None else [_compare(groups, against, recovery=False)]
    return Sweep(groups, unfinished, comparisons)


def _compare(groups: Sequence[Group], other: str, *, recovery: bool) -> Comparison:
    compare = _recovery if recovery else _difference
    partners = [_partner(groups, group, other) for group in groups]
    pairs = zip(groups, partners, strict=True)
    return Comparison(
        other, recovery, partners, [UNKNOWN if one is None else compare(group, one) for group, one in pairs]
    )


def _partner(groups: Sequence[Group], group: Group, other: str) -> Group | None:
    """Return the group that chose `other` and is otherwise like this one; if only one chose it, that one."""
    named = [each for each in groups if other in each.options.values() or each.name == other]
    if not named:
        names = ", ".join(each.name for each in groups)
        raise ValueError(f"Expected a row of the sweep called {other!r} but there are {names}.")
    if len(named) == 1:
        return named[0]
    alike = [each for each in named if _rest(each, each, other) == _rest(group, each, other)]
    return alike[0] if len(alike) == 1 else None


def _rest(group: Group, named: Group, other: str) -> dict[str, str | None]:
    """Return the options of a group without those by which `named` has the name `other`."""
    return {key: value for key, value in group.options.items() if named.options.get(key) != other}


def _difference(group: Group, other: Group) -> Interval:
    """Return the policy's IoU minus the other's over the seeds that both have, with Student's interval."""
    ours, theirs = group.by_run("policy"), other.by_run("policy")
    return student_interval(group.per_fold({key: ours[key] - theirs[key] for key in ours if key in theirs}))


def _recovery(group: Group, dense: Group) -> Interval:
    """Return (policy − reference)/(dense − reference), a ratio of means over the seeds that both have."""
    gains, most = group.by_run("difference"), dense.by_run("difference")
    both = [key for key in gains if key in most]
    return fieller(*(group.per_fold({key: one[key] for key in both}) for one in (gains, most)))


def fieller(numerators: Sequence[float], denominators: Sequence[float]) -> Interval:
    """Return mean(numerators)/mean(denominators) of pairs with Fieller's 95 % interval.

    The interval holds all ratios θ for which a t test does not reject that numerator − θ·denominator has mean 0. It is
    exact for normal differences, also for five pairs, where a bootstrap is too narrow. All numbers are NaN where the
    denominator is not significantly above 0: the interval then has no bounds.

    >>> fieller([1.0, 2.0, 3.0], [2.0, 4.0, 6.0])
    Interval(mean=nan, low=nan, high=nan, n=3)
    >>> fieller([2.0, 2.1, 2.2], [4.0, 4.2, 4.4]).mean
    0.5
    """
    n = len(numerators)
    if n < 2:
        return Interval(math.nan, math.nan, math.nan, n)
    top, bottom = fmean(numerators), fmean(denominators)
    covariance = sum((a - top) * (b - bottom) for a, b in zip(numerators, denominators, strict=True)) / (n - 1)
    scale = student(n - 1) ** 2 / n
    # (ā − θb̄)² ≤ t²/n · (s_aa − 2θ s_ab + θ² s_bb), a quadratic in θ: pθ² − 2qθ + r ≤ 0.
    p = bottom**2 - scale * variance(denominators)
    q = top * bottom - scale * covariance
    r = top**2 - scale * variance(numerators)
    if p <= 0 or bottom <= 0:
        return Interval(math.nan, math.nan, math.nan, n)
    # The ratio of the means itself meets the condition, so there is a root; rounding may give a value below 0.
    half = math.sqrt(max(0.0, q**2 - p * r)) / p
    return Interval(top / bottom, q / p - half, q / p + half, n)


def _after_holm(comparison: Comparison, groups: Sequence[Group], mark: str) -> str:
    """Return which differences are significant after Holm's correction for the number of rows.

    Without it, of twenty rows that change nothing, one would look significant.
    """
    others = [place for place, group in enumerate(groups) if comparison.partners[place] is not group]
    corrected = dict(zip(others, holm([student_p(comparison.intervals[place]) for place in others]), strict=True))
    texts = {place: f"{mark}{groups[place].name}{mark} ({_p(p)})" for place, p in corrected.items() if p < 1 - LEVEL}
    above = ", ".join(text for place, text in texts.items() if comparison.intervals[place].mean > 0)
    below = ", ".join(text for place, text in texts.items() if comparison.intervals[place].mean < 0)
    count = sum(not math.isnan(p) for p in corrected.values())
    found = f"above 0: {above or 'none'}; below 0: {below or 'none'}"
    return f"{comparison.title}, corrected for {count} rows (Holm): {found}."


def _p(value: float) -> str:
    return f"p {p_value(value)}"


def _text_of(measure: str, interval: Interval) -> str:
    """Return the cell of a measure; the interval of a share is not symmetric."""
    return in_brackets(interval) if measure == WIN_RATE else plus_minus(interval, sign=measure in (*SIGNED, RETURNED))


def _with_n(text: str, interval: Interval, group: Group) -> str:
    """Append the number of runs where it is not that of the row."""
    return f"{text} (n {interval.n})" if group.covers_part(interval) else text


def _draw_seeds(axes: Axes, groups: Sequence[Group], measure: str) -> None:
    for row, group in enumerate(groups):
        values = [run.values[measure] for run in group.runs]
        axes.scatter(values, [row] * len(values), s=14, color=BLUE, alpha=0.5, zorder=2)
        interval = group.interval(measure)
        if not math.isnan(interval.half):
            axes.errorbar(interval.mean, row, xerr=interval.half, color=VERMILION, capsize=4, marker="|", zorder=3)
    axes.axvline(0, color=GREY, linewidth=0.8)
    axes.set_yticks(range(len(groups)), [group.name for group in groups])
    axes.set_ylim(len(groups) - 0.5, -0.5)

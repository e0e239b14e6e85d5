"""Rows of a sweep held against one another, seed by seed: how much of dense masks is recovered, and who beats whom."""

import math
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean, variance

from segdpo.metrics.statistics import LEVEL, Interval, holm, student, student_p
from segdpo.reports.sweep import Group, Sweep, t_interval

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

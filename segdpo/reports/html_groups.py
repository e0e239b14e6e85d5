"""The table of a report on several runs: a row a group, each cell a mean over its runs with an interval."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from segdpo.metrics.statistics import Interval, hierarchical_difference
from segdpo.reports.html_files import ImageValues, RunFiles
from segdpo.reports.html_text import DASH, bounds, plain, signed, tone_of
from segdpo.reports.sweep import COUNTED, MEASURES, Group, Sweep
from segdpo.reports.sweep_contrasts import sure_of_all
from segdpo.reports.sweep_tables import SIGNED, Columns, as_share

TOGETHER = "over seeds and images"


@dataclass(frozen=True)
class Cell:
    """A mean, what stands below it, and the colour of both ("" for none)."""

    said: str
    below: str = ""
    tone: str = ""


@dataclass(frozen=True)
class GroupTable:
    """Names of the columns after the group's own, and a name and cells for each group."""

    names: Sequence[str]
    rows: Sequence[tuple[str, Sequence[Cell]]]


def group_table(sweep: Sweep, files: Mapping[Path, RunFiles], held: Columns) -> GroupTable:
    """Return the table; `held` are columns that hold the rows against one another, an interval for each group."""
    columns: dict[str, list[Cell]] = {}
    for measure in MEASURES:
        columns[measure] = [
            _said_n(_cell(interval, measure), interval, group)
            for group in sweep.groups
            for interval in [group.interval(measure)]
        ]
    together = [_over_images(group, files) for group in sweep.groups]
    if any(cell.said != DASH for cell in together):
        columns[TOGETHER] = together
    for title, intervals in held.items():
        columns[title] = [
            _said_n(_held(interval, title), interval, group)
            for interval, group in zip(intervals, sweep.groups, strict=True)
        ]
    for count in COUNTED:
        means = [group.interval(count).mean for group in sweep.groups]
        if not all(map(math.isnan, means)):
            columns[count] = [Cell(plain(mean, 0)) for mean in means]
    columns["runs"] = [Cell(str(len(group.runs))) for group in sweep.groups]
    return GroupTable(
        list(columns), [(group.name, [cells[k] for cells in columns.values()]) for k, group in enumerate(sweep.groups)]
    )


def said_of(sweep: Sweep, held: Columns) -> list[str]:
    """Return a line on each column that holds the rows against one another, and which differences stay sure of all."""
    said = {"recovery": "Recovery: (policy − reference)/(dense − reference), with Fieller’s interval over the seeds."}
    other = "{}: IoU of the policy minus that group’s, seed by seed, with Student’s interval."
    return [*(said.get(title, other.format(title)) for title in held), *sure_of_all(sweep, held)]


def _cell(interval: Interval, measure: str) -> Cell:
    sign = measure in SIGNED
    tone = tone_of(vars(interval)) if measure == "difference" else ""
    return Cell((signed if sign else plain)(interval.mean), bounds(vars(interval), sign=sign), tone)


def _said_n(cell: Cell, interval: Interval, group: Group) -> Cell:
    """Return a cell that says over how many runs it is, where that is not all of the group's."""
    return replace(cell, below=f"{cell.below} n {interval.n}".strip()) if group.in_part(interval) else cell


def _over_images(group: Group, files: Mapping[Path, RunFiles]) -> Cell:
    images = [files[run.folder].evaluation.images for run in group.runs]
    over = hierarchical_difference(
        [[image.change() for image in each] for each in images], [_told_apart(each) for each in images]
    )
    return Cell(signed(over.mean), bounds(vars(over), sign=True))


def _told_apart(images: Sequence[ImageValues]) -> list[str]:
    """Return the images' ids, the second of a name as its second: images.csv lists them in the same order each time."""
    seen: Counter[str] = Counter()
    names = []
    for image in images:
        seen[image.id] += 1
        names.append(f"{image.id}\0{seen[image.id]}")
    return names


def _held(interval: Interval, title: str) -> Cell:
    if title == "recovery":
        share, _, within = as_share(interval).replace("-", "−").partition(" [")
        return Cell(share, f"[{within}" if within else "")
    return Cell(signed(interval.mean), bounds(vars(interval), sign=True), tone_of(vars(interval)))

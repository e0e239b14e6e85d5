"""A frontier as Markdown, as CSV and in words: what each method reaches, how far it goes for it, what it takes."""

import csv
import io
import math
from collections.abc import Sequence

from segdpo.metrics.statistics import Interval
from segdpo.reports.frontier import MEASURES, Frontier, Row
from segdpo.reports.sweep_tables import as_text

# Digits enough to tell neighbours apart, and no more than one can read.
FORMS = {"KL": ".1f", "seconds": ".1f", "MiB": ".0f"}
# Two trainings from the same weights measure them alike, up to the order of sums.
SAME = 1e-6


def as_markdown(frontier: Frontier) -> str:
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


def as_csv(frontier: Frontier) -> str:
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

"""Numbers, intervals and tables as text, in the same form in every report."""

import csv
import io
import math
import re
from collections.abc import Iterable, Sequence

from segdpo.metrics import HIGHER_IS_BETTER, Interval

DASH = "–"
METRIC_NAMES = {
    "iou": "IoU",
    "dice": "Dice",
    "boundary_iou": "boundary IoU",
    "hd95": "HD95 ↓",
    "surface_dice": "surface Dice",
    "precision": "precision",
    "recall": "recall",
    "components": "extra parts",
}
BOUNDS = ("mean", "low", "high", "n")


def decimal(value: float, digits: int = 3, *, sign: bool = False) -> str:
    """Return a number with a fixed number of digits, a dash for NaN.

    What diverged fits no fixed number of digits and is shown with two.

    >>> decimal(-0.12345), decimal(0.1, sign=True), decimal(-39011305472.0), decimal(float("nan"))
    ('-0.123', '+0.100', '-3.9e+10', '–')
    """
    if math.isnan(value):
        return DASH
    if math.isinf(value):
        return "-∞" if value < 0 else "+∞" if sign else "∞"
    form = ".2g" if abs(value) >= 1e6 and digits else f".{digits}f"
    return format(value, f"+{form}" if sign else form)


def plain(value: float, digits: int = 3) -> str:
    """Return a number as `decimal` does, with a typographic minus, for HTML.

    >>> plain(-0.12345)
    '−0.123'
    """
    return decimal(value, digits).replace("-", "−", 1)


def typographic(text: str) -> str:
    """Return a text with the minus signs of its numbers as HTML has them.

    >>> typographic("held-out -0.5")
    'held-out −0.5'
    """
    return re.sub(r"-(?=\d)", "−", text)


def signed(value: float, digits: int = 3) -> str:
    """Return a number with its sign, for HTML.

    >>> signed(0.1), signed(-0.1)
    ('+0.100', '−0.100')
    """
    return decimal(value, digits, sign=True).replace("-", "−", 1)


def bounds(interval: Interval, *, sign: bool = False) -> str:
    """Return "[low, high]" for HTML; nothing where there is no interval.

    >>> bounds(Interval(0.0, -0.5, 0.5, 2), sign=True)
    '[−0.500, +0.500]'
    """
    if math.isnan(interval.low) or math.isnan(interval.high):
        return ""
    show = signed if sign else plain
    return f"[{show(interval.low)}, {show(interval.high)}]"


def plus_minus(interval: Interval, digits: int = 3, *, sign: bool = False) -> str:
    """Return "mean ± half width", or the mean alone where there is no interval.

    >>> plus_minus(Interval(0.5, 0.25, 0.75, 3)), plus_minus(Interval(0.5, math.nan, math.nan, 1), sign=True)
    ('0.500 ± 0.250', '+0.500')
    """
    mean = decimal(interval.mean, digits, sign=sign)
    return mean if math.isnan(interval.half) else f"{mean} ± {decimal(interval.half, digits)}"


def in_brackets(interval: Interval, digits: int = 3) -> str:
    """Return "mean [low, high]", or the mean alone where there is no interval.

    >>> in_brackets(Interval(0.75, 0.5, 1.0, 3))
    '0.750 [0.500, 1.000]'
    """
    mean, low, high = (decimal(value, digits) for value in (interval.mean, interval.low, interval.high))
    return mean if math.isnan(interval.half) else f"{mean} [{low}, {high}]"


def percent(interval: Interval) -> str:
    """Return "71 % [50, 93]"; "undefined" where a ratio was measured but has no bounded interval.

    >>> percent(Interval(0.71, 0.5, 0.93, 5)), percent(Interval(math.nan, math.nan, math.nan, 5))
    ('71 % [50, 93]', 'undefined')
    """
    if not interval.n:
        return DASH
    if math.isnan(interval.mean):
        return "undefined"
    return f"{100 * interval.mean:.0f} % [{100 * interval.low:.0f}, {100 * interval.high:.0f}]"


def p_value(value: float) -> str:
    """Return a p-value.

    >>> p_value(0.0421), p_value(0.00002)
    ('0.042', '< 0.001')
    """
    return "< 0.001" if value < 0.001 else decimal(value)


def count_of(count: int, what: str) -> str:
    """Return a count with its noun.

    >>> count_of(1, "run"), count_of(60, "test image")
    ('1 run', '60 test images')
    """
    return f"{count} {what}{'' if count == 1 else 's'}"


def verdict_of(interval: Interval, metric: str = "iou") -> str:
    """Return what a difference of a metric shows: "better", "worse", "open" (0 lies in the interval) or "unknown"."""
    if math.isnan(interval.low) or math.isnan(interval.high):
        return "unknown"
    higher_is_better = HIGHER_IS_BETTER.get(metric, metric not in ("ece", "brier"))
    if higher_is_better is None or interval.low <= 0 <= interval.high:
        return "open"
    return "better" if (interval.low > 0) == higher_is_better else "worse"


def markdown_table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Return the lines of a table in Markdown; the first cell of each row is set as code."""
    lines = [f"| {' | '.join(headings)} |", "|---" * len(headings) + "|"]
    return lines + [f"| `{name}` | {' | '.join(cells)} |" for name, *cells in rows]


def intervals_csv(
    labels: Sequence[str],
    measures: Sequence[str],
    rows: Iterable[tuple[Sequence[object], Sequence[Interval | float | None]]],
) -> str:
    """Return a CSV with the columns `labels`, then mean, low, high and n of each measure.

    Args:
        labels: names of the first columns.
        measures: names of what was measured.
        rows: for each line its labels, and for each measure an interval, the number of a single run or None.
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*labels, *(f"{measure} {bound}" for measure in measures for bound in BOUNDS)])
    for names, values in rows:
        writer.writerow([*names, *(part for value in values for part in _parts(value))])
    return out.getvalue()


def _parts(value: Interval | float | None) -> tuple[object, ...]:
    if isinstance(value, Interval):
        return value.mean, value.low, value.high, value.n
    return ("" if value is None else value), "", "", ""

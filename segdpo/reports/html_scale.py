"""Ranges, ticks and thinning for plots: finite values only, round numbers, no more points than one can see."""

import math
from collections.abc import Iterable, Sequence

import numpy as np

MOST_POINTS = 300

Range = tuple[float, float]


def finite(values: Iterable[float]) -> list[float]:
    """Return the finite ones."""
    return [float(value) for value in values if math.isfinite(value)]


def range_of(values: Iterable[float], *, include: Sequence[float] = (), pad: float = 0.06) -> Range:
    """Return a range that holds all finite values with a little room, and is never empty.

    >>> range_of([1.0, float("nan"), 2.0], pad=0.5)
    (0.5, 2.5)
    """
    kept = [*finite(values), *include]
    if not kept:
        return 0.0, 1.0
    low, high = min(kept), max(kept)
    room = (high - low) * pad or 0.05 * abs(high) or 0.5
    return low - room, high + room


def sane_range(values: Iterable[float], *, include: Sequence[float] = (), times: float = 30) -> Range:
    """Return `range_of` the values, but for those `times` further from 0 than half of all: one run must not hide all.

    >>> sane_range([0.1, 0.2, 0.2, -4e10])[0] > -1
    True
    """
    kept = finite(values)
    if kept:
        far = times * float(np.median(np.abs(kept)))
        kept = [value for value in kept if abs(value) <= far] or kept
    return range_of(kept, include=include)


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Return round numbers within a range, at most about `most`.

    >>> ticks(0.0, 1.0)
    [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    """
    span = high - low
    if not (math.isfinite(span) and span > 0):
        return []
    rough = span / (most - 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next((power * times for times in (1, 2, 5) if power * times >= rough * 0.999), power * 10)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [float(f"{k * step:.12g}") for k in range(first, last + 1)]


def tick_texts(values: Sequence[float]) -> list[str]:
    """Return labels of ticks, all with as many decimals as they need.

    >>> tick_texts([-0.5, 0.0, 0.5]), tick_texts([0.0, 2e10])
    (['−0.5', '0.0', '0.5'], ['0', '2e10'])
    """
    if any(abs(value) >= 1e5 for value in values):
        said = [f"{value:.4g}".replace("e+", "e") for value in values]
    else:
        digits = max((len(f"{value:.10g}".partition(".")[2]) for value in values), default=0)
        said = [f"{value:.{digits}f}" if digits < 7 else f"{value:.3g}" for value in values]
    return [text.replace("-", "−", 1) for text in said]


def thinned(xs: Sequence[float], ys: Sequence[float], most: int = MOST_POINTS) -> tuple[list[float], list[float]]:
    """Return at most `most` points, each the mean of its neighbours; NaN only where all of them are."""
    if len(xs) <= most:
        return list(xs), list(ys)
    found_x, found_y = [], []
    for part in np.array_split(np.arange(len(xs)), most):
        known = finite(ys[k] for k in part)
        found_x.append(float(np.mean([xs[k] for k in part])))
        found_y.append(float(np.mean(known)) if known else math.nan)
    return found_x, found_y

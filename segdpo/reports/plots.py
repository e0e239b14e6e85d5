"""What all plots share: colours, ranges of axes, smoothing, and figures of matplotlib that need no display."""

import io
import math
from collections.abc import Iterable, Sequence

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

BLUE, VERMILION, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
ORANGE, SKY, BLACK = "#E69F00", "#56B4E9", "#000000"
GREY = "#6b6b6b"
# In the order in which lines take them.
COLOURS = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, BLACK)

Range = tuple[float, float]


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure of a size in inches."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def to_bytes(figure: Figure, form: str = "png") -> bytes:
    """Return the figure as a file of the form "png", "svg", …; equal figures give equal bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format=form, dpi=120, metadata={"Date": None} if form == "svg" else None)
    return buffer.getvalue()


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


def range_without_outliers(values: Iterable[float], *, include: Sequence[float] = (), times: float = 30) -> Range:
    """Return `range_of` the values that are at most `times` the median absolute value.

    One run that diverged would otherwise leave nothing to see of all others.

    >>> range_without_outliers([0.1, 0.2, 0.2, -4e10])[0] > -1
    True
    """
    kept = finite(values)
    if kept:
        limit = times * float(np.median(np.abs(kept)))
        kept = [value for value in kept if abs(value) <= limit] or kept
    return range_of(kept, include=include)


def running_mean(values: Sequence[float], width: int) -> list[float]:
    """Return the mean of the finite values in a window around each value; NaN where the value itself is not finite.

    >>> running_mean([1.0, 2.0, float("nan"), 4.0], 3)
    [1.5, 1.5, nan, 4.0]
    """
    array = np.asarray(values, dtype=np.float64)
    known, kernel = np.isfinite(array), np.ones(width)
    total = np.convolve(np.where(known, array, 0), kernel, "same")
    count = np.convolve(known.astype(float), kernel, "same")
    return [float(x) for x in np.where(known, total / np.maximum(count, 1), math.nan)]

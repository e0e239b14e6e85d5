"""How sure one can be of a mean, a difference, a share of wins: intervals at 95 %.

Images are what was drawn at random, so images are resampled. The interval tells how other test images of the same
kind would change the number; it says nothing of other seeds of training, which want runs of their own.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

Values = Sequence[float] | NDArray[Any] | Tensor
Doubles = NDArray[np.float64]

LEVEL = 0.95
Z = 1.959963984540054
# Numbers drawn at once: 32 MB, however many images there are.
DRAWN_AT_ONCE = 4_000_000


@dataclass(frozen=True)
class Interval:
    """A mean over `n` images and the 95 % interval around it; NaN bounds for fewer than two images."""

    mean: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Difference(Interval):
    """Mean of policy − reference over the images that both were measured on; how many got worse, and better."""

    worse: int
    better: int


@dataclass(frozen=True)
class WinRate:
    """Share of images on which the policy beats the reference, a tie being half a win."""

    rate: float
    low: float
    high: float
    n: int


def mean_interval(values: Values, *, seed: int = 0, resamples: int = 10_000) -> Interval:
    """Return the mean with its interval by the percentile bootstrap; NaN values do not count.

    >>> mean_interval([0.5, 0.5, float("nan")])
    Interval(mean=0.5, low=0.5, high=0.5, n=2)
    """
    kept = _doubles(values)
    kept = kept[~np.isnan(kept)]
    return Interval(*_bootstrap(kept, seed, resamples), len(kept))


def paired_difference(policy: Values, reference: Values, *, seed: int = 0, resamples: int = 10_000) -> Difference:
    """Return the mean of policy − reference, both measured on the same images in the same order, with its interval.

    Images are resampled as pairs: that one image is harder than another then cancels. An image that is NaN in either
    does not count.

    >>> paired_difference([0.7, 0.7, 0.5], [0.5, 0.5, 0.5]).better
    2
    """
    change = _changes(policy, reference)
    mean, low, high = _bootstrap(change, seed, resamples)
    return Difference(mean, low, high, len(change), worse=int((change < 0).sum()), better=int((change > 0).sum()))


def win_rate(policy: Values, reference: Values) -> WinRate:
    """Return the share of images that the policy wins, ties half, with Wilson's interval.

    >>> win_rate([0.7, 0.7, 0.5, 0.4], [0.5, 0.5, 0.5, 0.5]).rate
    0.625
    """
    change = _changes(policy, reference)
    n = len(change)
    if n == 0:
        return WinRate(math.nan, math.nan, math.nan, 0)
    rate = float(((change > 0) + 0.5 * (change == 0)).mean())
    middle = (rate + Z**2 / (2 * n)) / (1 + Z**2 / n)
    half = Z / (1 + Z**2 / n) * math.sqrt(rate * (1 - rate) / n + Z**2 / (4 * n**2))
    return WinRate(rate, max(0.0, middle - half), min(1.0, middle + half), n)


def _changes(policy: Values, reference: Values) -> Doubles:
    ours, theirs = _doubles(policy), _doubles(reference)
    if ours.shape != theirs.shape:
        raise ValueError(
            f"Expected policy and reference to be measured on the same images but got {len(ours)} and {len(theirs)} "
            "values; evaluate both on one loader, in order."
        )
    change = np.subtract(ours, theirs)
    return change[~np.isnan(change)]


def _doubles(values: Values) -> Doubles:
    array = np.asarray(values.detach().cpu() if isinstance(values, Tensor) else values, dtype=np.float64)
    if array.ndim != 1 or np.isinf(array).any():
        raise ValueError(f"Expected one finite (or NaN) number an image but got an array of shape {array.shape}.")
    return array


def _bootstrap(values: Doubles, seed: int, resamples: int) -> tuple[float, float, float]:
    n = len(values)
    mean = float(values.mean()) if n else math.nan
    if n < 2:
        return mean, math.nan, math.nan
    rng = np.random.default_rng(seed)
    at_once = max(1, DRAWN_AT_ONCE // n)
    means = np.concatenate(
        [
            values[rng.integers(n, size=(min(at_once, resamples - done), n))].mean(axis=1)
            for done in range(0, resamples, at_once)
        ]
    )
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return mean, float(low), float(high)

"""How often the 95 % intervals of segdpo.metrics contain the true value, by simulation, as a Markdown table.

    python scripts/check_intervals.py --trials 2000

Values are drawn with a known mean, and it is counted how often the interval contains it. The last column is the share
of a common interval on the same draws: plain percentiles, the normal interval, Student's over seeds alone.
"""

import argparse
import math
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from scipy import stats

from segdpo.metrics import hierarchical_difference, mean_interval, win_rate
from segdpo.progress import track

Doubles = NDArray[np.float64]
Bounds = tuple[float, float]
Trial = Callable[[np.random.Generator], tuple[Bounds, Bounds, float]]
RESAMPLES = 1000


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=2000, help="intervals a row (2000: shares vary by .005)")
    trials: int = parser.parse_args(arguments).trials
    if trials < 1:
        parser.error(f"Expected --trials of at least 1 but got {trials}.")
    print("| interval | drawn | n | held | common choice |\n|---|---|---|---|---|")
    rows = list(cases())
    for number, (words, trial) in enumerate(track(rows, "simulating", console=Console(stderr=True), transient=True)):
        rng = np.random.default_rng(number)
        found = [trial(rng) for _ in range(trials)]
        ours = np.mean([low <= truth <= high for (low, high), _, truth in found])
        theirs = np.mean([low <= truth <= high for _, (low, high), truth in found])
        print(f"| {words} | {ours:.3f} | {theirs:.3f} |", flush=True)
    return 0


def cases() -> Iterator[tuple[str, Trial]]:
    """Yield a description of what is drawn, and one trial of it."""
    for n in (5, 10, 20, 60):
        yield f"`mean_interval` | normal | {n} images", bootstrap_of(lambda rng, n=n: rng.normal(size=n), 0.0)
    for n in (10, 60):
        yield f"`mean_interval` | exponential | {n} images", bootstrap_of(lambda rng, n=n: rng.exponential(size=n), 1.0)
    for n, rate in ((20, 0.5), (20, 0.9), (60, 0.9)):
        yield f"`win_rate` | {100 * rate:.0f} % are won | {n} images", wins_of(n, rate)
    for seeds, of_seed, of_image, of_both in (
        (2, 3, 10, 10),
        (3, 2, 10, 5),
        (5, 0, 10, 5),
        (5, 2, 10, 20),
        (5, 5, 5, 5),
    ):
        drawn = f"spread of seeds {of_seed}, images {of_image}, both {of_both}"
        yield (
            f"`hierarchical_difference` | {drawn} | {seeds} seeds, 60 images",
            seeds_of(seeds, of_seed, of_image, of_both),
        )


def bootstrap_of(draw: Callable[..., Doubles], truth: float) -> Trial:
    """Return a trial of `mean_interval`, beside plain percentiles of resampled means."""

    def trial(rng: np.random.Generator) -> tuple[Bounds, Bounds, float]:
        values = draw(rng)
        ours = mean_interval(values, resamples=RESAMPLES, seed=int(rng.integers(2**31)))
        means = values[rng.integers(len(values), size=(RESAMPLES, len(values)))].mean(1)
        return (ours.low, ours.high), _pair(np.quantile(means, [0.025, 0.975])), truth

    return trial


def wins_of(n: int, rate: float) -> Trial:
    """Return a trial of `win_rate`, beside the normal interval."""

    def trial(rng: np.random.Generator) -> tuple[Bounds, Bounds, float]:
        ours = win_rate(rng.random(n) < rate, np.full(n, 0.5))
        half = 1.96 * math.sqrt(ours.rate * (1 - ours.rate) / n)
        return (ours.low, ours.high), (ours.rate - half, ours.rate + half), rate

    return trial


def seeds_of(seeds: int, of_seed: float, of_image: float, of_both: float, images: int = 60) -> Trial:
    """Return a trial of `hierarchical_difference`, beside Student's interval over seeds."""

    def trial(rng: np.random.Generator) -> tuple[Bounds, Bounds, float]:
        table = of_seed * rng.normal(size=(seeds, 1)) + of_image * rng.normal(size=(1, images))
        table = table + of_both * rng.normal(size=(seeds, images))
        ours = hierarchical_difference(list(table))
        theirs: Any = stats.ttest_1samp(table.mean(1), 0).confidence_interval()
        return (ours.low, ours.high), (float(theirs.low), float(theirs.high)), 0.0

    return trial


def _pair(values: Doubles) -> Bounds:
    return float(values[0]), float(values[1])


if __name__ == "__main__":
    sys.exit(main())

"""How often the 95 % intervals of segdpo.metrics contain the true value, by simulation, as a Markdown table.

    python scripts/check_intervals.py --trials 2000

Values are drawn with a known mean, and it is counted how often the interval contains it. The last column is the share
of a common interval on the same draws: plain percentiles, the normal interval, Student's over seeds, runs or folds.
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

from segdpo.metrics import hierarchical_difference, mean_interval, pooled_difference, pooled_win_rate, win_rate
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
    for of_fold in (0.0, 0.5, 2.0):
        drawn = f"spread of folds {of_fold:g}, images 1, both .5"
        yield f"`pooled_difference` | {drawn} | 5 folds, 2 seeds, 12 to 20 images", folds_of_two(of_fold)
    for rate, of_fold in ((0.6, 0.0), (0.9, 0.02), (0.98, 0.0), (0.98, 0.02), (0.9, 0.1)):
        drawn = f"{100 * rate:.0f} % are won, correlation {of_fold:g} in a fold"
        yield f"`pooled_win_rate` | {drawn} | 5 folds, 20 images", wins_of_folds(rate, of_fold)


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


def folds_of_two(of_fold: float) -> Trial:
    """Return a trial of `pooled_difference`, beside Student's interval over runs, which share the images of a fold."""

    def trial(rng: np.random.Generator) -> tuple[Bounds, Bounds, float]:
        changes, ids = [], []
        for fold in range(5):
            images = 12 + 4 * (fold % 3)
            shared = of_fold * rng.normal() + rng.normal(size=images)
            changes += [shared + 0.5 * rng.normal(size=images) for _ in range(2)]
            ids += [[f"{fold} {image}" for image in range(images)]] * 2
        ours = pooled_difference(changes, ids)
        theirs: Any = stats.ttest_1samp([run.mean() for run in changes], 0).confidence_interval()
        return (ours.low, ours.high), (float(theirs.low), float(theirs.high)), 0.0

    return trial


def wins_of_folds(rate: float, correlation: float) -> Trial:
    """Return a trial of `pooled_win_rate`, beside Student's interval over folds."""

    def trial(rng: np.random.Generator) -> tuple[Bounds, Bounds, float]:
        size = 1 / correlation - 1 if correlation else 0.0
        rates = rng.beta(rate * size, (1 - rate) * size, 5) if correlation else np.full(5, rate)
        won = rng.random((5, 20)) < rates[:, None]
        ids = [[f"{fold} {image}" for image in range(20)] for fold in range(5)]
        ours = pooled_win_rate(list(np.where(won, 1.0, -1.0)), ids, resamples=500)
        with np.errstate(invalid="ignore"):
            theirs: Any = stats.ttest_1samp(won.mean(1), 0).confidence_interval()
        return (ours.low, ours.high), (float(theirs.low), float(theirs.high)), rate

    return trial


def _pair(values: Doubles) -> Bounds:
    return float(values[0]), float(values[1])


if __name__ == "__main__":
    sys.exit(main())

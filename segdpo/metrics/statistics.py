"""Statistics of comparisons: means, differences and win rates with 95 % intervals, and tests.

Images are the sample, so images are resampled. An interval says how other test images of the same kind would change the
number. It says nothing about other seeds of training, which need runs of their own: see `hierarchical_difference`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor

Values = Sequence[float] | NDArray[Any] | Tensor
Doubles = NDArray[np.float64]

LEVEL = 0.95
Z = 1.959963984540054
# Numbers drawn at once: 32 MB, for any number of images.
DRAWN_AT_ONCE = 4_000_000


@dataclass(frozen=True)
class Interval:
    """A mean over `n` images (or runs) and the 95 % interval around it; NaN bounds for fewer than two."""

    mean: float
    low: float
    high: float
    n: int

    @property
    def half(self) -> float:
        """Half the interval's width."""
        return (self.high - self.low) / 2


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


@dataclass(frozen=True)
class ClusteredInterval(Interval):
    """A mean over `n` values in `clusters`; `bound` is the lower end of its one-sided 95 % interval."""

    bound: float
    clusters: int


@dataclass(frozen=True)
class Wilcoxon:
    """Signed rank test of policy against reference over `n` images, of which `ties` did not change; two-sided p."""

    statistic: float
    p: float
    n: int
    ties: int


@dataclass(frozen=True)
class HierarchicalDifference:
    """Mean of policy − reference over seeds and images with its 95 % interval; how many of both counted."""

    mean: float
    low: float
    high: float
    seeds: int
    images: int


def mean_interval(values: Values, *, seed: int = 0, resamples: int = 10_000) -> Interval:
    """Return the mean with its interval by the expanded percentile bootstrap.

    Percentiles of resampled means are too narrow for few images n, by what sets Student's interval apart from the
    normal one with variance over n; the percentiles α′ = Φ(−√(n/(n − 1)) t_{1−α/2, n−1}) and 1 − α′ are right
    (Hesterberg, "What teachers should know about the bootstrap", 2015).

    Args:
        values: one number an image; NaN does not count.
        seed: of the resampling.
        resamples: how many means are drawn.

    >>> mean_interval([0.5, 0.5, float("nan")])
    Interval(mean=0.5, low=0.5, high=0.5, n=2)
    """
    kept = _doubles(values)
    kept = kept[~np.isnan(kept)]
    return Interval(*_bootstrap(kept, seed, resamples), len(kept))


def paired_difference(policy: Values, reference: Values, *, seed: int = 0, resamples: int = 10_000) -> Difference:
    """Return the mean of policy − reference with its interval, as `mean_interval` of the differences.

    Images are resampled as pairs: that one image is harder than another then cancels.

    Args:
        policy: one number an image.
        reference: like `policy`, of the same images in the same order; an image that is NaN in either does not count.
        seed: of the resampling.
        resamples: how many means are drawn.

    >>> paired_difference([0.7, 0.7, 0.5], [0.5, 0.5, 0.5]).better
    2
    """
    change = _changes(policy, reference)
    mean, low, high = _bootstrap(change, seed, resamples)
    return Difference(mean, low, high, len(change), worse=int((change < 0).sum()), better=int((change > 0).sum()))


def win_rate(policy: Values, reference: Values) -> WinRate:
    """Return the share p of images that the policy wins, ties half, with Wilson's score interval.

        (p + z²/2n ± z √(p(1 − p)/n + z²/4n²)) / (1 + z²/n),  z = 1.96

    Wilson, "Probable inference, the law of succession, and statistical inference", 1927.

    Args:
        policy: one number an image, higher is better.
        reference: like `policy`, of the same images in the same order; an image that is NaN in either does not count.

    >>> win_rate([0.7, 0.7, 0.5, 0.4], [0.5, 0.5, 0.5, 0.5]).rate
    0.625
    """
    change = _changes(policy, reference)
    n = len(change)
    if n == 0:
        return WinRate(math.nan, math.nan, math.nan, 0)
    rate = float(((change > 0) + 0.5 * (change == 0)).mean())
    return WinRate(rate, *_wilson(rate, n), n)


def clustered_interval(
    values: Values, clusters: Sequence[str], weights: Values | None = None, *, fewest: int = 2
) -> ClusteredInterval:
    """Return the weighted mean with its interval over clusters, two-sided and one-sided.

    Values of one cluster (judgements of one image, images of one patient) may depend on each other; clusters may not.
    With weights w, W = Σ w and the mean m, the variance of m over G clusters is the linearised one of a ratio,

        G / (G − 1) · Σ_g (Σ_{i ∈ g} w_i (x_i − m))² / W²,

    and the interval is Student's with G − 1 degrees of freedom: the usual one where every cluster has one value.

    Args:
        values: finite numbers.
        clusters: the name of each value's cluster.
        weights: of the values; left out: 1.
        fewest: clusters below which there is no interval: NaN.

    >>> found = clustered_interval([0.1, 0.2, 0.3], ["a", "b", "c"])
    >>> [round(number, 3) for number in (found.mean, found.low, found.high, found.bound)]
    [0.2, -0.048, 0.448, 0.031]
    """
    found = _doubles(values)
    weight = np.ones(len(found)) if weights is None else _doubles(weights)
    if not len(found) == len(clusters) == len(weight):
        raise ValueError(
            f"Expected a cluster and a weight for each of {len(found)} values but got {len(clusters)} clusters and "
            f"{len(weight)} weights."
        )
    names, group = np.unique(np.asarray(clusters, dtype=np.str_), return_inverse=True)
    count, whole = len(names), float(weight.sum())
    mean = float((weight * found).sum() / whole) if whole > 0 else math.nan
    if count < max(2, fewest) or math.isnan(mean):
        return ClusteredInterval(mean, math.nan, math.nan, len(found), math.nan, count)
    sums = np.bincount(group, weight * (found - mean))
    error = math.sqrt(count / (count - 1) * float((sums**2).sum())) / whole
    half = student(count - 1) * error
    bound = mean - float(stats.t.ppf(LEVEL, count - 1)) * error
    return ClusteredInterval(mean, mean - half, mean + half, len(found), bound, count)


def wilcoxon(policy: Values, reference: Values) -> Wilcoxon:
    """Return Wilcoxon's signed rank test of whether the changes are symmetric about 0.

    The statistic is the smaller of the sums of ranks of |change| over positive and over negative changes (Wilcoxon,
    "Individual comparisons by ranking methods", 1945). Images that did not change are left out of the ranks; if none
    changed, p is 1.

    Args:
        policy: one number an image.
        reference: like `policy`, of the same images in the same order; an image that is NaN in either does not count.

    >>> wilcoxon([0.7, 0.8, 0.5, 0.5], [0.5, 0.5, 0.5, 0.6])
    Wilcoxon(statistic=1.0, p=0.5, n=4, ties=1)
    """
    # Metrics are float32, and distances may be in the hundreds: changes that differ by rounding alone share a rank.
    sizes = np.abs([*_doubles(policy), *_doubles(reference)])
    digits = math.ceil(math.log10(np.max(sizes, initial=1.0, where=~np.isnan(sizes))))
    change = np.round(_changes(policy, reference), 6 - digits)
    moved = change[change != 0]
    n, ties = len(change), len(change) - len(moved)
    if not len(moved):
        return Wilcoxon(0.0 if n else math.nan, 1.0 if n else math.nan, n, ties)
    found = stats.wilcoxon(moved)
    return Wilcoxon(float(found.statistic), float(found.pvalue), n, ties)


def worst(ids: Sequence[str], policy: Values, reference: Values, count: int) -> list[tuple[str, float]]:
    """Return the (id, policy − reference) of the up to `count` images that lost most, the greatest loss first.

    Images that did not lose are not among them.

    Args:
        ids: of the images.
        policy: one number an image, higher is better (for other metrics, turn the sign).
        reference: like `policy`, of the same images in the same order.
        count: how many images to return at most.

    >>> worst(["a", "b", "c"], [0.5, 0.75, 0.9], [0.75, 0.5, 1.0], count=1)
    [('a', -0.25)]
    """
    ours, theirs = _doubles(policy), _doubles(reference)
    _check_paired(ours, theirs)
    if len(ids) != len(ours):
        raise ValueError(f"Expected an id for each of the {len(ours)} images but got {len(ids)}.")
    rows = sorted((float(change), name) for name, change in zip(ids, ours - theirs, strict=True) if change < 0)
    return [(name, change) for change, name in rows[:count]]


def hierarchical_difference(
    changes: Sequence[Values], ids: Sequence[Sequence[str]] | None = None
) -> HierarchicalDifference:
    """Return the mean of policy − reference over several seeds, with an interval for other seeds and other images.

    The mean m is that of the S seeds' means m_s; its variance is

        Σ_s (m_s − m)² / (S (S − 1))  +  mean over s ≠ t of cov(m_s, m_t)

    The first term is what training adds (and images of its own, in folds). The second comes from images that several
    seeds were tested on: a hard image is hard for all of them, so it shows in no difference between seeds. Student's
    half-widths of both, with S − 1 and images − 1 degrees of freedom, are added in squares; without shared images that
    is Student's interval over seeds. Percentiles of a bootstrap that draws seeds, then images, are too narrow for the
    few seeds that one has.

    Args:
        changes: per-image differences, a list for each seed; NaN does not count, nor does a seed without any number.
        ids: the images of each list; left out: all seeds were tested on the same images, in the same order.

    >>> hierarchical_difference([[0.25, 0.75], [0.5, 0.5], []]).mean
    0.5
    """
    table = _table(changes, ids)
    counts = ~np.isnan(table)
    table, counts = table[counts.any(1)], counts[counts.any(1)]
    seeds, images = len(table), int(counts.any(0).sum())
    if not seeds:
        return HierarchicalDifference(math.nan, math.nan, math.nan, 0, 0)
    per_seed = np.nanmean(table, axis=1)
    mean = float(per_seed.mean())
    if seeds < 2 or images < 2:
        return HierarchicalDifference(mean, math.nan, math.nan, seeds, images)
    spread = float(per_seed.var(ddof=1)) / seeds
    shares = np.where(counts, table - per_seed[:, None], 0.0) / counts.sum(1, keepdims=True)
    between = shares @ shares.T * images / (images - 1)
    # An estimate of a covariance from few images may be below 0, the variance that images share is not.
    shared = max(0.0, float(between.sum() - between.trace()) / (seeds * (seeds - 1)))
    half = math.hypot(student(seeds - 1) * math.sqrt(spread), student(images - 1) * math.sqrt(shared))
    return HierarchicalDifference(mean, mean - half, mean + half, seeds, images)


def student(freedom: int) -> float:
    """Return the quantile t_{.975} of Student's distribution: the half-width of its interval in standard errors.

    >>> round(student(4), 3)
    2.776
    """
    return float(stats.t.ppf((1 + LEVEL) / 2, freedom))


def student_p(interval: Interval) -> float:
    """Return the two-sided p-value of a mean of 0 that belongs to Student's interval; NaN for fewer than two runs.

    >>> round(student_p(Interval(mean=1.0, low=0.0, high=2.0, n=5)), 3)
    0.05
    """
    if interval.n < 2 or math.isnan(interval.half):
        return math.nan
    error = interval.half / student(interval.n - 1)
    if error == 0:  # all runs are the same
        return float(interval.mean == 0)
    return 2 * float(stats.t.sf(abs(interval.mean) / error, interval.n - 1))


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values corrected for how many they are; NaN is not counted and stays.

    Of m ascending p-values, the i-th becomes the largest of min(1, (m − j + 1) p_j) for j ≤ i. With those below .05
    called significant, the probability of any error is at most .05, however the tests depend on each other (Holm,
    "A simple sequentially rejective multiple test procedure", 1979).

    >>> holm([0.01, 0.04, 0.03, 0.005])
    [0.03, 0.06, 0.06, 0.02]
    """
    counted = sorted((p, place) for place, p in enumerate(p_values) if not math.isnan(p))
    corrected, least = list(p_values), 0.0
    for done, (p, place) in enumerate(counted):
        least = max(least, min(1.0, p * (len(counted) - done)))
        corrected[place] = least
    return corrected


def _table(changes: Sequence[Values], ids: Sequence[Sequence[str]] | None) -> Doubles:
    """Return the changes as [seeds, images], NaN where a seed did not see an image."""
    lists = [_doubles(values) for values in changes]
    if ids is None and len({len(values) for values in lists} - {0}) > 1:
        raise ValueError(
            f"Expected the same images for every seed but got {', '.join(str(len(values)) for values in lists)} of "
            "them; give ids if the seeds were tested on images of their own."
        )
    names = [[str(place) for place in range(len(values))] for values in lists] if ids is None else ids
    if [len(values) for values in lists] != [len(set(named)) for named in names]:
        raise ValueError(
            f"Expected ids of the changes' lengths, {[len(values) for values in lists]}, no image twice in a seed, "
            f"but got {[len(set(named)) for named in names]} different ones."
        )
    places = {name: place for place, name in enumerate(dict.fromkeys(name for named in names for name in named))}
    table = np.full((len(lists), len(places)), np.nan)
    for row, values, named in zip(table, lists, names, strict=True):
        row[[places[name] for name in named]] = values
    return table


def _changes(policy: Values, reference: Values) -> Doubles:
    ours, theirs = _doubles(policy), _doubles(reference)
    _check_paired(ours, theirs)
    change = np.subtract(ours, theirs)
    return change[~np.isnan(change)]


def _check_paired(ours: Doubles, theirs: Doubles) -> None:
    if ours.shape != theirs.shape:
        raise ValueError(
            f"Expected policy and reference to be measured on the same images but got {len(ours)} and {len(theirs)} "
            "values; evaluate both on one loader, in order."
        )


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
    outside = float(stats.norm.cdf(-math.sqrt(n / (n - 1)) * student(n - 1)))
    low, high = np.quantile(means, [outside, 1 - outside])
    return mean, float(low), float(high)


@dataclass(frozen=True)
class Pooled(Interval):
    """A mean over `n` images that were tested in so many folds (1: all runs share test images) with its interval."""

    folds: int


def folds_of(ids: Sequence[Sequence[str]]) -> list[int]:
    """Return the fold of each run: runs that share a test image, directly or through others, are in one fold.

    >>> folds_of([["a", "b"], ["c"], ["b", "a"], ["c"]])
    [0, 1, 0, 1]
    """
    fold_of: dict[str, int] = {}
    folds = list(range(len(ids)))
    for run, named in enumerate(ids):
        joined = {fold_of[name] for name in named if name in fold_of} | {run}
        first = min(joined)
        folds = [first if fold in joined else fold for fold in folds]
        fold_of = {name: first if fold in joined else fold for name, fold in fold_of.items()} | dict.fromkeys(
            named, first
        )
    numbers = {fold: number for number, fold in enumerate(dict.fromkeys(folds))}
    return [numbers[fold] for fold in folds]


def pooled_difference(changes: Sequence[Values], ids: Sequence[Sequence[str]]) -> Pooled:
    """Return the mean of policy − reference over all images of several folds, with folds as clusters.

    An image that several seeds were tested on counts once, with the mean of its changes. The interval is
    `clustered_interval`: what the images of a fold share, such as the networks that were trained without them, does not
    make it too narrow (Liang and Zeger, "Longitudinal data analysis using generalized linear models", 1986). Where all
    runs share their test images, it is `hierarchical_difference`.

    Args:
        changes: per-image differences, a list for each run; NaN does not count.
        ids: the images of each list.

    >>> pooled_difference([[0.25, 0.75], [0.5], [0.75, 0.25]], [["a", "b"], ["c"], ["a", "b"]])
    Pooled(mean=0.5, low=0.5, high=0.5, n=3, folds=2)
    """
    folds, tables = _tables_of_folds(changes, ids)
    if len(tables) < 2:
        found = hierarchical_difference(changes, ids)
        return Pooled(found.mean, found.low, found.high, found.images, len(tables))
    means = [np.nanmean(table, axis=0) for table in tables]
    names = np.repeat(np.arange(folds), [len(values) for values in means]).astype(np.str_)
    found = clustered_interval(np.concatenate(means), names.tolist())
    return Pooled(found.mean, found.low, found.high, found.n, folds)


def pooled_win_rate(
    changes: Sequence[Values], ids: Sequence[Sequence[str]], *, seed: int = 0, resamples: int = 2_000
) -> Pooled:
    """Return the share of images that the policy wins over several runs, ties half, with an interval inside [0, 1].

    The cluster bootstrap draws folds, then runs and images within each (Davison and Hinkley, "Bootstrap methods and
    their application", 1997, section 3.8). Its percentiles are too narrow where nearly all images are won, so the
    interval also contains Wilson's over the images.

    Args:
        changes: per-image differences, a list for each run; NaN does not count.
        ids: the images of each list.
        seed: of the resampling.
        resamples: how many rates are drawn, fewer of very many images.

    >>> pooled_win_rate([[0.25, 0.75], [0.5]], [["a", "b"], ["c"]]).high
    1.0
    """
    wins = [np.where(np.isnan(one), np.nan, (np.sign(one) + 1) / 2) for one in map(_doubles, changes)]
    folds, tables = _tables_of_folds(wins, ids)
    means = np.concatenate([np.nanmean(table, axis=0) for table in tables]) if tables else np.empty(0)
    n = len(means)
    if not n:
        return Pooled(math.nan, math.nan, math.nan, 0, 0)
    rate = float(means.mean())
    rates = _resampled_rates(tables, np.random.default_rng(seed), max(200, min(resamples, DRAWN_AT_ONCE // n)))
    low, high = np.quantile(rates, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    wilson = _wilson(rate, n)
    return Pooled(rate, min(float(low), wilson[0]), max(float(high), wilson[1]), n, folds)


def _tables_of_folds(changes: Sequence[Values], ids: Sequence[Sequence[str]]) -> tuple[int, list[Doubles]]:
    """Return how many folds there are, and the numbers of each as [runs, images]; what has no number is left out."""
    table = _table(changes, ids)
    labels = np.array(folds_of(ids), np.int64)
    tables = []
    for fold in range(labels.max(initial=-1) + 1):
        rows = table[labels == fold]
        known = ~np.isnan(rows)
        rows = rows[known.any(1)][:, known.any(0)]
        tables += [rows] if rows.size else []
    return len(tables), tables


def _resampled_rates(tables: Sequence[Doubles], rng: np.random.Generator, resamples: int) -> Doubles:
    drawn = rng.integers(len(tables), size=(resamples, len(tables)))
    sums, counts = np.zeros(drawn.shape), np.zeros(drawn.shape)
    for fold, table in enumerate(tables):
        runs, images = table.shape
        here = drawn == fold
        many = int(here.sum())
        shares = rng.multinomial(runs, np.full(runs, 1 / runs), size=many).astype(np.float64)
        known = shares @ ~np.isnan(table)
        won = shares @ np.nan_to_num(table)
        rates = np.divide(won, known, out=np.zeros_like(won), where=known > 0)
        chosen = rng.integers(images, size=(many, images))
        sums[here] = np.take_along_axis(rates, chosen, 1).sum(1)
        counts[here] = np.take_along_axis(known > 0, chosen, 1).sum(1)
    # Draws of images that none of the drawn runs has a number for say nothing.
    return np.asarray(sums.sum(1)[counts.sum(1) > 0] / counts.sum(1)[counts.sum(1) > 0])


def _wilson(rate: float, n: int) -> tuple[float, float]:
    """Return Wilson's score interval of a share of n images."""
    middle = (rate + Z**2 / (2 * n)) / (1 + Z**2 / n)
    half = Z / (1 + Z**2 / n) * math.sqrt(rate * (1 - rate) / n + Z**2 / (4 * n**2))
    return max(0.0, middle - half), min(1.0, middle + half)

"""Intervals against SciPy, values by hand, and how often intervals hold the truth."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from segdpo.metrics.statistics import (
    Interval,
    Wilcoxon,
    clustered_interval,
    hierarchical_difference,
    holm,
    mean_interval,
    paired_difference,
    student_p,
    wilcoxon,
    win_rate,
    worst,
)


def test_paired_difference_by_hand():
    found = paired_difference([0.9, 0.5, 0.6, math.nan, 0.7], [0.5, 0.6, 0.6, 0.2, math.nan])
    # Changes: +.4, −.1, 0.
    assert found.mean == pytest.approx(0.1)
    assert (found.n, found.worse, found.better) == (3, 1, 1)
    # The mean of three resampled changes lies between the extremes, each met with probability 1/27 > 2.5 %.
    assert (found.low, found.high) == pytest.approx((-0.1, 0.4))


def test_as_scipys_percentile_bootstrap():
    rng = np.random.default_rng(0)
    policy, reference = rng.beta(8, 3, 80), rng.beta(7, 3, 80)
    found = paired_difference(policy, torch.from_numpy(reference))
    theirs = stats.bootstrap((policy - reference,), np.mean, method="percentile", n_resamples=10_000, rng=1)
    # Two draws of 10 000: a quantile wanders by about a fiftieth of the width.
    width = found.high - found.low
    assert found.low == pytest.approx(theirs.confidence_interval.low, abs=width / 25)
    assert found.high == pytest.approx(theirs.confidence_interval.high, abs=width / 25)
    # And near to Student's interval, which is right for a mean of many.
    student = stats.ttest_rel(policy, reference).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((student.low, student.high), abs=width / 15)


def test_the_interval_holds_the_truth_in_95_of_100():
    rng = np.random.default_rng(2)
    samples = rng.exponential(size=(400, 60))
    intervals = [mean_interval(sample, resamples=400) for sample in samples]
    held = np.mean([interval.low <= 1 <= interval.high for interval in intervals])
    # Skewed data cost the percentile interval a little; 400 trials wander by .011.
    assert 0.89 < held < 0.975


def test_the_same_seed_gives_the_same_interval():
    values = np.random.default_rng(0).random(30)
    assert mean_interval(values, seed=3) == mean_interval(values, seed=3)
    assert mean_interval(values, seed=3) != mean_interval(values, seed=4)


def test_many_images_are_drawn_in_pieces(monkeypatch):
    values = np.random.default_rng(0).random(50)
    whole = mean_interval(values)
    monkeypatch.setattr("segdpo.metrics.statistics.DRAWN_AT_ONCE", 700)
    assert mean_interval(values) == whole


@pytest.mark.parametrize(("wins", "n"), [(0, 10), (7, 10), (10, 10), (61, 100)])
def test_win_rate_is_wilsons(wins, n):
    found = win_rate(np.arange(n) < wins, np.full(n, 0.5))
    theirs = stats.binomtest(wins, n).proportion_ci(method="wilson")
    assert found.rate == wins / n
    assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high), abs=1e-12)


def test_a_tie_is_half_a_win():
    # 1 win, 2 ties, 1 loss: 2 of 4, as SciPy sees 2 wins of 4.
    found = win_rate([0.9, 0.5, 0.5, 0.1], [0.5, 0.5, 0.5, 0.5])
    theirs = stats.binomtest(2, 4).proportion_ci(method="wilson")
    assert (found.rate, found.low, found.high) == pytest.approx((0.5, theirs.low, theirs.high))


def test_too_few_images_have_no_interval():
    one = paired_difference([0.7], [0.5])
    assert one.mean == pytest.approx(0.2)
    assert math.isnan(one.low)
    assert one.n == 1
    assert math.isnan(win_rate([], []).rate)
    assert math.isnan(mean_interval([math.nan]).mean)


def test_errors_name_the_fix():
    with pytest.raises(ValueError, match="2 and 1 "):
        paired_difference([0.1, 0.2], [0.1])
    with pytest.raises(ValueError, match="finite"):
        mean_interval([0.1, math.inf])


@pytest.mark.parametrize("n", [8, 15, 40])
def test_few_images_make_wide_intervals_that_hold(n):
    rng = np.random.default_rng(n)
    intervals = [paired_difference(rng.normal(size=n), np.zeros(n), resamples=500) for _ in range(500)]
    held = np.mean([interval.low <= 0 <= interval.high for interval in intervals])
    # 500 trials wander by .01; plain percentiles hold .89 at 8 images.
    assert 0.92 < held < 0.98


@pytest.mark.parametrize(("n", "rate"), [(10, 0.5), (30, 0.8), (100, 0.95)])
def test_wilsons_interval_holds_the_true_rate(n, rate):
    wins = np.random.default_rng(n).random((1000, n)) < rate
    found = [win_rate(row, np.full(n, 0.5)) for row in wins]
    # Counts are whole, so coverage goes in steps about .95.
    assert 0.92 < np.mean([one.low <= rate <= one.high for one in found]) < 0.99


def test_wilcoxon_by_hand_and_as_scipy():
    # Changes .3, .1, −.2, 0, and the NaN left out: ranks 3 and 1 against 2; of 8 signs 6 are as far out or farther.
    found = wilcoxon([0.8, 0.6, 0.3, 0.5, math.nan], [0.5, 0.5, 0.5, 0.5, 0.5])
    assert found == Wilcoxon(statistic=2.0, p=0.75, n=4, ties=1)
    rng = np.random.default_rng(0)
    policy, reference = rng.random(70), rng.random(70)
    theirs = stats.wilcoxon(policy, reference)
    found = wilcoxon(policy, reference)
    assert (found.statistic, found.p) == pytest.approx((theirs.statistic, theirs.pvalue), rel=1e-6)


def test_changes_that_differ_by_rounding_share_a_rank():
    # .8 − .6 and .5 − .3 are the same change, if not the same float: ranks 1.5 and 1.5, one against the other.
    assert wilcoxon([0.8, 0.3], [0.6, 0.5]).statistic == 1.5


def test_changes_of_float32_metrics_share_a_rank():
    """IoU in tenths, as measured; SciPy ranks the whole numbers."""
    rng = np.random.default_rng(4)
    policy, reference = rng.integers(0, 11, (2, 29))
    theirs = stats.wilcoxon((policy - reference)[policy != reference])
    found = wilcoxon(torch.from_numpy(policy).float() / 10, torch.from_numpy(reference).float() / 10)
    assert (found.statistic, found.p) == pytest.approx((theirs.statistic, theirs.pvalue))
    # Distances in the hundreds, in steps of .7.
    far = wilcoxon(torch.from_numpy(policy).float() * 0.7 + 300, torch.from_numpy(reference).float() * 0.7 + 300)
    assert far.statistic == theirs.statistic


def test_wilcoxon_without_any_change():
    assert wilcoxon([0.5, 0.6], [0.5, 0.6]) == Wilcoxon(statistic=0.0, p=1.0, n=2, ties=2)
    assert math.isnan(wilcoxon([math.nan], [0.5]).p)


def test_worst_first_and_only_those_that_lost():
    ids, policy = ["a", "b", "c", "d", "e"], [0.5, 0.25, 0.75, math.nan, 0.25]
    reference = [0.25, 0.5, 0.75, 0.5, 0.5]
    assert worst(ids, policy, reference, 5) == [("b", -0.25), ("e", -0.25)]
    assert worst(ids, policy, reference, 1) == [("b", -0.25)]
    assert worst(ids, reference, policy, 5) == [("a", -0.25)]
    with pytest.raises(ValueError, match=r"5 .*2"):
        worst(ids[:2], policy, reference, 5)


def test_holm_by_hand():
    # Ascending .005 .01 .03 .04 times 4 3 2 1 are .02 .03 .06 .04, and none may be below the one before.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.5]) == [1.0, 1.0]
    assert holm([]) == []
    p, nan = holm([0.04, math.nan])
    assert (p, math.isnan(nan)) == (0.04, True)


def test_students_p_belongs_to_the_interval():
    values = [0.1, 0.3, -0.1, 0.2]
    low, high = stats.t.interval(0.95, 3, loc=np.mean(values), scale=stats.sem(values))
    found = student_p(Interval(float(np.mean(values)), low, high, 4))
    assert found == pytest.approx(stats.ttest_1samp(values, 0).pvalue)
    assert student_p(Interval(0.2, 0.2, 0.2, 3)) == 0
    assert student_p(Interval(0.0, 0.0, 0.0, 3)) == 1
    assert math.isnan(student_p(Interval(0.2, math.nan, math.nan, 1)))
    assert math.isnan(student_p(Interval(math.nan, math.nan, math.nan, 5)))


def test_holm_is_wrong_about_any_of_many_as_seldom_as_it_says():
    rng = np.random.default_rng(0)
    wrong = 0
    for _ in range(1000):
        shared = rng.normal(size=5)  # as the row that all are held against
        p = stats.ttest_1samp(rng.normal(size=(12, 5)) + shared, 0, axis=1).pvalue
        wrong += min(holm(p.tolist())) < 0.05
    assert wrong / 1000 < 0.06


def drawn(rng, seeds, images, of_seed, of_image, of_both):
    """Changes with a true mean of 0: what a seed adds, what an image adds, and what is left."""
    return (
        of_seed * rng.normal(size=(seeds, 1))
        + of_image * rng.normal(size=(1, images))
        + of_both * rng.normal(size=(seeds, images))
    )


def test_with_images_of_its_own_for_each_seed_it_is_students_interval():
    folds = [[0.1, 0.3, 0.2], [0.0, 0.1], [0.4, 0.2, 0.3, 0.1]]
    ids = [["a", "b", "c"], ["d", "e"], ["f", "g", "h", "i"]]
    found = hierarchical_difference(folds, ids)
    theirs = stats.ttest_1samp([np.mean(fold) for fold in folds], 0).confidence_interval()
    assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high))
    assert found.mean == pytest.approx((0.2 + 0.05 + 0.25) / 3)
    assert (found.seeds, found.images) == (3, 9)


def test_seeds_that_agree_leave_students_interval_over_images():
    one = [0.1, -0.2, 0.4, 0.3, 0.0]
    theirs = stats.ttest_1samp(one, 0).confidence_interval()
    found = hierarchical_difference([one] * 4)
    assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high))


def test_variances_are_those_of_analysis_of_variance():
    table = drawn(np.random.default_rng(0), 4, 30, 0.1, 0.2, 0.1)
    mean, by_seed, by_image = table.mean(), table.mean(1, keepdims=True), table.mean(0, keepdims=True)
    left = ((table - by_seed - by_image + mean) ** 2).sum() / (3 * 29)
    of_images = (4 * by_image.var(ddof=1) - left) / (4 * 30)
    of_seeds = by_seed.var(ddof=1) / 4
    half = math.hypot(stats.t.ppf(0.975, 3) * of_seeds**0.5, stats.t.ppf(0.975, 29) * of_images**0.5)
    found = hierarchical_difference(list(table))
    assert (found.low, found.mean, found.high) == pytest.approx((mean - half, mean, mean + half))


@pytest.mark.parametrize(
    ("seeds", "of_seed", "of_image", "of_both"),
    [(5, 0, 0.1, 0.05), (5, 0.05, 0.05, 0.05), (5, 0, 0, 0.1), (3, 0.02, 0.1, 0.05), (10, 0.02, 0.1, 0.1)],
)
def test_the_interval_over_seeds_holds_the_truth_in_95_of_100(seeds, of_seed, of_image, of_both):
    rng = np.random.default_rng(0)
    intervals = [hierarchical_difference(drawn(rng, seeds, 40, of_seed, of_image, of_both)) for _ in range(600)]
    held = np.mean([interval.low <= 0 <= interval.high for interval in intervals])
    # 600 trials wander by .009; few seeds err to the safe side.
    assert 0.93 < held < 0.99


def test_missing_seeds_and_images_do_not_count():
    nan = math.nan
    found = hierarchical_difference([[0.2, nan, 0.4], [], [0.0, 0.2, nan], [nan, nan, nan]])
    assert found.mean == pytest.approx((0.3 + 0.1) / 2)
    assert (found.seeds, found.images) == (2, 3)
    assert found.low < 0.1 < 0.3 < found.high  # two seeds say little
    dropped = hierarchical_difference([[0.2, 0.4], [0.0, 0.2]], [["a", "c"], ["a", "b"]])
    assert found == dropped


def test_too_few_seeds_or_images_have_no_interval():
    for changes in ([], [[]], [[math.nan]]):
        found = hierarchical_difference(changes)
        assert (found.seeds, found.images) == (0, 0)
        assert math.isnan(found.mean)
    for changes in ([[0.1, 0.3]], [[0.1], [0.3]]):
        found = hierarchical_difference(changes)
        assert found.mean == pytest.approx(0.2)
        assert math.isnan(found.low)


def test_errors_of_seeds_name_the_fix():
    with pytest.raises(ValueError, match=r"2, 1 .*ids"):
        hierarchical_difference([[0.1, 0.2], [0.1]])
    with pytest.raises(ValueError, match="twice"):
        hierarchical_difference([[0.1, 0.2], [0.1]], [["a", "a"], ["b"]])


def test_a_clustered_interval_is_students_where_each_cluster_has_one_value():
    values = np.random.default_rng(0).normal(0.3, 1, 12)
    found = clustered_interval(values, [str(number) for number in range(12)])
    expected = stats.t.interval(0.95, 11, loc=values.mean(), scale=stats.sem(values))
    assert (found.low, found.high) == pytest.approx(expected)
    assert found.bound == pytest.approx(values.mean() + stats.t.ppf(0.05, 11) * stats.sem(values))
    assert (found.n, found.clusters) == (12, 12)


def test_a_clustered_interval_by_hand():
    # Clusters a: 1, 3 (weights 1, 1); b: 2 (weight 2). m = 2; sums of deviations 0 and 0.
    assert clustered_interval([1.0, 3.0, 2.0], ["a", "a", "b"], [1.0, 1.0, 2.0]).high == 2
    # a: 0, 0; b: 4. m = 4/3, sums -8/3 and 8/3: variance 2/1 · 2 · (8/3)² / 9.
    found = clustered_interval([0.0, 0.0, 4.0], ["a", "a", "b"])
    assert found.high - found.mean == pytest.approx(12.706204736 * math.sqrt(4 * (8 / 3) ** 2 / 9))
    assert math.isnan(clustered_interval([1.0, 2.0], ["a", "b"], fewest=5).bound)
    assert math.isnan(clustered_interval([], []).mean)
    with pytest.raises(ValueError, match="each of 1 values but got 2 clusters"):
        clustered_interval([1.0], ["a", "b"])

"""Intervals against SciPy, values by hand, and what coverage means."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from segdpo.metrics.statistics import mean_interval, paired_difference, win_rate


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


def test_errors_name_the_mend():
    with pytest.raises(ValueError, match="2 and 1 values; evaluate both on one loader"):
        paired_difference([0.1, 0.2], [0.1])
    with pytest.raises(ValueError, match="one finite"):
        mean_interval([0.1, math.inf])

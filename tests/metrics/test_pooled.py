"""Means over several folds, with folds as clusters: hand-made cases, bounds, and how often the intervals hold."""

import math

import numpy as np
import pytest
from scipy import stats

from segdpo.metrics import folds_of, hierarchical_difference, pooled_difference, pooled_win_rate


def names_of(fold, images):
    return [f"{fold}-{image}" for image in range(images)]


def test_runs_that_share_images_are_one_fold_also_through_a_third():
    assert folds_of([["a"], ["b"], ["c"], ["a", "b"]]) == [0, 0, 1, 0]
    assert folds_of([]) == []


def test_equal_folds_of_one_run_give_students_interval_over_folds():
    rng = np.random.default_rng(0)
    table = rng.normal(size=(5, 8))
    found = pooled_difference(list(table), [names_of(fold, 8) for fold in range(5)])
    expected = stats.ttest_1samp(table.mean(1), 0).confidence_interval()
    np.testing.assert_allclose((found.mean, found.low, found.high), (table.mean(), expected.low, expected.high))
    assert (found.n, found.folds) == (40, 5)


def test_unequal_folds_and_several_seeds_by_hand():
    """Fold a: images 1 and 3 (means over two seeds), fold b: 5. m = 3, sums of x − m: −2 and 2.

    Variance 2/1 · (4 + 4)/9 = 16/9; t_{.975, 1} = 12.7062.
    """
    changes = [[0.0, 2.0], [2.0, 4.0], [5.0]]
    found = pooled_difference(changes, [["p", "q"], ["p", "q"], ["r"]])
    assert (found.mean, found.n, found.folds) == (3.0, 3, 2)
    assert found.half == pytest.approx(12.7062 * 4 / 3, rel=1e-5)


def test_without_folds_it_is_the_interval_over_seeds_and_images():
    changes = np.random.default_rng(1).normal(size=(3, 6))
    ids = [names_of(0, 6)] * 3
    expected = hierarchical_difference(list(changes), ids)
    found = pooled_difference(list(changes), ids)
    assert (found.mean, found.low, found.high, found.folds) == (expected.mean, expected.low, expected.high, 1)


def test_a_win_rate_stays_between_0_and_1():
    """The rates of these folds, 1, 1, .96: Student's interval is .987 ± .057, up to 1.04."""
    changes = [[1.0] * 25, [1.0] * 25, [1.0] * 24 + [-1.0]]
    ids = [names_of(fold, 25) for fold in range(3)]
    found = pooled_win_rate(changes, ids)
    assert found.mean == pytest.approx(74 / 75)
    # Wilson's interval of 74 in 75: the bootstrap's [.96, 1] lies within its lower end.
    z, n, p = 1.959964, 75, 74 / 75
    middle, half = (p + z**2 / (2 * n)), z * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    assert found.low == pytest.approx((middle - half) / (1 + z**2 / n), abs=1e-5)
    assert found.high == 1.0


def test_all_or_nothing_won_is_not_certain():
    ids = [names_of(fold, 10) for fold in range(2)]
    found = pooled_win_rate([[1.0] * 10] * 2, ids)
    assert (found.mean, found.high) == (1.0, 1.0)
    assert found.low == pytest.approx(1 / (1 + 1.959964**2 / 20), abs=1e-5)
    assert pooled_win_rate([[-1.0] * 10] * 2, ids).low == 0.0


def test_ties_are_half_a_win_and_unknown_images_do_not_count():
    found = pooled_win_rate([[0.0, 1.0, math.nan], [math.nan] * 2], [names_of(0, 3), names_of(1, 2)])
    assert (found.mean, found.n, found.folds) == (0.75, 2, 1)
    assert pooled_win_rate([], []).n == 0
    assert math.isnan(pooled_difference([[math.nan]], [["a"]]).mean)


def coverage(truth, draw, interval, trials=250):
    rng = np.random.default_rng(7)
    found = [interval(*draw(rng)) for _ in range(trials)]
    return np.mean([one.low <= truth <= one.high for one in found])


def folds_with_an_effect(of_fold, of_image, folds=5):
    """Two seeds a fold; a fold's networks and images share an effect, and folds differ in size."""

    def draw(rng):
        changes, ids = [], []
        for fold in range(folds):
            images = 12 + 4 * (fold % 3)
            shared = of_fold * rng.normal() + of_image * rng.normal(size=images)
            changes += [shared + 0.5 * rng.normal(size=images) for _ in range(2)]
            ids += [names_of(fold, images)] * 2
        return changes, ids

    return draw


@pytest.mark.parametrize("of_fold", [0.0, 0.5, 2.0])
def test_the_pooled_interval_holds_with_and_without_an_effect_of_the_fold(of_fold):
    share = coverage(0.0, folds_with_an_effect(of_fold, 1.0), pooled_difference)
    # 250 trials: ± .04 at three standard errors.
    assert 0.91 <= share <= 0.99


@pytest.mark.parametrize(("rate", "of_fold"), [(0.6, 0.0), (0.9, 0.02), (0.98, 0.0), (0.98, 0.02)])
def test_the_interval_of_a_win_rate_holds(rate, of_fold):
    def draw(rng):
        spread = 1 / of_fold - 1 if of_fold else 0
        rates = rng.beta(rate * spread, (1 - rate) * spread, 5) if spread else np.full(5, rate)
        changes = [np.where(rng.random(20) < one, 1.0, -1.0) for one in rates]
        return changes, [names_of(fold, 20) for fold in range(5)]

    def interval(changes, ids):
        return pooled_win_rate(changes, ids, resamples=300)

    assert coverage(rate, draw, interval) >= 0.92

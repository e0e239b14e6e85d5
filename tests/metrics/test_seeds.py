"""The interval over seeds and images against Student's, analysis of variance, and what it promises."""

import math

import numpy as np
import pytest
from scipy import stats

from segdpo.metrics.statistics import hierarchical_difference


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
def test_it_holds_the_truth_in_95_of_100(seeds, of_seed, of_image, of_both):
    rng = np.random.default_rng(0)
    intervals = [hierarchical_difference(drawn(rng, seeds, 40, of_seed, of_image, of_both)) for _ in range(600)]
    held = np.mean([interval.low <= 0 <= interval.high for interval in intervals])
    # 600 trials wander by .009; few seeds err to the safe side.
    assert 0.93 < held < 0.99


def test_what_is_missing_does_not_count():
    nan = math.nan
    found = hierarchical_difference([[0.2, nan, 0.4], [], [0.0, 0.2, nan], [nan, nan, nan]])
    assert found.mean == pytest.approx((0.3 + 0.1) / 2)
    assert (found.seeds, found.images) == (2, 3)
    assert found.low < 0.1 < 0.3 < found.high  # two seeds say little
    dropped = hierarchical_difference([[0.2, 0.4], [0.0, 0.2]], [["a", "c"], ["a", "b"]])
    assert found == dropped


def test_too_little_for_an_interval():
    for changes in ([], [[]], [[math.nan]]):
        found = hierarchical_difference(changes)
        assert (found.seeds, found.images) == (0, 0)
        assert math.isnan(found.mean)
    for changes in ([[0.1, 0.3]], [[0.1], [0.3]]):
        found = hierarchical_difference(changes)
        assert found.mean == pytest.approx(0.2)
        assert math.isnan(found.low)


def test_errors_name_the_mend():
    with pytest.raises(ValueError, match="same images for every seed but got 2, 1 of them; give ids"):
        hierarchical_difference([[0.1, 0.2], [0.1]])
    with pytest.raises(ValueError, match="no image twice in a seed"):
        hierarchical_difference([[0.1, 0.2], [0.1]], [["a", "a"], ["b"]])

"""The best of K by hand, over all subsets, and over everything that can be drawn; the bound on its KL."""

import math
from itertools import combinations, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segdpo.metrics.preferences import best_of, best_of_kl_bound, best_probabilities


def test_by_hand():
    """Of .1, .9, .5, two at a time: .9 wins two of three subsets, .5 the third."""
    rewards, quality = np.array([0.1, 0.9, 0.5]), np.array([10.0, 20.0, 60.0])
    np.testing.assert_allclose(best_probabilities(rewards, 2), [0, 2 / 3, 1 / 3])
    assert best_of(rewards, rewards, 2) == pytest.approx((0.9 + 0.9 + 0.5) / 3)
    # What the judge likes best is not what is best.
    assert best_of(quality, rewards, 2) == pytest.approx((20 + 20 + 60) / 3)
    assert best_of(quality, rewards, 3) == pytest.approx(20)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=7), st.data())
def test_equals_the_mean_over_all_subsets(levels, data):
    size = data.draw(st.integers(1, len(levels)))
    rewards = np.array(levels, float)
    found = best_probabilities(rewards, size)
    assert found.sum() == pytest.approx(1)
    assert (found @ rewards) == pytest.approx(np.mean([max(chosen) for chosen in combinations(levels, size)]))
    for level in set(levels):
        assert np.ptp(found[rewards == level]) < 1e-12, "equals share their chance"


def test_it_is_unbiased():
    """Rewards 0, 1, 3 with chances .5, .3, .2: every draw of five masks, weighed by its probability."""
    rewards, share = np.array([0.0, 1.0, 3.0]), np.array([0.5, 0.3, 0.2])
    for size in (1, 2, 4):
        expected = sum(
            share[list(drawn)].prod() * rewards[list(drawn)].max() for drawn in product(range(3), repeat=size)
        )
        found = sum(
            share[list(drawn)].prod() * best_of(rewards[list(drawn)], rewards[list(drawn)], size)
            for drawn in product(range(3), repeat=5)
        )
        assert found == pytest.approx(expected)


@pytest.mark.parametrize("size", [1, 2, 4, 8, 16])
def test_the_bound_holds_and_is_reached_where_nothing_ties(size):
    """n masks of equal chance: the best of K is number i with (i/n)^K − ((i − 1)/n)^K."""
    for count in (2, 10, 100_000):
        steps = (np.arange(count + 1) / count) ** size
        chosen = np.diff(steps)
        divergence = float((chosen * np.log(np.maximum(chosen, 1e-300) * count)).sum())
        assert divergence <= best_of_kl_bound(size) + 1e-9
    assert divergence == pytest.approx(best_of_kl_bound(size), abs=1e-3)
    assert best_of_kl_bound(size) == pytest.approx(math.log(size) - (size - 1) / size)


def test_masks_without_a_reward_and_too_few_masks():
    assert math.isnan(best_of(np.ones(2), np.array([0.5, np.nan]), 1))
    with pytest.raises(ValueError, match="best of 1 to 2 masks, as many as were drawn, but got 3"):
        best_probabilities(np.ones(2), 3)

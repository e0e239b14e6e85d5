"""Prices of judging, against algorithms that count their own comparisons."""

import itertools
import math
from functools import partial

import pytest

from segdpo.preferences.questions import (
    adjacent_ranks,
    all_pairs,
    answers_for,
    answers_for_best,
    answers_for_best_and_worst,
    answers_for_ranking,
    best_worst,
    random_pairs,
)


def best_and_worst_by_twos(values):
    """The textbook algorithm; returns what it found and how often it compared."""
    twos = [values[start : start + 2] for start in range(0, len(values), 2)]
    high, low = [max(pair) for pair in twos], [min(pair) for pair in twos]
    return max(high), min(low), sum(len(pair) - 1 for pair in twos) + len(high) - 1 + len(low) - 1


def sorted_by_insertion(values):
    """Binary insertion; its worst case is the bound for up to four masks."""
    done, asked = [], 0
    for value in values:
        low, high = 0, len(done)
        while low < high:
            middle = (low + high) // 2
            asked += 1
            low, high = (middle + 1, high) if done[middle] < value else (low, middle)
        done.insert(low, value)
    return asked


@pytest.mark.parametrize("masks", range(2, 8))
def test_best_and_worst(masks):
    high, low, asked = best_and_worst_by_twos(list(range(masks)))
    assert (high, low) == (masks - 1, 0)
    assert answers_for_best_and_worst(masks) == asked


@pytest.mark.parametrize("masks", [1, 2, 3, 4])
def test_a_ranking_takes_what_sorting_takes_at_worst(masks):
    worst = max(sorted_by_insertion(order) for order in itertools.permutations(range(masks)))
    assert answers_for_ranking(masks) == worst


def test_no_sorting_tells_more_orders_apart_than_its_answers_can():
    for masks in range(2, 12):
        assert 2 ** answers_for_ranking(masks) >= math.factorial(masks) > 2 ** (answers_for_ranking(masks) - 1)


def test_one_pair_is_one_and_the_best_of_eight_is_seven():
    assert (answers_for_best(2), answers_for_best(8)) == (1, 7)
    assert answers_for_best_and_worst(2) == answers_for_ranking(2) == 1


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (partial(best_worst, min_gap=0.1), 4),
        (partial(all_pairs), 6),
        (partial(random_pairs, count=2), 2),
        (partial(random_pairs, count=20), 6),
        (adjacent_ranks, 5),
        (lambda scores, masks, rng: (), 5),
    ],
    ids=["best_worst", "all_pairs", "random_pairs", "random_pairs of few", "adjacent_ranks", "of somebody's own"],
)
def test_of_four_masks_each_rule_asks(rule, expected):
    assert answers_for(rule, 4) == expected
    assert answers_for(rule, 0) == 0

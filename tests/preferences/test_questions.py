"""Questions: which pairs are asked, how a judge errs, and the number of answers against algorithms that count them."""

import itertools
import math
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segdpo.data.record import Pair
from segdpo.preferences import questions
from segdpo.preferences.questions import (
    adjacent_ranks,
    all_pairs,
    answers_for,
    answers_for_best,
    answers_for_best_and_worst,
    answers_for_ranking,
    best_worst,
    bradley_terry,
    certain,
    flipped,
    random_pairs,
)

KINDS = [
    questions.best_worst,
    questions.all_pairs,
    questions.adjacent_ranks,
    partial(questions.random_pairs, count=3),
]


def different_masks(count):
    masks = np.zeros((count, 3, 4), np.uint8)
    for number, mask in enumerate(masks):
        mask.flat[:number] = 1
    return masks


def made(kind, scores, masks=None, seed=0, **options):
    masks = different_masks(len(scores)) if masks is None else masks
    pairs = kind(np.array(scores, np.float64), masks, np.random.default_rng(seed), **options)
    return [(pair.chosen, pair.rejected) for pair in pairs]


def test_which_pairs_each_kind_makes():
    scores = [0.5, 0.9, 0.1, 0.7]
    assert made(questions.best_worst, scores) == [(1, 2)]
    assert made(questions.adjacent_ranks, scores) == [(1, 3), (3, 0), (0, 2)]
    everything = {(1, 0), (0, 2), (3, 0), (1, 2), (1, 3), (3, 2)}
    assert set(made(questions.all_pairs, scores)) == everything
    drawn = [made(questions.random_pairs, scores, seed=seed, count=2) for seed in range(50)]
    assert all(len(set(pairs)) == 2 and set(pairs) <= everything for pairs in drawn)
    assert set().union(*drawn) == everything
    assert set(made(questions.random_pairs, scores, count=99)) == everything


def test_near_ties_make_no_pair():
    scores = [0.5, 0.75, 1.0, 1.0]
    assert set(made(questions.all_pairs, scores)) == {(1, 0), (2, 0), (3, 0), (2, 1), (3, 1)}
    assert set(made(questions.all_pairs, scores, min_gap=0.5)) == {(2, 0), (3, 0)}
    # Each mask with the next lower one that is far enough: mask 1 is too near to 2 and 3.
    assert made(questions.adjacent_ranks, scores, min_gap=0.5) == [(2, 0), (3, 0)]
    assert made(questions.best_worst, scores, min_gap=0.6) == []
    assert made(questions.best_worst, [0.5, 0.5]) == []


@pytest.mark.parametrize("kind", KINDS)
def test_masks_without_a_pixel_to_prefer_make_no_pair(kind):
    masks = np.zeros((2, 2, 2), np.uint8)
    assert made(kind, [0, 1], masks) == []
    masks[0, 0, 0] = 255  # different only where one of them says nothing
    assert made(kind, [0, 1], masks) == []
    masks[0, 1, 1] = 1
    assert made(kind, [0, 1], masks) == [(1, 0)]


@settings(max_examples=50, deadline=None)
@given(scores=st.lists(st.integers(0, 5), min_size=2, max_size=7), gap=st.integers(0, 3), kind=st.sampled_from(KINDS))
def test_the_better_of_two_is_chosen_and_no_pair_comes_twice(scores, gap, kind):
    pairs = made(kind, scores, min_gap=gap)
    assert all(scores[chosen] - scores[rejected] >= max(gap, 1) for chosen, rejected in pairs)
    assert len(set(pairs)) == len(pairs)
    assert bool(pairs) == (max(scores) - min(scores) >= max(gap, 1))


def test_weights_follow_the_gap():
    scores = np.array([0.0, 0.1, 0.5])
    weighed = partial(questions.by_gap, full=0.4)
    rng = np.random.default_rng(0)
    pairs = questions.all_pairs(scores, different_masks(3), rng, weight=weighed)
    assert pairs == (Pair(1, 0, 0.25), Pair(2, 0, 1.0), Pair(2, 1, 1.0))
    assert {pair.weight for pair in questions.all_pairs(scores, different_masks(3), rng)} == {1.0}


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        (certain, 1.0),
        (partial(bradley_terry, temperature=0.2), 1 / (1 + np.exp(-0.3 / 0.2))),
        (partial(flipped, probability=0.2), 0.8),
        # Right and not flipped, or wrong and flipped.
        (
            partial(flipped, probability=0.1, choice=partial(bradley_terry, temperature=0.3)),
            0.9 / (1 + np.exp(-1)) + 0.1 / (1 + np.exp(1)),
        ),
    ],
)
def test_how_often_a_judge_that_errs_chooses_the_better(choice, expected):
    masks, rng, draws = different_masks(2), np.random.default_rng(0), 20_000
    pairs = [questions.best_worst(np.array([0.4, 0.7]), masks, rng, choice=choice)[0] for _ in range(draws)]
    right = np.mean([pair.chosen == 1 for pair in pairs])
    assert right == pytest.approx(expected, abs=4 * np.sqrt(expected * (1 - expected) / draws) + 1e-12)


def test_choices_are_probabilities_that_sum_to_one():
    for choice in (certain, partial(bradley_terry, temperature=1e-3), partial(flipped, probability=0.3)):
        for first, second in [(0.0, 1.0), (-1e6, 1e6), (2.0, 2.0)]:
            assert choice(first, second) + choice(second, first) == pytest.approx(1)


@pytest.mark.parametrize("kind", KINDS)
def test_scores_that_are_none(kind):
    with pytest.raises(ValueError, match="mask 1 has nan"):
        made(kind, [0.0, np.nan])
    with pytest.raises(ValueError, match="one score for each of at least 2 masks"):
        made(kind, [0.0, 1.0, 2.0], different_masks(2))
    with pytest.raises(ValueError, match="min_gap"):
        made(kind, [0.0, 1.0], min_gap=-1)


def test_options_out_of_range():
    with pytest.raises(ValueError, match="count"):
        made(questions.random_pairs, [0, 1], count=0)
    with pytest.raises(ValueError, match="temperature"):
        bradley_terry(0, 1, temperature=0)
    with pytest.raises(ValueError, match="probability"):
        flipped(0, 1, probability=1.0)
    with pytest.raises(ValueError, match="full"):
        questions.by_gap(1, full=0)


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
    ("kind", "expected"),
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
def test_of_four_masks_each_kind_asks(kind, expected):
    assert answers_for(kind, 4) == expected
    assert answers_for(kind, 0) == 0

"""Questions: which pairs of scored candidates are asked about, how a judge may err, and what it costs in answers.

Questions are a function `(scores, masks, rng) -> pairs` whose options are bound by `functools.partial`. A pair is asked
about only if its masks differ in a pixel and their scores by at least `min_gap`; masks of equal score make no pair.
"""

import math
from collections.abc import Callable, Iterable
from itertools import combinations

import numpy as np
from scipy.special import expit

from segdpo.checks import check_range
from segdpo.data import Pair
from segdpo.masks import Masks, differ
from segdpo.preferences.judges import Scores

Questions = Callable[[Scores, Masks, np.random.Generator], tuple[Pair, ...]]
Choice = Callable[[float, float], float]
"""P(the first mask is chosen), given the scores of both."""
Weight = Callable[[float], float]
"""The weight of a pair, given the gap between its scores."""


def certain(score_a: float, score_b: float) -> float:
    """Choose the better mask, either of equals: a judge without error."""
    return 0.5 if score_a == score_b else float(score_a > score_b)


def bradley_terry(score_a: float, score_b: float, *, temperature: float) -> float:
    """σ((s_a − s_b)/T): the closer the scores, the more often the worse mask is chosen."""
    check_range("temperature", temperature, above=0)
    return float(expit((score_a - score_b) / temperature))


def flipped(score_a: float, score_b: float, *, probability: float, choice: Choice = certain) -> float:
    """Reverse the answer of `choice` with `probability`: errors that do not depend on the scores."""
    check_range("probability", probability, least=0, below=1)
    straight = choice(score_a, score_b)
    return straight * (1 - probability) + (1 - straight) * probability


def equal(gap: float) -> float:
    """Weigh every pair 1."""
    return 1.0


def by_gap(gap: float, *, full: float) -> float:
    """min(1, gap/full): pairs of nearly equal scores count less; from a gap of `full` on a pair counts 1."""
    check_range("full", full, above=0)
    return min(1.0, gap / full)


def best_worst(
    scores: Scores,
    masks: Masks,
    rng: np.random.Generator,
    *,
    min_gap: float = 0.0,
    choice: Choice = certain,
    weight: Weight = equal,
) -> tuple[Pair, ...]:
    """Ask about one pair: the best mask and the worst (the first of equals)."""
    _check(scores, masks, min_gap)
    couples = _eligible([(int(scores.argmax()), int(scores.argmin()))], scores, masks, min_gap)
    return _answered(couples, scores, rng, choice, weight)


def all_pairs(
    scores: Scores,
    masks: Masks,
    rng: np.random.Generator,
    *,
    min_gap: float = 0.0,
    choice: Choice = certain,
    weight: Weight = equal,
) -> tuple[Pair, ...]:
    """Ask about every pair, up to K(K−1)/2 an image."""
    _check(scores, masks, min_gap)
    couples = _eligible(combinations(range(len(scores)), 2), scores, masks, min_gap)
    return _answered(couples, scores, rng, choice, weight)


def random_pairs(
    scores: Scores,
    masks: Masks,
    rng: np.random.Generator,
    *,
    count: int,
    min_gap: float = 0.0,
    choice: Choice = certain,
    weight: Weight = equal,
) -> tuple[Pair, ...]:
    """Ask about `count` different pairs drawn at random, all if there are fewer."""
    if count < 1:
        raise ValueError(f"Expected count to be at least 1 but got {count}.")
    _check(scores, masks, min_gap)
    couples = _eligible(combinations(range(len(scores)), 2), scores, masks, min_gap)
    drawn = rng.permutation(len(couples))[:count]
    return _answered([couples[number] for number in sorted(drawn)], scores, rng, choice, weight)


def adjacent_ranks(
    scores: Scores,
    masks: Masks,
    rng: np.random.Generator,
    *,
    min_gap: float = 0.0,
    choice: Choice = certain,
    weight: Weight = equal,
) -> tuple[Pair, ...]:
    """Pair each mask with the next lower one in rank that is at least `min_gap` below it: at most K − 1 an image."""
    _check(scores, masks, min_gap)
    order = [int(number) for number in np.argsort(-scores, kind="stable")]
    couples = []
    for rank, upper in enumerate(order):
        below = ((upper, lower) for lower in order[rank + 1 :])
        couples += _eligible(below, scores, masks, min_gap)[:1]
    return _answered(couples, scores, rng, choice, weight)


def answers_for(questions: Questions, masks: int) -> int:
    """Return how many comparisons of two masks answer the questions about one image with `masks` candidates.

    `all_pairs` asks about each pair; questions of unknown kind need at most a ranking.
    """
    function, options = getattr(questions, "func", questions), getattr(questions, "keywords", {})
    every = masks * (masks - 1) // 2
    if function is best_worst:
        return answers_for_best_and_worst(masks)
    if function is random_pairs:
        return min(int(options["count"]), every)
    return every if function is all_pairs else answers_for_ranking(masks)


def answers_for_best(masks: int) -> int:
    """Return K − 1: each mask but the best loses one comparison.

    >>> [answers_for_best(masks) for masks in (0, 1, 2, 8)]
    [0, 0, 1, 7]
    """
    return max(0, masks - 1)


def answers_for_best_and_worst(masks: int) -> int:
    """Return ⌈3K/2⌉ − 2: compare in twos, then find the best of the winners and the worst of the losers.

    >>> [answers_for_best_and_worst(masks) for masks in (1, 2, 4, 7, 8)]
    [0, 1, 4, 9, 10]
    """
    return max(0, -(-3 * masks // 2) - 2)


def answers_for_ranking(masks: int) -> int:
    """Return ⌈log₂ K!⌉: no sorting needs fewer, and for K up to 11 merge insertion needs no more.

    >>> [answers_for_ranking(masks) for masks in (1, 2, 4, 7, 8)]
    [0, 1, 5, 13, 16]
    """
    return math.ceil(math.log2(math.factorial(masks))) if masks > 1 else 0


def _check(scores: Scores, masks: Masks, min_gap: float) -> None:
    check_range("min_gap", min_gap, least=0)
    if scores.shape != (len(masks),) or len(masks) < 2:
        raise ValueError(
            f"Expected one score for each of at least 2 masks but got scores of shape {scores.shape} "
            f"for {len(masks)} masks."
        )
    if not np.isfinite(scores).all():
        first = int(np.flatnonzero(~np.isfinite(scores))[0])
        raise ValueError(f"Expected finite scores from the judge but mask {first} has {scores[first]}; fix the judge.")


def _eligible(
    couples: Iterable[tuple[int, int]], scores: Scores, masks: Masks, min_gap: float
) -> list[tuple[int, int]]:
    def far_apart(first: int, second: int) -> bool:
        gap = abs(float(scores[first] - scores[second]))
        return gap > 0 and gap >= min_gap

    return [(a, b) for a, b in couples if far_apart(a, b) and differ(masks[a], masks[b])]


def _answered(
    couples: list[tuple[int, int]], scores: Scores, rng: np.random.Generator, choice: Choice, weight: Weight
) -> tuple[Pair, ...]:
    pairs = []
    for first, second in couples:
        first_wins = rng.random() < choice(float(scores[first]), float(scores[second]))
        chosen, rejected = (first, second) if first_wins else (second, first)
        pairs.append(Pair(chosen, rejected, weight(abs(float(scores[first] - scores[second])))))
    return tuple(pairs)

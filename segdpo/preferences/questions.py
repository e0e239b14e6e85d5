"""Which pairs are made of scored candidates, with or without errors, and what they cost in answers."""

import math
from collections.abc import Callable, Iterable
from itertools import combinations

import numpy as np
from jaxtyping import Float64
from scipy.special import expit

from segdpo.checks import check_range
from segdpo.data import Pair
from segdpo.masks import Masks, differ

Choice = Callable[[float, float], float]


def certain(score_a: float, score_b: float) -> float:
    """1 for the better, 0 for the worse, ½ for equals: a judge without error."""
    return 0.5 if score_a == score_b else float(score_a > score_b)


def bradley_terry(score_a: float, score_b: float, *, temperature: float) -> float:
    """σ((s_a − s_b)/T): the nearer the two, the more often they are mixed up."""
    check_range("temperature", temperature, above=0)
    return float(expit((score_a - score_b) / temperature))


def flipped(score_a: float, score_b: float, *, probability: float, choice: Choice = certain) -> float:
    """Turn the outcome of `choice` round with `probability`: slips that do not care how near the two are."""
    check_range("probability", probability, least=0, below=1)
    straight = choice(score_a, score_b)
    return straight * (1 - probability) + (1 - straight) * probability


Scores = Float64[np.ndarray, "K"]
Weight = Callable[[float], float]
Rule = Callable[[Scores, Masks, np.random.Generator], tuple[Pair, ...]]


def equal(gap: float) -> float:
    """1: every pair counts the same."""
    return 1.0


def by_gap(gap: float, *, full: float) -> float:
    """min(1, gap/full): near-ties count less; from a gap of `full` on a pair counts fully."""
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
    """Make one pair an image: the best mask and the worst (the first of equals)."""
    _check(scores, masks, min_gap)
    couples = _eligible([(int(scores.argmax()), int(scores.argmin()))], scores, masks, min_gap)
    return _settle(couples, scores, rng, choice, weight)


def all_pairs(
    scores: Scores,
    masks: Masks,
    rng: np.random.Generator,
    *,
    min_gap: float = 0.0,
    choice: Choice = certain,
    weight: Weight = equal,
) -> tuple[Pair, ...]:
    """Make every pair there is, up to K(K−1)/2 an image."""
    _check(scores, masks, min_gap)
    couples = _eligible(combinations(range(len(scores)), 2), scores, masks, min_gap)
    return _settle(couples, scores, rng, choice, weight)


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
    """Draw `count` different pairs an image, all if there are fewer."""
    if count < 1:
        raise ValueError(f"Expected count to be at least 1 but got {count}.")
    _check(scores, masks, min_gap)
    couples = _eligible(combinations(range(len(scores)), 2), scores, masks, min_gap)
    drawn = rng.permutation(len(couples))[:count]
    return _settle([couples[number] for number in sorted(drawn)], scores, rng, choice, weight)


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
    return _settle(couples, scores, rng, choice, weight)


def _check(scores: Scores, masks: Masks, min_gap: float) -> None:
    check_range("min_gap", min_gap, least=0)
    if scores.shape != (len(masks),) or len(masks) < 2:
        raise ValueError(
            f"Expected one score for each of at least 2 masks but got scores of shape {scores.shape} "
            f"for {len(masks)} masks."
        )
    if not np.isfinite(scores).all():
        first = int(np.flatnonzero(~np.isfinite(scores))[0])
        raise ValueError(
            f"Expected finite scores but mask {first} has {scores[first]}; let the judge return numbers only."
        )


def _eligible(
    couples: Iterable[tuple[int, int]], scores: Scores, masks: Masks, min_gap: float
) -> list[tuple[int, int]]:
    def far_apart(first: int, second: int) -> bool:
        gap = abs(float(scores[first] - scores[second]))
        return gap > 0 and gap >= min_gap

    return [(a, b) for a, b in couples if far_apart(a, b) and differ(masks[a], masks[b])]


def _settle(
    couples: list[tuple[int, int]], scores: Scores, rng: np.random.Generator, choice: Choice, weight: Weight
) -> tuple[Pair, ...]:
    pairs = []
    for first, second in couples:
        first_wins = rng.random() < choice(float(scores[first]), float(scores[second]))
        chosen, rejected = (first, second) if first_wins else (second, first)
        pairs.append(Pair(chosen, rejected, weight(abs(float(scores[first] - scores[second])))))
    return tuple(pairs)


def for_best(masks: int) -> int:
    """K − 1: each mask but the best loses once. One pair is one, the best of 8 is seven.

    >>> [for_best(masks) for masks in (0, 1, 2, 8)]
    [0, 0, 1, 7]
    """
    return max(0, masks - 1)


def for_best_and_worst(masks: int) -> int:
    """⌈3K/2⌉ − 2: compare in twos, then find the best among the winners and the worst among the losers.

    >>> [for_best_and_worst(masks) for masks in (1, 2, 4, 7, 8)]
    [0, 1, 4, 9, 10]
    """
    return max(0, -(-3 * masks // 2) - 2)


def for_ranking(masks: int) -> int:
    """⌈log₂ K!⌉: no way of sorting needs fewer, and for K up to 11 merging by insertion needs no more.

    >>> [for_ranking(masks) for masks in (1, 2, 4, 7, 8)]
    [0, 1, 5, 13, 16]
    """
    return math.ceil(math.log2(math.factorial(masks))) if masks > 1 else 0


def for_rule(rule: Rule, masks: int) -> int:
    """Return the comparisons of a rule: a pair of its own for each of `all_pairs`, at most an order for other rules."""
    function, options = getattr(rule, "func", rule), getattr(rule, "keywords", {})
    every = masks * (masks - 1) // 2
    if function is best_worst:
        return for_best_and_worst(masks)
    if function is random_pairs:
        return min(int(options["count"]), every)
    return every if function is all_pairs else for_ranking(masks)

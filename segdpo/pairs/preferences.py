"""Rules: which pairs of an image's masks become preferences, `(scores, masks, rng) -> tuple[Pair, ...]`.

All rules share their options. A pair is made only of masks that differ on a pixel neither ignores, and whose scores
differ by at least `min_gap` (equal scores never make one: a tie). `choice` draws which of the two is chosen (default:
always the better; choices.py has judges that err). `weight` says from the gap how much the pair counts (default: 1).
"""

from collections.abc import Callable, Iterable
from itertools import combinations

import numpy as np
from jaxtyping import Float64

from segdpo.checks import check_range
from segdpo.pairs.choices import Choice, certain
from segdpo.pairs.overlap import differ
from segdpo.pairs.record import Masks, Pair

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

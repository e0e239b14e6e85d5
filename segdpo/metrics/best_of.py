"""The best of K masks: what it is worth on average, from n masks that were drawn and judged, and how far it goes."""

import math

import numpy as np
from numpy.typing import NDArray

Doubles = NDArray[np.float64]


def chances(rewards: Doubles, size: int) -> Doubles:
    """Return the chance of each of n masks to be the best of `size` that are drawn of them without putting back.

    C(r, K − 1)/C(n, K) for the mask that r others are below; those judged the same share theirs. Σ chance · reward is
    then the mean of the maximum over all subsets: an unbiased estimate of the best of K, which all n masks serve.

    >>> chances(np.array([0.1, 0.9, 0.5]), 2).round(3).tolist()
    [0.0, 0.667, 0.333]
    """
    count = len(rewards)
    if not 1 <= size <= count:
        raise ValueError(f"Expected the best of 1 to {count} masks, as many as were drawn, but got {size}.")
    by_rank = np.array([math.comb(below, size - 1) / math.comb(count, size) for below in range(count)])
    found = np.empty(count)
    found[np.argsort(rewards, kind="stable")] = by_rank
    _, group = np.unique(rewards, return_inverse=True)
    return np.asarray((np.bincount(group, found) / np.bincount(group))[group])


def best_of(values: Doubles, rewards: Doubles, size: int) -> float:
    """Return the mean of `values` of the mask that `rewards` choose among `size`; NaN where a mask has no reward.

    >>> masks = np.array([0.25, 0.75])
    >>> best_of(masks, masks, 1), best_of(masks, masks, 2)
    (0.5, 0.75)
    """
    if np.isnan(rewards).any():
        return math.nan
    return float((chances(rewards, size) * values).sum())


def bound(size: int) -> float:
    """Return log K − (K − 1)/K: what KL(best of K ‖ drawn from) is at most, whatever judges.

    Beirami et al., "Theoretical guarantees on the best-of-n alignment policy", 2024: equal where no two masks are
    judged the same.

    >>> [round(bound(size), 3) for size in (1, 2, 16)]
    [0.0, 0.193, 1.835]
    """
    return math.log(size) - (size - 1) / size

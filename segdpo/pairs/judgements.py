"""How many answers to "which of these two masks is better?" a set of preferences takes: the price of judging.

A simulated judge scores every mask, a person compares two. What is counted is the fewest comparisons that always
suffice for what a rule, or a loss, has to know of the K different masks of an image.
"""

import math

from segdpo.pairs.preferences import Rule, all_pairs, best_worst, random_pairs


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

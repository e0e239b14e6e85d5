"""Choices: the probability that a simulated judge prefers mask a to mask b, from their scores.

A rule draws each outcome with it: `rule(…, choice=partial(bradley_terry, temperature=0.1))`.
"""

from collections.abc import Callable

from scipy.special import expit

from segdpo.checks import check_range

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

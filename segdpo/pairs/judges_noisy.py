"""A judge that errs, for studies: noise on the scores, so that all its preferences of an image fit one ranking.

Its sibling errs pair by pair and may contradict itself: the `choice` of a rule (choices.py).
"""

import numpy as np

from segdpo.checks import check_range
from segdpo.pairs.judges import Judge, Scores
from segdpo.pairs.record import Masks, Record


def gumbel(record: Record, masks: Masks, rng: np.random.Generator, *, judge: Judge, temperature: float) -> Scores:
    """Return the judge's scores + T·Gumbel noise: P(a above b) = σ((s_a − s_b)/T), Bradley–Terry for every pair.

    Whole rankings follow Plackett–Luce. `temperature` T is in units of the judge's scores.
    """
    check_range("temperature", temperature, above=0)
    scores = judge(record, masks, rng)
    return scores + temperature * rng.gumbel(size=len(scores))

"""Margins s⁺ − s⁻ that no sum over logits gives: the plain path, and log-odds of several classes.

The fast path is sparse.py: with one shared set of pixels and one weight for both masks, log-sum-exp cancels,

    s⁺ − s⁻ = Σ_{i: y⁺ ≠ y⁻} w_i (z_i[y⁺_i] − z_i[y⁻_i])

so the gradient needs no logits, agreeing pixels get exactly zero, and two large sums are never subtracted.
"""

import torch

from segdpo.kernels.pair_index import PairIndex
from segdpo.kernels.pixels import Labels, Logits, Measure, PerPair, log_odds_rows, pixel_scores, score_dtype
from segdpo.kernels.sparse import entry_weights, poison, sum_rows


def dense_margin(logits: Logits, chosen: Labels, rejected: Labels, measure: Measure) -> PerPair:
    """Return Σ weight · (score of chosen − score of rejected) with every pixel scored under both masks."""
    plus, minus = (pixel_scores(logits, labels, measure.image_index, measure.quantity) for labels in (chosen, rejected))
    return torch.where(chosen != rejected, measure.spread(plus - minus), 0.0).sum(1)


def log_odds_margin(logits: Logits, index: PairIndex, measure: Measure) -> PerPair:
    """Return the same number, of log-odds of several classes, from the pixels where the masks differ."""
    # Here log-sum-exp does not cancel (each class is left out of its own), but agreeing pixels still do.
    pair = index.pair()
    pixel = index.position - pair * index.pixels
    image = pair if measure.image_index is None else measure.image_index.index_select(0, pair)
    rows = logits.movedim(1, -1)[image, pixel].to(score_dtype(logits))
    plus, minus = (log_odds_rows(rows, ids.clamp(0, logits.shape[1] - 1)) for ids in (index.plus, index.minus))
    steps = plus - minus + poison(index, logits.shape[1])
    return sum_rows(entry_weights(measure, index) * steps, index).to(steps.dtype)

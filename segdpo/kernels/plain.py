"""Scores pixel by pixel with log-softmax and gather: what the faster kernels are tested against."""

from collections.abc import Sequence

import torch

from segdpo.kernels.index import PairIndex
from segdpo.kernels.pixels import (
    Labels,
    Logits,
    Measure,
    PerPair,
    Scores,
    log_odds_rows,
    pixel_scores,
    score_dtype,
    whole_score,
)
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


def reference_scores(
    logits: Logits,
    chosen: Labels,
    rejected: Labels,
    measures: Sequence[Measure],
    wants_chosen: Sequence[bool],
    *,
    index: PairIndex | None = None,
    in_place: bool = False,
) -> Scores:
    """Return margins and chosen scores with every pixel of every mask scored by log-softmax and gather."""
    _refuse(in_place)
    margins = [dense_margin(logits, chosen, rejected, measure) for measure in measures]
    return margins, _whole(logits, chosen, measures, wants_chosen)


def log_odds_scores(
    logits: Logits,
    chosen: Labels,
    rejected: Labels,
    measures: Sequence[Measure],
    wants_chosen: Sequence[bool],
    *,
    index: PairIndex | None = None,
    in_place: bool = False,
) -> Scores:
    """Return the same where log-sum-exp does not cancel but agreeing pixels do; without an index the plain way."""
    if index is None:
        return reference_scores(logits, chosen, rejected, measures, wants_chosen, in_place=in_place)
    _refuse(in_place)
    margins = [log_odds_margin(logits, index, measure) for measure in measures]
    return margins, _whole(logits, chosen, measures, wants_chosen)


def _whole(
    logits: Logits, chosen: Labels, measures: Sequence[Measure], wants_chosen: Sequence[bool]
) -> list[PerPair | None]:
    asked = zip(measures, wants_chosen, strict=True)
    return [whole_score(logits, chosen, measure) if wants else None for measure, wants in asked]


def _refuse(in_place: bool) -> None:
    if in_place:
        raise ValueError(
            "Expected in_place=True with log_likelihood, or with log_odds of one channel, on the backends sparse or "
            "triton, since only they write the whole gradient in one go; leave in_place out."
        )

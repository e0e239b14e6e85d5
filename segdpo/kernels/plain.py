"""The backend "reference": log-softmax and gather at every pixel, which the faster kernels are tested against."""

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
from segdpo.kernels.sparse import entry_weights, nan_if_illegal, sum_rows


def reference_scores(
    logits: Logits,
    chosen: Labels,
    rejected: Labels,
    measures: Sequence[Measure],
    wants_chosen: Sequence[bool],
    *,
    index: PairIndex | None = None,
) -> Scores:
    """Return margins and chosen scores from every pixel of every mask; `index` is not used."""
    margins = [dense_margin(logits, chosen, rejected, measure) for measure in measures]
    return margins, _chosen_scores(logits, chosen, measures, wants_chosen)


def log_odds_scores(
    logits: Logits,
    chosen: Labels,
    rejected: Labels,
    measures: Sequence[Measure],
    wants_chosen: Sequence[bool],
    *,
    index: PairIndex | None = None,
) -> Scores:
    """Return margins and chosen scores in log-odds of several classes, where log-sum-exp does not cancel.

    Agreeing pixels still cancel, so an index saves reading them; without one every pixel is read.
    """
    if index is None:
        return reference_scores(logits, chosen, rejected, measures, wants_chosen)
    margins = [_log_odds_margin(logits, index, measure) for measure in measures]
    return margins, _chosen_scores(logits, chosen, measures, wants_chosen)


def dense_margin(logits: Logits, chosen: Labels, rejected: Labels, measure: Measure) -> PerPair:
    """Return Σ weight · (score of chosen − score of rejected) with every pixel scored under both masks."""
    plus, minus = (pixel_scores(logits, labels, measure.image_index, measure.quantity) for labels in (chosen, rejected))
    return torch.where(chosen != rejected, measure.spread(plus - minus), 0.0).sum(1)


def _log_odds_margin(logits: Logits, index: PairIndex, measure: Measure) -> PerPair:
    pair = index.pair()
    pixel = index.position - pair * index.pixels
    image = pair if measure.image_index is None else measure.image_index.index_select(0, pair)
    rows = logits.movedim(1, -1)[image, pixel].to(score_dtype(logits))
    plus, minus = (log_odds_rows(rows, ids.clamp(0, logits.shape[1] - 1)) for ids in (index.plus, index.minus))
    differences = plus - minus + nan_if_illegal(index, logits.shape[1])
    return sum_rows(entry_weights(measure, index) * differences, index).to(differences.dtype)


def _chosen_scores(
    logits: Logits, chosen: Labels, measures: Sequence[Measure], wants_chosen: Sequence[bool]
) -> list[PerPair | None]:
    wanted = zip(measures, wants_chosen, strict=True)
    return [whole_score(logits, chosen, measure) if wants else None for measure, wants in wanted]

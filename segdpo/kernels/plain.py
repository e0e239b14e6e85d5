"""Scores one after another: the truth that faster kernels are tested against, and log-odds of several classes."""

from collections.abc import Sequence

from segdpo.kernels.margin import dense_margin, log_odds_margin
from segdpo.kernels.pair_index import PairIndex
from segdpo.kernels.pixels import Labels, Logits, Measure, PerPair, Scores, whole_score


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

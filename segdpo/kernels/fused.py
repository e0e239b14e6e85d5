"""All scores of a loss at once: one pass over the logits forward, one gradient tensor backward.

A loss such as dpo on the disagreement with an anchor on the image reads two scores of the same logits. Each margin is
a sum over the pixels where masks differ, each chosen score one over whole masks, and both are linear in sums that do
not depend on who asks. So the sums are taken together, and their gradients are written into one tensor.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from segdpo.kernels.pair_index import PairIndex, index_of
from segdpo.kernels.pixels import (
    EvenMeasure,
    Labels,
    Logits,
    Measure,
    PerPair,
    Scores,
    log_sum_exp_cancels,
    score_dtype,
    step_factor,
    whole_score,
)
from segdpo.kernels.planes import Planes
from segdpo.kernels.sparse import entry_weights
from segdpo.kernels.sums import Steps, sums_of


def fused_scores(
    logits: Logits,
    chosen: Labels,
    rejected: Labels,
    measures: Sequence[Measure],
    wants_chosen: Sequence[bool],
    *,
    index: PairIndex | None = None,
    in_place: bool = False,
) -> Scores:
    """Return the margin of every measure, and the chosen score of those that want it.

    For log-likelihood, and for log-odds of one channel, where log-sum-exp cancels. Whole masks are read only if a
    chosen score is wanted; they must then hold legal classes everywhere. With `in_place` the backward writes the
    gradient over the logits, whose values are lost.
    """
    if index is None:
        index = index_of(chosen, rejected, torch.ones_like(chosen, dtype=torch.bool))
    weights: list[Tensor | None] = [
        entry_weights(measure, index) for measure in measures if not isinstance(measure, EvenMeasure)
    ]
    if len(weights) < len(measures):
        weights.append(None)  # even measures share one sum, and weigh it afterwards
    wanted = [measure for measure, wants in zip(measures, wants_chosen, strict=True) if wants]
    # Chunks are for a CPU's cache; elsewhere PyTorch's own kernels do better.
    planes = Planes(chosen, wanted) if wanted and logits.device.type == "cpu" else None
    sums, whole = sums_of(logits, Steps(index, measures[0].image_index, weights), planes, in_place=in_place)
    if whole is None:
        scores = iter([whole_score(logits, chosen, measure) for measure in wanted])
    else:
        scores = iter(whole.to(score_dtype(logits)).unbind(0))
    assert sums is not None
    margins = [margin.to(score_dtype(logits)) for margin in _margins(sums, measures)]
    return margins, [next(scores) if wants else None for wants in wants_chosen]


def fused_chosen(logits: Logits, chosen: Labels, measure: Measure) -> PerPair:
    """Return the chosen score alone."""
    if logits.device.type != "cpu" or not log_sum_exp_cancels(measure.quantity, logits.shape[1]):
        return whole_score(logits, chosen, measure)
    _, whole = sums_of(logits, None, Planes(chosen, [measure]))
    assert whole is not None
    return whole[0].to(score_dtype(logits))


def _margins(sums: Tensor, measures: Sequence[Measure]) -> list[Tensor]:
    uneven = iter(sums.unbind(0))
    found = []
    for measure in measures:
        total = sums[-1] * measure.weights[:, 0] if isinstance(measure, EvenMeasure) else next(uneven)
        found.append(total * step_factor(measure.quantity))
    return found

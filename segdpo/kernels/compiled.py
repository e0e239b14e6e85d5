"""The plain form, fused by torch.compile into one pass: for few classes, and where Triton's kernels do not run."""

from collections.abc import Callable, Sequence
from functools import cache

import torch
from torch import Tensor

from segdpo.kernels.pixels import Labels, Logits, Measure, Scores
from segdpo.kernels.plain import reference_scores


def compiled_scores(
    logits: Logits,
    chosen: Labels,
    rejected: Labels,
    measures: Sequence[Measure],
    wants_chosen: Sequence[bool],
    *,
    index: object = None,
    in_place: bool = False,
) -> Scores:
    """Return the margin of every measure, and the chosen score of those that want it; `index` is not needed.

    Compiled at the first call for each kind of loss (its quantities and which scores it wants), not for each size.
    """
    if in_place:
        raise ValueError('Expected in_place=True with backend "sparse" or "triton" but got "compiled"; leave it out.')
    tables = [(measure.inside, measure.weights, measure.weigh_by) for measure in measures]
    quantities = tuple(measure.quantity for measure in measures)
    return _compiled()(logits, chosen, rejected, tables, measures[0].image_index, quantities, tuple(wants_chosen))


def _dense(
    logits: Tensor,
    chosen: Tensor,
    rejected: Tensor,
    tables: list[tuple[Tensor, Tensor, Tensor]],
    image_index: Tensor | None,
    quantities: tuple[str, ...],
    wants_chosen: tuple[bool, ...],
) -> Scores:
    measures = [Measure(*table, image_index, quantity) for table, quantity in zip(tables, quantities, strict=True)]
    return reference_scores(logits, chosen, rejected, measures, wants_chosen)


@cache
def _compiled() -> Callable[..., Scores]:
    # Sizes are symbols from the first call on: else the eighth new size makes torch fall back without a word.
    return torch.compile(_dense, dynamic=True, fullgraph=True)

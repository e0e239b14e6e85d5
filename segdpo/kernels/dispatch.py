"""Which kernel computes the scores: the one place that decides, from measurements (docs/performance.md)."""

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from segdpo.kernels.index import PairIndex
from segdpo.kernels.pixels import Labels, Logits, Measure, PerPair, Scores, log_sum_exp_cancels
from segdpo.kernels.plain import log_odds_scores, reference_scores
from segdpo.kernels.sparse import sparse_scores
from segdpo.kernels.triton_scores import is_usable, triton_scores

Backend = Literal["auto", "sparse", "triton", "reference"]
BACKENDS: dict[str, Callable[..., Scores]] = {
    "sparse": sparse_scores,
    "triton": triton_scores,
    "reference": reference_scores,
}


def choose_backend(
    logits: Tensor, *, wants_chosen: bool = False, index: bool = False, overlaps: bool = False
) -> Backend:
    """Return the name of the fastest backend that can score these logits.

    Under torch.compile this is "reference": the compiler fuses the plain form into one pass, and the other backends
    would break the graph. On a GPU, Triton is chosen in three cases: whole masks are read; no index is given, since
    finding where masks differ waits for the device; or several pairs of an image may share a pixel (`overlaps`), since
    a scatter would add their gradients in an undefined order.
    """
    if torch.compiler.is_compiling():
        return "reference"
    if logits.device.type == "cuda" and is_usable(logits) and (wants_chosen or overlaps or not index):
        return "triton"
    return "sparse"


def scores_by(
    backend: str,
    logits: Logits,
    chosen: Labels,
    rejected: Labels,
    measures: Sequence[Measure],
    wants_chosen: Sequence[bool],
    *,
    index: PairIndex | None = None,
) -> Scores:
    """Return the margin of every measure, and the chosen score of those that want it."""
    whole: dict[int, PerPair | None] = {}
    margins: dict[int, PerPair] = {}
    cancels = [log_sum_exp_cancels(measure.quantity, logits.shape[1]) for measure in measures]
    for function, kind in ((BACKENDS[backend], True), (log_odds_scores, False)):
        own = [number for number, linear in enumerate(cancels) if linear is kind]
        if own:
            some, wants = [measures[number] for number in own], [wants_chosen[number] for number in own]
            found = function(logits, chosen, rejected, some, wants, index=index)
            margins |= zip(own, found[0], strict=True)
            whole |= zip(own, found[1], strict=True)
    return [margins[number] for number in range(len(measures))], [whole[number] for number in range(len(measures))]

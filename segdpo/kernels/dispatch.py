"""Which kernel scores: the one place that decides, by what was measured (docs/performance.md)."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from segdpo.kernels.compiled import compiled_scores
from segdpo.kernels.fused import fused_scores
from segdpo.kernels.index import PairIndex
from segdpo.kernels.pixels import Labels, Logits, Measure, PerPair, Scores, log_sum_exp_cancels
from segdpo.kernels.plain import log_odds_scores, reference_scores
from segdpo.kernels.triton_scores import is_usable, triton_scores

BACKENDS: dict[str, Callable[..., Scores]] = {
    "sparse": fused_scores,
    "compiled": compiled_scores,
    "triton": triton_scores,
    "reference": reference_scores,
}


def choose_backend(logits: Tensor, *, wants_chosen: bool = False, index: bool = False, meets: bool = False) -> str:
    """Return the name of the fastest backend that can score these logits.

    Under a compiler the plain form: the compiler fuses it into one pass, and the others would break its graph. On a
    GPU, Triton wherever whole masks are read; where somebody would have to look for where masks differ, which waits for
    the device; and where several pairs of an image meet in a pixel (`meets`), since a scatter would add them in any
    order. "compiled" is never chosen: on a CPU it was slower than "sparse" for 1, 2, 3 and 21 classes, margins alone or
    with chosen scores.
    """
    if torch.compiler.is_compiling():
        return "reference"
    if logits.device.type == "cuda" and is_usable(logits) and (wants_chosen or meets or not index):
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
    in_place: bool = False,
) -> Scores:
    """Return the margin of every measure, and the chosen score of those that want it."""
    whole: dict[int, PerPair | None] = {}
    margins: dict[int, PerPair] = {}
    cancels = [log_sum_exp_cancels(measure.quantity, logits.shape[1]) for measure in measures]
    for function, kind in ((BACKENDS[backend], True), (log_odds_scores, False)):
        own = [number for number, linear in enumerate(cancels) if linear is kind]
        if own:
            some, wants = [measures[number] for number in own], [wants_chosen[number] for number in own]
            found = function(logits, chosen, rejected, some, wants, index=index, in_place=in_place)
            margins |= zip(own, found[0], strict=True)
            whole |= zip(own, found[1], strict=True)
    return [margins[number] for number in range(len(measures))], [whole[number] for number in range(len(measures))]

"""L6: what float32 loses of a summed margin, against float64."""

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from bench.cases import make_case
from bench.rounds import ticking
from bench.row import Row, at_most
from bench.scale import Scale
from segdpo import score_pairs

CLASSES = 21


def rows(scale: Scale, folder: Path) -> Iterator[Row]:
    """Measure the error of the margin of one pair, summed over the image, on new tensors each round."""
    sides: dict[str, list[float]] = {"naive": [], "ours": []}
    for seed in ticking(range(scale.rounds), "error against float64"):
        case = make_case(1, CLASSES, scale.error_side, scale.device, seed)
        generator = torch.Generator().manual_seed(seed)
        logits = 3 * torch.randn(1, CLASSES, scale.error_side, scale.error_side, generator=generator)
        logits = logits.to(scale.device)
        exact = two_sums(logits.double(), *case.wide)
        margin = score_pairs(logits, case.chosen, case.rejected, reduction="sum").margin
        sides["ours"].append(float((margin.double() - exact).abs()))
        sides["naive"].append(float((two_sums(logits, *case.wide).double() - exact).abs()))
    where = f"C = {CLASSES}, 1 × {scale.error_side}², a tenth differs"
    yield Row("L6", f"error of the summed margin; {where}", "nats", sides, ("ours",), at_most(1e-2))


def two_sums(logits: Tensor, chosen: Tensor, rejected: Tensor) -> Tensor:
    """Return the margin as the difference of two whole sums of log-likelihoods."""
    log_probs = logits.log_softmax(1)
    plus, minus = (log_probs.gather(1, mask[:, None]).sum() for mask in (chosen, rejected))
    return plus - minus

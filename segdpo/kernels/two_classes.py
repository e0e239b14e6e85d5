"""Pixels of two classes, from one channel's logit or from the difference of two, d: log p(1) = log σ(d).

log σ(±d) = min(±d, 0) + log σ(|d|), whose second part does not depend on the label. Since ½ ≤ σ(|d|) ≤ 1, sixteen of
them can be multiplied before the logarithm, which on a CPU costs more than all the rest.
"""

import torch
from jaxtyping import Float, Integer, UInt8
from torch import Tensor

Row = Float[Tensor, "chunk"]
Label = Integer[Tensor, "chunk"]

TOGETHER = 16


def odds_of(chunk: Float[Tensor, "channels chunk"]) -> Row:
    """Return log p(1)/p(0)."""
    return chunk[0] if len(chunk) == 1 else chunk[1] - chunk[0]


def signed(odds: Row, label: Label) -> Row:
    """Return the log-odds of a label: ±d."""
    return label.to(odds.dtype).mul_(2).sub_(1).mul_(odds)


def sum_log_likelihood(odds: Row, label: Label, inside: UInt8[Tensor, "chunk"] | None) -> Float[Tensor, ""]:
    """Return Σ log p of a label over the pixels inside (None: all), in fp64."""
    linear, p = signed(odds, label).clamp_(max=0), odds.abs().sigmoid_()
    if inside is not None:
        linear.mul_(inside)
        p.sub_(1).mul_(inside).add_(1)  # exact, as ½ ≤ p ≤ 1
    return linear.sum(dtype=torch.float64) + _sum_log(p)


def _sum_log(p: Row) -> Float[Tensor, ""]:
    even = len(p) - len(p) % TOGETHER
    total = p[:even].view(TOGETHER, -1).prod(0).log_().sum(dtype=torch.float64)
    return total if even == len(p) else total + p[even:].log_().sum(dtype=torch.float64)

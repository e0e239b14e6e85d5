"""Objectives of pairs: functions of the margins of policy and reference."""

import math
from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from segdpo.checks import check_range
from segdpo.scores import PairScores

Term = TypeVar("Term", bound=Callable[..., Any])


def requires(**allowed: tuple[str, ...]) -> Callable[[Term], Term]:
    """Mark a term as defined only on some scores: `@requires(reduction=("mean",))`."""

    def mark(term: Term) -> Term:
        term.requires = allowed  # type: ignore[attr-defined]
        return term

    return mark


MEANS = ("mean", "class_balanced")


def dpo(policy: PairScores, reference: PairScores, *, beta: float, label_smoothing: float = 0.0) -> Tensor:
    """−(1−ε) log σ(βh) − ε log σ(−βh), ε = `label_smoothing` (cDPO).

    Rafailov et al., "Direct Preference Optimization", 2023; ε: Mitchell, "A note on DPO with noisy preferences", 2023.
    """
    check_range("beta", beta, above=0)
    check_range("label_smoothing", label_smoothing, least=0, below=0.5)
    h = beta * (policy.margin - reference.margin)
    return -(1 - label_smoothing) * F.logsigmoid(h) - label_smoothing * F.logsigmoid(-h)


def robust_dpo(policy: PairScores, reference: PairScores, *, beta: float, label_smoothing: float) -> Tensor:
    """[−(1−ε) log σ(βh) + ε log σ(−βh)] / (1−2ε): unbiased when a share ε of the labels is flipped.

    Chowdhury et al., "Provably Robust DPO", 2024.
    """
    check_range("beta", beta, above=0)
    check_range("label_smoothing", label_smoothing, least=0, below=0.5)
    h = beta * (policy.margin - reference.margin)
    flipped = label_smoothing * F.logsigmoid(-h) - (1 - label_smoothing) * F.logsigmoid(h)
    return flipped / (1 - 2 * label_smoothing)


def ipo(policy: PairScores, reference: PairScores, *, beta: float) -> Tensor:
    """(h − 1/(2β))²: a constant margin, no further.

    Azar et al., "A General Theoretical Paradigm to Understand Learning from Human Preferences", 2023.
    """
    check_range("beta", beta, above=0)
    return (policy.margin - reference.margin - 1 / (2 * beta)) ** 2


def slic(policy: PairScores, reference: PairScores, *, beta: float) -> Tensor:
    """max(0, 1 − βh): silent once the margin is wide enough.

    Zhao et al., "SLiC-HF", 2023; with the reference's margin as in Liu et al., "RSO", 2023.
    """
    check_range("beta", beta, above=0)
    return F.relu(1 - beta * (policy.margin - reference.margin))


def bdpo(policy: PairScores, reference: PairScores, *, beta: float, lam: float) -> Tensor:
    """−log σ(βr⁺ − β log(λ e^{r⁻} + 1 − λ)): what the rejected mask can give is bounded.

    Cho et al., "Rethinking DPO: The Role of Rejected Responses in Preference Misalignment", 2025.
    """
    check_range("beta", beta, above=0)
    check_range("lam", lam, above=0, below=1)
    chosen = policy.chosen - reference.chosen
    rejected = chosen - (policy.margin - reference.margin)
    rest = torch.full_like(rejected, math.log1p(-lam))
    return -F.logsigmoid(beta * (chosen - torch.logaddexp(math.log(lam) + rejected, rest)))


def dpop(policy: PairScores, reference: PairScores, *, beta: float, lam: float) -> Tensor:
    """−log σ(β[h − λ max(0, −r⁺)]): a chosen mask that falls below the reference costs margin.

    Pal et al., "Smaug: Fixing Failure Modes of Preference Optimisation with DPO-Positive", 2024.
    """
    check_range("beta", beta, above=0)
    check_range("lam", lam, least=0)
    fallen = F.relu(reference.chosen - policy.chosen)
    return -F.logsigmoid(beta * (policy.margin - reference.margin - lam * fallen))


def cpo(policy: PairScores, *, beta: float) -> Tensor:
    """−log σ(β(s⁺ − s⁻)): no reference; goes with an `nll` anchor.

    Xu et al., "Contrastive Preference Optimization", 2024.
    """
    check_range("beta", beta, above=0)
    return -F.logsigmoid(beta * policy.margin)


@requires(reduction=MEANS)
def simpo(policy: PairScores, *, beta: float, gamma: float) -> Tensor:
    """−log σ(β(s̄⁺ − s̄⁻) − γ) on mean scores: no reference, a target margin γ.

    Meng et al., "SimPO", 2024.
    """
    check_range("beta", beta, above=0)
    check_range("gamma", gamma, least=0)
    return -F.logsigmoid(beta * policy.margin - gamma)


@requires(quantity=("log_likelihood",), reduction=MEANS)
def orpo(policy: PairScores, *, lam: float) -> Tensor:
    """−s̄⁺ − λ log σ(log-odds(y⁺) − log-odds(y⁻)), log-odds(y) = s̄ − log(1 − e^{s̄}): no reference.

    Hong et al., "ORPO: Monolithic Preference Optimization without Reference Model", 2024.
    """
    check_range("lam", lam, least=0)
    # log-odds(y⁺) − log-odds(y⁻), with the margin kept exact.
    ratio = policy.margin - _log1mexp(policy.chosen) + _log1mexp(policy.rejected)
    return -policy.chosen - lam * F.logsigmoid(ratio)


@requires(reduction=MEANS)
def arpo(policy: PairScores, *, beta: float, scale: float = 0.9, rate: float = 0.4) -> Tensor:
    """−log σ(β(s̄⁺ − τ_θ s̄⁻)), τ_θ = min(1, scale·e^{rate·z} − 1), z = abs(s̄⁺ − s̄⁻).

    Near-equal masks are rejected less. Goes with an `nll` anchor.
    Xu et al., "X-ALMA" (adaptive-rejection preference optimization), 2024.
    """
    check_range("beta", beta, above=0)
    check_range("scale", scale, above=0)
    check_range("rate", rate, least=0)
    # Clamped before the exponential: the same τ, but no ∞·0 in the gradient of masks that are far apart.
    tau = scale * torch.exp((rate * policy.margin.abs()).clamp(max=math.log(2 / scale))) - 1
    return -F.logsigmoid(beta * (policy.chosen - tau * policy.rejected))


def sft(policy: PairScores) -> Tensor:
    """−s⁺: supervised fine-tuning on the chosen masks, the baseline that every preference loss must beat."""
    return -policy.chosen


def _log1mexp(score: Tensor) -> Tensor:
    """log(1 − e^s) for s < 0, each half by the form that keeps its digits (Mächler, 2012)."""
    # A mean log-likelihood of exactly 0 has infinite odds: stop one rounding step short of it.
    score = score.clamp(max=-torch.finfo(score.dtype).eps)
    near_zero = score > -math.log(2)
    # Each branch sees only its own half, or the unused branch's gradient is NaN.
    small = torch.log(-torch.expm1(torch.where(near_zero, score, -1.0)))
    large = torch.log1p(-torch.exp(torch.where(near_zero, -1.0, score)))
    return torch.where(near_zero, small, large)

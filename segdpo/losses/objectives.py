"""Objectives of pairs: functions of the scores of both masks under the policy and the reference.

In the formulas s± are the scores of the chosen and the rejected mask (`policy.chosen`, `policy.rejected`), r± = s±_θ −
s±_ref the gains over the reference, and h = r⁺ − r⁻ the gain of the margin. `policy` and `reference` hold one score for
each pair, and every function returns one value for each pair. Hyperparameters are bound with `functools.partial`.
"""

import math
from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from segdpo.checks import check_range
from segdpo.scores import PairScores

Term = TypeVar("Term", bound=Callable[..., Any])
MEANS = ("mean", "class_balanced")


def requires(**allowed: tuple[str, ...]) -> Callable[[Term], Term]:
    """Mark a term as defined only on some scores: `@requires(reduction=("mean",))`."""

    def mark(term: Term) -> Term:
        term.requires = allowed  # type: ignore[attr-defined]
        return term

    return mark


def dpo(policy: PairScores, reference: PairScores, *, beta: float, label_smoothing: float = 0.0) -> Tensor:
    """Direct preference optimisation (DPO): −(1−ε) log σ(βh) − ε log σ(−βh).

    Rafailov et al., "Direct Preference Optimization", 2023; ε > 0 (cDPO): Mitchell, "A note on DPO with noisy
    preferences", 2023.

    Args:
        policy: scores [pairs].
        reference: scores [pairs].
        beta: β > 0; a larger one keeps the policy nearer to the reference.
        label_smoothing: ε, the share of pairs whose preference is the wrong way round.

    >>> even = PairScores(chosen=torch.tensor([-1.0]), rejected=torch.tensor([-1.0]))
    >>> dpo(even, even, beta=1.0)  # ln 2
    tensor([0.6931])
    """
    check_range("beta", beta, above=0)
    check_range("label_smoothing", label_smoothing, least=0, below=0.5)
    h = beta * (policy.margin - reference.margin)
    return -(1 - label_smoothing) * F.logsigmoid(h) - label_smoothing * F.logsigmoid(-h)


def robust_dpo(policy: PairScores, reference: PairScores, *, beta: float, label_smoothing: float) -> Tensor:
    """Robust DPO: [−(1−ε) log σ(βh) + ε log σ(−βh)] / (1−2ε), unbiased if a share ε of the preferences is flipped.

    Chowdhury et al., "Provably Robust DPO", 2024.

    Args:
        policy: scores [pairs].
        reference: scores [pairs].
        beta: β > 0.
        label_smoothing: ε < ½.
    """
    check_range("beta", beta, above=0)
    check_range("label_smoothing", label_smoothing, least=0, below=0.5)
    h = beta * (policy.margin - reference.margin)
    flipped = label_smoothing * F.logsigmoid(-h) - (1 - label_smoothing) * F.logsigmoid(h)
    return flipped / (1 - 2 * label_smoothing)


def ipo(policy: PairScores, reference: PairScores, *, beta: float) -> Tensor:
    """Identity preference optimisation (IPO): (h − 1/(2β))².

    Azar et al., "A General Theoretical Paradigm to Understand Learning from Human Preferences", 2023.

    Args:
        policy: scores [pairs].
        reference: scores [pairs].
        beta: β > 0; the target of h is 1/(2β).

    >>> policy, reference = (PairScores(torch.tensor([s]), torch.tensor([-2.0])) for s in (-1.0, -2.0))
    >>> ipo(policy, reference, beta=0.5)  # h = 1 is the target
    tensor([0.])
    """
    check_range("beta", beta, above=0)
    return (policy.margin - reference.margin - 1 / (2 * beta)) ** 2


def slic(policy: PairScores, reference: PairScores, *, beta: float) -> Tensor:
    """SLiC-HF: max(0, 1 − βh), which is 0 once the margin is wide enough.

    Zhao et al., "SLiC-HF", 2023; with the margin of the reference as in Liu et al., "RSO", 2023.

    Args:
        policy: scores [pairs].
        reference: scores [pairs].
        beta: β > 0.
    """
    check_range("beta", beta, above=0)
    return F.relu(1 - beta * (policy.margin - reference.margin))


def bdpo(policy: PairScores, reference: PairScores, *, beta: float, lam: float) -> Tensor:
    """Bounded DPO: −log σ(βr⁺ − β log(λ e^{r⁻} + 1 − λ)), bounded in the rejected mask.

    Cho et al., "Rethinking DPO: The Role of Rejected Responses in Preference Misalignment", 2025.

    Args:
        policy: scores [pairs].
        reference: scores [pairs].
        beta: β > 0.
        lam: λ between 0 and 1, both excluded; near 1 this is `dpo`.
    """
    check_range("beta", beta, above=0)
    check_range("lam", lam, above=0, below=1)
    chosen = policy.chosen - reference.chosen
    rejected = chosen - (policy.margin - reference.margin)
    rest = torch.full_like(rejected, math.log1p(-lam))
    return -F.logsigmoid(beta * (chosen - torch.logaddexp(math.log(lam) + rejected, rest)))


def dpop(policy: PairScores, reference: PairScores, *, beta: float, lam: float) -> Tensor:
    """DPO-Positive: −log σ(β[h − λ max(0, −r⁺)]), with a penalty on chosen masks less likely than under the reference.

    Pal et al., "Smaug: Fixing Failure Modes of Preference Optimisation with DPO-Positive", 2024.

    Args:
        policy: scores [pairs].
        reference: scores [pairs].
        beta: β > 0.
        lam: λ ≥ 0, the weight of the penalty.
    """
    check_range("beta", beta, above=0)
    check_range("lam", lam, least=0)
    fallen = F.relu(reference.chosen - policy.chosen)
    return -F.logsigmoid(beta * (policy.margin - reference.margin - lam * fallen))


def cpo(policy: PairScores, *, beta: float) -> Tensor:
    """Contrastive preference optimisation (CPO): −log σ(β(s⁺ − s⁻)), without a reference; used with an `nll` anchor.

    Xu et al., "Contrastive Preference Optimization", 2024.

    Args:
        policy: scores [pairs].
        beta: β > 0.
    """
    check_range("beta", beta, above=0)
    return -F.logsigmoid(beta * policy.margin)


@requires(reduction=MEANS)
def simpo(policy: PairScores, *, beta: float, gamma: float) -> Tensor:
    """SimPO: −log σ(β(s̄⁺ − s̄⁻) − γ) on mean scores, without a reference.

    Meng et al., "SimPO", 2024.

    Args:
        policy: mean scores [pairs].
        beta: β > 0.
        gamma: γ ≥ 0, the target of the margin β(s̄⁺ − s̄⁻).
    """
    check_range("beta", beta, above=0)
    check_range("gamma", gamma, least=0)
    return -F.logsigmoid(beta * policy.margin - gamma)


@requires(quantity=("log_likelihood",), reduction=MEANS)
def orpo(policy: PairScores, *, lam: float) -> Tensor:
    """ORPO: −s̄⁺ − λ log σ(log-odds(y⁺) − log-odds(y⁻)), log-odds(y) = s̄ − log(1 − e^{s̄}), without a reference.

    Hong et al., "ORPO: Monolithic Preference Optimization without Reference Model", 2024.

    Args:
        policy: mean log-likelihoods [pairs].
        lam: λ ≥ 0, the weight of the odds ratio.
    """
    check_range("lam", lam, least=0)
    # log-odds(y⁺) − log-odds(y⁻), with the exact margin.
    ratio = policy.margin - _log1mexp(policy.chosen) + _log1mexp(policy.rejected)
    return -policy.chosen - lam * F.logsigmoid(ratio)


@requires(reduction=MEANS)
def arpo(policy: PairScores, *, beta: float, scale: float = 0.9, rate: float = 0.4) -> Tensor:
    """Adaptive-rejection preference optimisation (ARPO), without a reference; used with an `nll` anchor.

    −log σ(β(s̄⁺ − τ_θ s̄⁻)), τ_θ = min(1, scale·e^{rate·z} − 1), z = abs(s̄⁺ − s̄⁻): masks that are nearly equal are
    rejected less. Xu et al., "X-ALMA", 2024.

    Args:
        policy: mean scores [pairs].
        beta: β > 0.
        scale: > 0; τ is scale − 1 for equal masks.
        rate: ≥ 0, how fast τ grows with the margin.
    """
    check_range("beta", beta, above=0)
    check_range("scale", scale, above=0)
    check_range("rate", rate, least=0)
    # Clamped before the exponential: the same τ, without ∞ · 0 in the gradient of masks that are far apart.
    tau = scale * torch.exp((rate * policy.margin.abs()).clamp(max=math.log(2 / scale))) - 1
    return -F.logsigmoid(beta * (policy.chosen - tau * policy.rejected))


def sft(policy: PairScores) -> Tensor:
    """Supervised fine-tuning on the chosen masks: −s⁺. The baseline of all preference losses.

    Args:
        policy: scores [pairs].
    """
    return -policy.chosen


def _log1mexp(score: Tensor) -> Tensor:
    """Return log(1 − e^s) for s < 0, with the form that is exact in each half (Mächler, 2012)."""
    # A mean log-likelihood of exactly 0 has infinite odds: stop one rounding step below it.
    score = score.clamp(max=-torch.finfo(score.dtype).eps)
    near_zero = score > -math.log(2)
    # Each branch sees only its own half; otherwise the gradient of the unused branch would be NaN.
    small = torch.log(-torch.expm1(torch.where(near_zero, score, -1.0)))
    large = torch.log1p(-torch.exp(torch.where(near_zero, -1.0, score)))
    return torch.where(near_zero, small, large)

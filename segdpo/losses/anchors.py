"""Anchors: terms beside an objective that keep the chosen mask likely, or the policy near the reference.

The symbols are those of `segdpo.objectives`: s± are scores, r± gains over the reference. Every function returns one
value for each pair. `Anchor(weight, term)` adds a term to a `PreferenceLoss`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from segdpo.checks import check_range
from segdpo.scores import PairScores


def linear(policy: PairScores, reference: PairScores) -> Tensor:
    """Linear anchor: −(s⁺_θ + s⁺_ref) + (s⁻_ref + s⁻_θ). Unbounded below; the baseline of `log_sum_exp` and `hinge`.

    Args:
        policy: scores [pairs].
        reference: scores [pairs].
    """
    return -policy.margin - reference.margin


def log_sum_exp(policy: PairScores, reference: PairScores) -> Tensor:
    """Log-sum-exp anchor: log(e^{−(s⁺_θ + s⁺_ref)} + e^{s⁻_ref + s⁻_θ}), a smooth maximum of both faults.

    The faults are a chosen mask that is unlikely and a rejected mask that is likely; the larger one gets most of the
    gradient.

    Args:
        policy: scores [pairs].
        reference: scores [pairs].
    """
    missing = -(policy.chosen + reference.chosen)
    excess = policy.rejected + reference.rejected
    return torch.logaddexp(missing, excess)


def hinge(policy: PairScores, *, tau: float) -> Tensor:
    """Hinge anchor: max(0, τ − s⁺_θ) + max(0, s⁻_θ + τ).

    In log-odds both sides are 0 once s⁺ ≥ τ and s⁻ ≤ −τ. A log-likelihood is never above 0, so there, for τ ≥ 0, the
    chosen side is NLL (plus τ) and the rejected side is 0 for s⁻ ≤ −τ.

    Args:
        policy: scores [pairs].
        tau: τ ≥ 0.

    >>> hinge(PairScores(torch.tensor([3.0, 1.0]), torch.tensor([-3.0, -1.0])), tau=2.0)
    tensor([0., 2.])
    """
    check_range("tau", tau, least=0)
    return F.relu(tau - policy.chosen) + F.relu(policy.rejected + tau)


def calibrated_hinge(policy: PairScores, reference: PairScores, *, beta: float, tau: float) -> Tensor:
    """One-sided hinge on the gain of the chosen mask: max(0, τ − βr⁺). Often called Cal-DPO.

    Args:
        policy: scores [pairs].
        reference: scores [pairs].
        beta: β > 0.
        tau: τ, the target of βr⁺.
    """
    check_range("beta", beta, above=0)
    return F.relu(tau - beta * (policy.chosen - reference.chosen))


def calibration(policy: PairScores, reference: PairScores, *, beta: float) -> Tensor:
    """Calibration of Cal-DPO: (r⁺ − 1/(2β))² + (r⁻ + 1/(2β))², a target for the gain of each mask.

    Xiao et al., "Cal-DPO: Calibrated Direct Preference Optimization", NeurIPS 2024.

    Args:
        policy: scores [pairs].
        reference: scores [pairs].
        beta: β > 0; the targets are ±1/(2β).
    """
    check_range("beta", beta, above=0)
    chosen = policy.chosen - reference.chosen
    rejected = chosen - (policy.margin - reference.margin)
    return (chosen - 1 / (2 * beta)) ** 2 + (rejected + 1 / (2 * beta)) ** 2


def nll(policy: PairScores) -> Tensor:
    """Negative log-likelihood of the chosen mask: −s⁺.

    As in RPO (Pang et al., "Iterative Reasoning Preference Optimization", 2024) and CPO.

    Args:
        policy: scores [pairs].
    """
    return -policy.chosen


def hold(kl_to_reference: Tensor) -> Tensor:
    """Keep the policy near the reference where a pair says nothing: mean KL(π_ref ‖ π_θ) where its masks agree.

    Args:
        kl_to_reference: [pairs], from `segdpo.kl_to_reference`.
    """
    return kl_to_reference

"""Anchors: terms that keep the chosen mask likely."""

import torch
import torch.nn.functional as F
from torch import Tensor

from segdpo.checks import check_range
from segdpo.scores import PairScores


def linear(policy: PairScores, reference: PairScores) -> Tensor:
    """−(s⁺_θ + s⁺_ref) + (s⁻_ref + s⁻_θ): pulls without end in both directions.

    Unbounded below, kept as the baseline that `log_sum_exp` and `hinge` repair.
    """
    return -policy.margin - reference.margin


def log_sum_exp(policy: PairScores, reference: PairScores) -> Tensor:
    """log(e^{−(s⁺_θ + s⁺_ref)} + e^{s⁻_ref + s⁻_θ}): the larger of the two faults pulls, the other rests."""
    missing = -(policy.chosen + reference.chosen)
    excess = policy.rejected + reference.rejected
    return torch.logaddexp(missing, excess)


def hinge(policy: PairScores, *, tau: float) -> Tensor:
    """max(0, τ − s⁺_θ) + max(0, s⁻_θ + τ): both sides fall silent once met.

    On log-odds that is a band of width τ on either side of even odds. A log-likelihood is never above 0, so there,
    for τ ≥ 0, the chosen side is plain NLL and the rejected side stops at −τ.
    """
    check_range("tau", tau, least=0)
    return F.relu(tau - policy.chosen) + F.relu(policy.rejected + tau)


def calibrated_hinge(policy: PairScores, reference: PairScores, *, beta: float, tau: float) -> Tensor:
    """max(0, τ − βr⁺): one-sided, on the chosen mask's gain over the reference; often called Cal-DPO."""
    check_range("beta", beta, above=0)
    return F.relu(tau - beta * (policy.chosen - reference.chosen))


def calibration(policy: PairScores, reference: PairScores, *, beta: float) -> Tensor:
    """(r⁺ − 1/(2β))² + (r⁻ + 1/(2β))²: the gain of each mask has a target of its own.

    Xiao et al., "Cal-DPO: Calibrated Direct Preference Optimization", NeurIPS 2024.
    """
    check_range("beta", beta, above=0)
    chosen = policy.chosen - reference.chosen
    rejected = chosen - (policy.margin - reference.margin)
    return (chosen - 1 / (2 * beta)) ** 2 + (rejected + 1 / (2 * beta)) ** 2


def nll(policy: PairScores) -> Tensor:
    """−s⁺: the negative log-likelihood of the chosen mask.

    As in RPO (Pang et al., "Iterative Reasoning Preference Optimization", 2024) and CPO.
    """
    return -policy.chosen


def hold(drift: Tensor) -> Tensor:
    """Return the mean KL(π_ref ‖ π_θ) over the pixels where the two masks agree: what nobody judged stays as it was."""
    return drift

"""Listwise objectives: a ranking of K masks of one image says more than its pairs."""

import torch
from torch import Tensor

from segdpo.checks import check_range
from segdpo.scores import PairScores


def plackett_luce(policy: PairScores, reference: PairScores, *, beta: float) -> Tensor:
    """−Σ_k log(e^{βr_k} / Σ_{j≥k} e^{βr_j}), r_k = s_k,θ − s_k,ref over a ranking, best first; for K = 2 this is dpo.

    Rafailov et al., "Direct Preference Optimization", 2023, appendix A.3. Rankings come from `score_ranking`; scores
    need only be right up to a constant of their list, which cancels. A plain pair is a ranking of two.
    """
    check_range("beta", beta, above=0)
    gain = beta * (policy.ranked - reference.ranked)
    # log Σ_{j≥k} e^{g_j − g_k}: differences first, or large gains lose the small ones between them.
    ahead = (gain[:, :, None] - gain[:, None, :]).masked_fill(_earlier(gain.shape[1], gain.device), float("-inf"))
    return ahead.logsumexp(1).sum(1)


def _earlier(masks: int, device: torch.device) -> Tensor:
    """Return [j, k] = True where j is ranked before k."""
    return torch.ones(masks, masks, dtype=torch.bool, device=device).triu(diagonal=1)

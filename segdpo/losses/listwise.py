"""Objectives of rankings of K masks of one image."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from segdpo.checks import check_range
from segdpo.scores import PairScores


def plackett_luce(policy: PairScores, reference: PairScores, *, beta: float) -> Tensor:
    """DPO of a ranking: −Σ_k log(e^{βr_k} / Σ_{j≥k} e^{βr_j}), r_k = s_k,θ − s_k,ref; for K = 2 this is `dpo`.

    Rafailov et al., "Direct Preference Optimization", 2023, appendix A.3.

    Args:
        policy: `ranked` [lists, K], best first, from `score_ranking`; a plain pair is a ranking of two. A constant of
            each list cancels.
        reference: the same of the reference.
        beta: β > 0.

    Returns:
        [lists].

    >>> even = PairScores(chosen=torch.zeros(1), margin=torch.zeros(1), ranked=torch.zeros(1, 3))
    >>> plackett_luce(even, even, beta=1.0).exp()  # 3! orders, all equally likely
    tensor([6.])
    """
    check_range("beta", beta, above=0)
    return ranking_nll(beta * (policy.ranked - reference.ranked))


def ranking_nll(
    values: Float[Tensor, "lists K"], kept: Bool[Tensor, "lists K"] | None = None
) -> Float[Tensor, "lists"]:
    """Return −Σ_k log(e^{v_k} / Σ_{j≥k} e^{v_j}), the negative log-likelihood of a ranking under Plackett–Luce.

    Plackett, 1975; Luce, 1959.

    Args:
        values: best first.
        kept: False = the entry does not take part in the ranking; None: all do.
    """
    same = torch.eye(values.shape[1], dtype=torch.bool, device=values.device)
    removed = torch.ones_like(same).triu(diagonal=1)  # [j, k]: j is ranked before k
    if kept is not None:
        values = values.masked_fill(~kept, 0)
        removed = (removed | ~kept[:, :, None]) & ~same
    # [j, k]: log Σ_{j≥k} e^{v_j − v_k}. Differences first, since large values would absorb small differences.
    ahead = (values[:, :, None] - values[:, None, :]).masked_fill(removed, float("-inf")).logsumexp(1)
    return (ahead if kept is None else ahead.masked_fill(~kept, 0)).sum(1)

"""Policy gradients: surrogates of the expected reward, estimators of a divergence. Pure functions, one value each.

`log_prob` is under the policy that is trained, `old_log_prob` under the one that drew the masks, per pixel [masks,
*spatial] or per mask [masks]: the ratio e^{log p − log p_old} is one of pixels or one of masks. An advantage [masks]
serves every pixel of its mask. Losses are to be minimised; means and weights are the caller's.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from segdpo.checks import check_choice, check_range, check_same_shape

RATIOS = ("pixel", "mask", "mask_mean")
Surrogate = Callable[[Tensor, Tensor, Tensor], Tensor]


def clipped_surrogate(
    log_prob: Tensor, old_log_prob: Tensor, advantage: Tensor, *, clip: float = 0.2, clip_higher: float | None = None
) -> Tensor:
    """Return −min(rA, clamp(r, 1 − ε, 1 + ε₊) A), r = e^{log p − log p_old}; ε₊ = `clip_higher`, else ε.

    Schulman et al., "Proximal Policy Optimization Algorithms", 2017; ε₊ > ε: Yu et al., "DAPO", 2025.

    >>> r, half = torch.tensor([1.5, 0.5]).log(), torch.zeros(2)
    >>> clipped_surrogate(r, half, torch.tensor([1.0, 1.0]))
    tensor([-1.2000, -0.5000])
    """
    ratio, advantage = _ratio(log_prob, old_log_prob), like_pixels(advantage, log_prob)
    return -torch.minimum(ratio * advantage, ratio.clamp(*_range(clip, clip_higher)) * advantage)


def reinforce(log_prob: Tensor, old_log_prob: Tensor, advantage: Tensor) -> Tensor:
    """Return −A r, whose gradient at r = 1 is that of −A log p: REINFORCE, with the ratio that later epochs need.

    Williams, "Simple statistical gradient-following algorithms", 1992.
    """
    return -_ratio(log_prob, old_log_prob) * like_pixels(advantage, log_prob)


@torch.no_grad()
def cut_off(loss: Tensor, log_prob: Tensor, old_log_prob: Tensor, advantage: Tensor) -> Tensor:
    """Say where a surrogate `loss` has left −rA behind, and with it the gradient: what the clip fraction counts."""
    return loss > -_ratio(log_prob, old_log_prob) * like_pixels(advantage, log_prob)


def per_ratio(log_prob: Tensor, inside: Tensor, ratio: str) -> Tensor:
    """Return the log-probabilities that a ratio is taken of, from those of the pixels that count.

    * `pixel`: as they are; the clipping looks at each pixel, as PPO for language models looks at each token.
    * `mask`: their sum, the mask's own log-probability: exact, but over thousands of pixels it leaves the range of the
      clipping after the smallest step.
    * `mask_mean`: their mean, the geometric mean of the pixels' ratios (Zheng et al., "GSPO", 2025).
    """
    check_choice("ratio", ratio, RATIOS)
    check_same_shape("inside", inside, "log_prob", log_prob)
    kept = torch.where(inside, log_prob, 0.0)
    if ratio == "pixel":
        return kept
    total = kept.flatten(1).sum(1)
    return total if ratio == "mask" else total / inside.flatten(1).sum(1).clamp(min=1)


def kl_k1(log_ratio: Tensor) -> Tensor:
    """Return −d, d = log p_ref − log p of what the policy drew: unbiased for KL(policy ‖ reference), of either sign.

    Schulman, "Approximating KL divergence", 2020. As a loss it needs the ratio as a weight: without it, its gradient
    is that of log p, zero on average.
    """
    return -log_ratio


def kl_k3(log_ratio: Tensor) -> Tensor:
    """Return e^d − d − 1, d = log p_ref − log p of what the policy drew: unbiased, never negative.

    >>> kl_k3(torch.tensor([0.0, 1.0]))
    tensor([0.0000, 0.7183])
    """
    return torch.expm1(log_ratio) - log_ratio


def like_pixels(advantage: Tensor, log_prob: Tensor) -> Tensor:
    """Give an advantage [masks] the dimensions of log-probabilities [masks, *spatial]; one of that shape stays."""
    if advantage.shape == log_prob.shape:
        return advantage
    if advantage.shape != log_prob.shape[:1]:
        raise ValueError(
            f"Expected an advantage a mask, [{len(log_prob)}], or one a pixel, {list(log_prob.shape)}, but got "
            f"{list(advantage.shape)}."
        )
    return advantage.view(-1, *[1] * (log_prob.ndim - 1))


def _ratio(log_prob: Tensor, old_log_prob: Tensor) -> Tensor:
    check_same_shape("log_prob", log_prob, "old_log_prob", old_log_prob)
    return (log_prob - old_log_prob).exp()


def _range(clip: float, clip_higher: float | None) -> tuple[float, float]:
    check_range("clip", clip, above=0, below=1)
    higher = clip if clip_higher is None else clip_higher
    check_range("clip_higher", higher, least=clip)
    return 1 - clip, 1 + higher

"""Policy-gradient losses and advantages: PPO, GRPO, REINFORCE."""

from collections.abc import Callable

import torch
from torch import Tensor

from segdpo.checks import check_choice, check_range, check_same_shape

# Of a group whose rewards are all alike the deviation is rounding; rewards are of the order of 1.
LEAST = 1e-4


def group_advantages(rewards: Tensor, *, divide_by_std: bool = True) -> Tensor:
    """Return (R − mean) / (std + 10⁻⁴) over the masks of each image, rewards [images, K]; undivided: R − mean.

    Shao et al., "DeepSeekMath" (GRPO), 2024; undivided: Liu et al., "Understanding R1-Zero-Like Training", 2025. The
    division gives images where all masks are about as good the same say as those where they differ.

    >>> import torch
    >>> group_advantages(torch.tensor([[1.0, 3.0], [5.0, 5.0]]), divide_by_std=False)
    tensor([[-1.,  1.],
            [ 0.,  0.]])
    """
    _check_group(rewards, "GRPO")
    # Rewards that are all alike are exactly 0 apart; their mean may be a rounding beside them. So too in `normalised`.
    centred = rewards - rewards[:, :1]
    centred = centred - centred.mean(1, keepdim=True)
    return centred / (rewards.std(1, keepdim=True) + LEAST) if divide_by_std else centred


def leave_one_out(rewards: Tensor) -> Tensor:
    """Return R − the mean of the image's other K − 1 masks, rewards [images, K]: a baseline without a bias.

    Kool et al., "Buy 4 REINFORCE samples, get a baseline for free", 2019; Ahmadian et al. (RLOO), 2024.
    """
    _check_group(rewards, "REINFORCE")
    return group_advantages(rewards, divide_by_std=False) * (rewards.shape[1] / (rewards.shape[1] - 1))


def normalised(advantages: Tensor) -> Tensor:
    """Return (A − mean) / (std + 10⁻⁴) over the whole batch; of a single number: as it is."""
    if advantages.numel() < 2:
        return advantages
    centred = advantages - advantages.flatten()[0]
    return (centred - centred.mean()) / (advantages.std() + LEAST)


def adaptive_coefficient(coefficient: float, kl: float, target: float, *, rate: float = 0.1) -> float:
    """Return β (1 + rate · clamp(KL / target − 1, ±0.2)): more while the divergence is above its target, else less.

    Ziegler et al., "Fine-Tuning Language Models from Human Preferences", 2019.

    >>> adaptive_coefficient(1.0, kl=30.0, target=10.0), adaptive_coefficient(1.0, kl=9.0, target=10.0, rate=0.5)
    (1.02, 0.95)
    """
    check_range("target", target, above=0)
    check_range("rate", rate, above=0, below=5)
    return coefficient * (1 + rate * min(max(kl / target - 1, -0.2), 0.2))


def _check_group(rewards: Tensor, name: str) -> None:
    if rewards.ndim != 2:
        raise ValueError(f"Expected rewards [images, masks of an image] but got shape {tuple(rewards.shape)}.")
    if rewards.shape[1] < 2:
        raise ValueError(
            f"Expected at least 2 masks an image for {name}, which holds each mask against the others of its image, "
            f"but got {rewards.shape[1]}; set algorithm.masks=4, or choose algorithm=ppo, whose value head needs one."
        )


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

"""Policy-gradient losses and advantages: PPO, GRPO, RLOO, REINFORCE.

A mask is an action with one log-probability for each pixel; R are rewards of masks, A advantages.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from segdpo.checks import check_choice, check_range, check_same_shape

Surrogate = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Takes log-probabilities under the policy, those when the mask was drawn, and advantages; returns a loss."""

RATIOS = ("pixel", "mask", "mask_mean")
# Added to standard deviations: those of equal rewards are rounding errors. Rewards are of the order of 1.
EPSILON = 1e-4


def group_advantages(rewards: Tensor, *, divide_by_std: bool = True) -> Tensor:
    """Group-relative advantages (GRPO): (R − mean) / (std + 10⁻⁴) over the masks of each image.

    Shao et al., "DeepSeekMath", 2024; without the division: Liu et al., "Understanding R1-Zero-Like Training", 2025.

    Args:
        rewards: [images, K].
        divide_by_std: divide; this gives images whose masks are nearly equal the same weight as others.

    Returns:
        [images, K].

    >>> group_advantages(torch.tensor([[1.0, 3.0], [5.0, 5.0]]), divide_by_std=False)
    tensor([[-1.,  1.],
            [ 0.,  0.]])
    """
    _check_group(rewards, "GRPO")
    # Differences of equal rewards are exactly 0, while their mean may be rounded. The same holds in `normalised`.
    centred = rewards - rewards[:, :1]
    centred = centred - centred.mean(1, keepdim=True)
    return centred / (rewards.std(1, keepdim=True) + EPSILON) if divide_by_std else centred


def leave_one_out(rewards: Tensor) -> Tensor:
    """Leave-one-out advantages (RLOO): R − the mean over the other K − 1 masks of the image, an unbiased baseline.

    Kool et al., "Buy 4 REINFORCE samples, get a baseline for free", 2019; Ahmadian et al., 2024.

    Args:
        rewards: [images, K].

    Returns:
        [images, K].

    >>> leave_one_out(torch.tensor([[1.0, 2.0, 6.0]]))
    tensor([[-3.0000, -1.5000,  4.5000]])
    """
    _check_group(rewards, "REINFORCE")
    return group_advantages(rewards, divide_by_std=False) * (rewards.shape[1] / (rewards.shape[1] - 1))


def normalised(advantages: Tensor) -> Tensor:
    """Return (A − mean) / (std + 10⁻⁴) over the whole batch; a single advantage is returned unchanged."""
    if advantages.numel() < 2:
        return advantages
    centred = advantages - advantages.flatten()[0]
    return (centred - centred.mean()) / (advantages.std() + EPSILON)


def adaptive_coefficient(coefficient: float, kl: float, target: float, *, rate: float = 0.1) -> float:
    """Return the next KL coefficient: β (1 + rate · clamp(KL / target − 1, ±0.2)).

    Ziegler et al., "Fine-Tuning Language Models from Human Preferences", 2019.

    Args:
        coefficient: β.
        kl: the KL to the reference that was measured.
        target: the KL to reach; β grows while KL is above it, and shrinks while KL is below.
        rate: the speed of the change, between 0 and 5.

    >>> adaptive_coefficient(1.0, kl=30.0, target=10.0), adaptive_coefficient(1.0, kl=9.0, target=10.0, rate=0.5)
    (1.02, 0.95)
    """
    check_range("target", target, above=0)
    check_range("rate", rate, above=0, below=5)
    return coefficient * (1 + rate * min(max(kl / target - 1, -0.2), 0.2))


def clipped_surrogate(
    log_prob: Tensor, old_log_prob: Tensor, advantage: Tensor, *, clip: float = 0.2, clip_higher: float | None = None
) -> Tensor:
    """Clipped surrogate (PPO): −min(rA, clamp(r, 1 − ε, 1 + ε₊) A), r = e^{log p − log p_old}.

    Schulman et al., "Proximal Policy Optimization Algorithms", 2017; ε₊ > ε: Yu et al., "DAPO", 2025.

    Args:
        log_prob: log p under the policy, [masks] or [masks, *spatial].
        old_log_prob: log p under the policy that drew the masks, of the same shape.
        advantage: [masks], or the shape of `log_prob`.
        clip: ε.
        clip_higher: ε₊; None: ε.

    Returns:
        The shape of `log_prob`.

    >>> r, half = torch.tensor([1.5, 0.5]).log(), torch.zeros(2)
    >>> clipped_surrogate(r, half, torch.tensor([1.0, 1.0]))
    tensor([-1.2000, -0.5000])
    """
    ratio, advantage = _ratio(log_prob, old_log_prob), like_pixels(advantage, log_prob)
    return -torch.minimum(ratio * advantage, ratio.clamp(*_range(clip, clip_higher)) * advantage)


def reinforce(log_prob: Tensor, old_log_prob: Tensor, advantage: Tensor) -> Tensor:
    """REINFORCE with importance weights: −A r, whose gradient at r = 1 is that of −A log p.

    Williams, "Simple statistical gradient-following algorithms", 1992. The arguments are those of `clipped_surrogate`.
    """
    return -_ratio(log_prob, old_log_prob) * like_pixels(advantage, log_prob)


@torch.no_grad()
def cut_off(loss: Tensor, log_prob: Tensor, old_log_prob: Tensor, advantage: Tensor) -> Tensor:
    """Return where a surrogate `loss` is clipped: above −rA, and without a gradient."""
    return loss > -_ratio(log_prob, old_log_prob) * like_pixels(advantage, log_prob)


def per_ratio(log_prob: Tensor, inside: Tensor, ratio: str) -> Tensor:
    """Return the log-probabilities whose ratio is clipped.

    Args:
        log_prob: [masks, *spatial].
        inside: bool [masks, *spatial], the pixels that count.
        ratio: "pixel": one ratio for each pixel, as PPO for language models has one for each token. "mask": the ratio
            of the whole mask; with thousands of pixels it is clipped after the smallest step.
            "mask_mean": the geometric mean over the pixels (Zheng et al., "GSPO", 2025).

    Returns:
        [masks, *spatial] for "pixel", else [masks].
    """
    check_choice("ratio", ratio, RATIOS)
    check_same_shape("inside", inside, "log_prob", log_prob)
    kept = torch.where(inside, log_prob, 0.0)
    if ratio == "pixel":
        return kept
    total = kept.flatten(1).sum(1)
    return total if ratio == "mask" else total / inside.flatten(1).sum(1).clamp(min=1)


def kl_k1(log_ratio: Tensor) -> Tensor:
    """Estimate KL(policy ‖ reference) by −d, d = log p_ref − log p of a sample of the policy: unbiased, of either sign.

    Schulman, "Approximating KL divergence", 2020. As a loss it must be weighted by the ratio r; otherwise its gradient
    is that of log p, which is zero on average.
    """
    return -log_ratio


def kl_k3(log_ratio: Tensor) -> Tensor:
    """Estimate KL(policy ‖ reference) by e^d − d − 1, d = log p_ref − log p: unbiased and never negative.

    Schulman, "Approximating KL divergence", 2020.

    >>> kl_k3(torch.tensor([0.0, 1.0]))
    tensor([0.0000, 0.7183])
    """
    return torch.expm1(log_ratio) - log_ratio


def like_pixels(advantage: Tensor, log_prob: Tensor) -> Tensor:
    """Return an advantage [masks] with the dimensions of log-probabilities [masks, *spatial]; that shape is kept."""
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


def _check_group(rewards: Tensor, name: str) -> None:
    if rewards.ndim != 2:
        raise ValueError(f"Expected rewards [images, masks of an image] but got shape {tuple(rewards.shape)}.")
    if rewards.shape[1] < 2:
        raise ValueError(
            f"Expected at least 2 masks an image for {name}, which compares each mask with the others of its image, "
            f"but got {rewards.shape[1]}; set algorithm.masks=4, or choose algorithm=ppo, whose value head needs one."
        )

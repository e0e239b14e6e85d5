"""From rewards to advantages: how much better a mask is than what was to be expected of its image."""

from torch import Tensor

from segdpo.checks import check_range

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

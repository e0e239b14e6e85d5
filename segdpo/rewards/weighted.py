"""Several rewards as one: their weighted sum."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from segdpo.checks import check_range
from segdpo.rewards.request import Reward, RewardRequest


@dataclass(frozen=True, eq=False)
class Part:
    """One reward of a sum and what it weighs; below 0, it is a price."""

    weight: float
    reward: Reward

    def __post_init__(self) -> None:
        check_range("weight", self.weight)


def weighted_sum(request: RewardRequest, *, parts: Mapping[str, Part]) -> Float[Tensor, "masks"]:
    """Σ weight · reward over the parts; one that gives a mask NaN is named."""
    if not parts:
        raise ValueError("Expected at least one part of a weighted reward but got none; name some in reward.parts.")
    total = request.image.new_zeros(len(request.masks), dtype=torch.float32)
    for name, part in parts.items():
        rewards = part.reward(request)
        if not bool(torch.isfinite(rewards).all()):
            raise ValueError(
                f"Expected finite rewards but the part {name!r} of a weighted sum gave NaN or infinite ones; look at "
                "that reward alone."
            )
        total = total + part.weight * rewards.to(total)
    return total

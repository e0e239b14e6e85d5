"""What a reward is asked: images, masks of them, and gold where it is known."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from segdpo.regions import IGNORE


@dataclass(frozen=True, eq=False)
class RewardRequest:
    """Masks to judge; mask p is of image `image_index[p]`.

    `valid` is False where a pixel only fills the batch up; `classes` is how many the masks may have. Images are as the
    network sees them, normalised.
    """

    image: Float[Tensor, "images channels height width"]
    masks: UInt8[Tensor, "masks height width"]
    image_index: Int[Tensor, "masks"]
    gold: UInt8[Tensor, "images height width"] | None
    valid: Bool[Tensor, "images height width"]
    classes: int = 2

    def shown(self) -> UInt8[Tensor, "masks height width"]:
        """Return the masks, ignored (255) where no pixel counts."""
        return self.masks.masked_fill(~self.valid.index_select(0, self.image_index), IGNORE)

    def gold_of_masks(self) -> UInt8[Tensor, "masks height width"]:
        """Return gold for each mask, or say which images have none to be held against."""
        known = None if self.gold is None else ((self.gold != IGNORE) & self.valid).flatten(1).any(1)
        if self.gold is None or known is None or not bool(known.all()):
            without = [] if known is None else (~known).nonzero().flatten().tolist()
            which = f"image {without[0]} of the batch" if without else "the batch"
            raise ValueError(
                f"Expected gold for a reward by overlap but {which} has none that counts; train on images with gold, "
                "crop less tightly, or choose a reward that needs none (reward=reward_model, or reward=judge with such "
                "a judge)."
            )
        return self.gold.index_select(0, self.image_index)


Reward = Callable[[RewardRequest], Tensor]
"""Gives each mask a number, larger = better: float [masks]. Options are bound by `functools.partial`."""


def asked(reward: Reward, request: RewardRequest) -> Float[Tensor, "masks"]:
    """Return the rewards of the masks, or say what is wrong with them: their number, or a value that is none."""
    with torch.no_grad():
        rewards = reward(request)
    if rewards.shape != request.image_index.shape:
        raise ValueError(
            f"Expected one reward a mask, shape ({len(request.masks)},), but the reward gave {tuple(rewards.shape)}."
        )
    wrong = (~torch.isfinite(rewards)).nonzero().flatten().tolist()
    if wrong:
        raise ValueError(
            f"Expected finite rewards but {len(wrong)} of {len(rewards)} are NaN or infinite, the first "
            f"{float(rewards[wrong[0]])} for a mask of image {int(request.image_index[wrong[0]])} of the batch; look "
            "at what the reward makes of that image: a reward model that was not trained, or a judge that divides by 0?"
        )
    return rewards.float()

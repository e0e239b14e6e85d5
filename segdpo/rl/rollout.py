"""A rollout: masks drawn from the policy as it is, what they are worth, and what a few epochs of steps need of that."""

from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from segdpo.data import Batch
from segdpo.losses import normalised
from segdpo.rl.algorithm import Algorithm
from segdpo.rl.rewards import Reward, RewardRequest, asked
from segdpo.scores import kl, log_prob, sample


@dataclass(frozen=True, eq=False)
class Rollout:
    """K masks of each image, their rewards and advantages, and the logits of the networks when they were drawn.

    `advantages` are [images, masks], or of each pixel [images, masks, height, width].
    """

    image: Float[Tensor, "images channels height width"]
    valid: Bool[Tensor, "images height width"]
    logits: Float[Tensor, "images logits height width"]
    reference_logits: Float[Tensor, "images logits height width"] | None
    masks: UInt8[Tensor, "images masks height width"]
    rewards: Float[Tensor, "images masks"]
    advantages: Float[Tensor, "images masks *pixels"]

    def part(self, images: Tensor) -> "Rollout":
        """Return some of the images, with all their masks."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        own: dict[str, Any] = {name: None if value is None else value[images] for name, value in values.items()}
        return Rollout(**own)

    def image_index(self) -> Tensor:
        """Return the image of each of the masks, taken image by image."""
        images, masks = self.rewards.shape
        return torch.arange(images, device=self.image.device).repeat_interleave(masks)


@torch.no_grad()
def roll_out(
    batch: Batch,
    logits: Tensor,
    reference_logits: Tensor | None,
    values: Tensor | None,
    algorithm: Algorithm,
    reward: Reward,
    *,
    classes: int,
    price: float,
) -> Rollout:
    """Draw masks, ask for their rewards, and hold those against what was to be expected.

    Args:
        batch: images, and gold if the reward wants it.
        logits: of the policy, detached.
        reference_logits: of the reference, if a divergence asks for it.
        values: of the value head, [images] or [images, height, width], if the algorithm has one.
        algorithm: how many masks, at which temperature; from rewards to advantages.
        reward: of the masks.
        classes: of the masks.
        price: of a nat, in the reward; see Divergence.
    """
    drawn = sample(logits, algorithm.masks, temperature=algorithm.temperature, smoothness=algorithm.smoothness)
    image_index = torch.arange(len(logits), device=logits.device).repeat_interleave(algorithm.masks)
    rewards = asked(reward, RewardRequest(batch.image, drawn, image_index, batch.gold, batch.valid, classes))
    rewards = rewards.view(len(logits), algorithm.masks)
    advantages = advantages_of(rewards, values, algorithm)
    masks = drawn.view(*rewards.shape, *drawn.shape[1:])
    rollout = Rollout(batch.image, batch.valid, logits, reference_logits, masks, rewards, advantages)
    if price == 0 or reference_logits is None:
        return rollout
    return replace(rollout, advantages=priced(rollout, price, algorithm.ratio))


def advantages_of(rewards: Tensor, values: Tensor | None, algorithm: Algorithm) -> Tensor:
    """Return [images, masks], or [images, masks, height, width] where values are of pixels."""
    if algorithm.baseline is not None:
        found = algorithm.baseline(rewards)
    elif values is not None:
        found = rewards.view(*rewards.shape, *[1] * (values.ndim - 1)) - values.detach()[:, None]
    else:
        raise ValueError(f"Expected values of the value head for {algorithm.name} but got none.")
    return normalised(found) if algorithm.normalise else found


def priced(rollout: Rollout, price: float, ratio: str) -> Tensor:
    """Take from each pixel's advantage the price of its own log-ratio; of a whole mask's, of all its pixels' together.

    What is to be expected of the log-ratio is its divergence, known exactly: taking it out leaves the same gradient
    on average, and less noise.
    """
    assert rollout.reference_logits is not None
    index, masks = rollout.image_index(), rollout.masks.flatten(0, 1)
    moved = log_prob(rollout.logits, masks, index) - log_prob(rollout.reference_logits, masks, index)
    moved = moved - kl(rollout.logits, rollout.reference_logits).index_select(0, index)
    cost = price * moved.masked_fill(~rollout.valid.index_select(0, index), 0.0).view_as(rollout.masks)
    if ratio != "pixel":
        return rollout.advantages - cost.flatten(2).sum(2)
    advantages = rollout.advantages
    return (advantages if advantages.ndim == cost.ndim else advantages[..., None, None]) - cost

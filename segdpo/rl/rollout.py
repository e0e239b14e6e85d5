"""Rollouts: draw masks from the policy, turn their rewards into advantages, and compute the loss on them."""

from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from segdpo.data import Batch
from segdpo.losses import cut_off, kl_k1, kl_k3, normalised, per_ratio
from segdpo.rl.algorithm import Algorithm
from segdpo.rl.rewards import Reward, RewardRequest, rewards_of
from segdpo.scores import entropy, kl, log_prob, sample


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
    kl_coefficient: float,
) -> Rollout:
    """Draw masks, compute their rewards, and turn them into advantages.

    Args:
        batch: images, and gold if the reward needs it.
        logits: of the policy, detached.
        reference_logits: of the reference, if there is a divergence.
        values: of the value head, [images] or [images, height, width], if the algorithm has one.
        algorithm: how many masks, at which temperature; from rewards to advantages.
        reward: of the masks.
        classes: of the masks.
        kl_coefficient: of the divergence in the reward.
    """
    drawn = sample(logits, algorithm.masks, temperature=algorithm.temperature, smoothness=algorithm.smoothness)
    image_index = torch.arange(len(logits), device=logits.device).repeat_interleave(algorithm.masks)
    rewards = rewards_of(reward, RewardRequest(batch.image, drawn, image_index, batch.gold, batch.valid, classes))
    rewards = rewards.view(len(logits), algorithm.masks)
    advantages = advantages_of(rewards, values, algorithm)
    masks = drawn.view(*rewards.shape, *drawn.shape[1:])
    rollout = Rollout(batch.image, batch.valid, logits, reference_logits, masks, rewards, advantages)
    if kl_coefficient == 0 or reference_logits is None:
        return rollout
    return replace(rollout, advantages=penalised(rollout, kl_coefficient, algorithm.ratio))


def advantages_of(rewards: Tensor, values: Tensor | None, algorithm: Algorithm) -> Tensor:
    """Return [images, masks], or [images, masks, height, width] where values are of pixels."""
    if algorithm.baseline is not None:
        found = algorithm.baseline(rewards)
    elif values is not None:
        found = rewards.view(*rewards.shape, *[1] * (values.ndim - 1)) - values.detach()[:, None]
    else:
        raise ValueError(f"Expected values of the value head for {algorithm.name} but got none.")
    return normalised(found) if algorithm.normalise else found


def penalised(rollout: Rollout, kl_coefficient: float, ratio: str) -> Tensor:
    """Return the advantages minus coefficient · log(policy / reference), of each pixel or, for masks, of all pixels.

    The expectation of the log-ratio is the divergence, which is known exactly: subtracting it leaves the expected
    gradient the same and reduces its variance.
    """
    assert rollout.reference_logits is not None
    index, masks = rollout.image_index(), rollout.masks.flatten(0, 1)
    log_ratio = log_prob(rollout.logits, masks, index) - log_prob(rollout.reference_logits, masks, index)
    log_ratio = log_ratio - kl(rollout.logits, rollout.reference_logits).index_select(0, index)
    penalty = log_ratio.masked_fill(~rollout.valid.index_select(0, index), 0.0).view_as(rollout.masks)
    penalty = kl_coefficient * penalty
    if ratio != "pixel":
        return rollout.advantages - penalty.flatten(2).sum(2)
    advantages = rollout.advantages
    return (advantages if advantages.ndim == penalty.ndim else advantages[..., None, None]) - penalty


@dataclass(frozen=True, eq=False)
class Loss:
    """The loss of one step; all but `total` is detached.

    Args:
        total: the weighted sum of the parts.
        parts: `surrogate`, `entropy` and, where the algorithm has them, `divergence` and `value`; not weighted.
        kl_to_old: KL(old policy ‖ policy) a pixel.
        ratio: the mean ratio of a pixel.
        clip_fraction: the share of ratios that are clipped.
    """

    total: Tensor
    parts: dict[str, Tensor]
    kl_to_old: Tensor
    ratio: Tensor
    clip_fraction: Tensor


def loss_of(
    rollout: Rollout, logits: Tensor, values: Tensor | None, algorithm: Algorithm, kl_coefficient: float
) -> Loss:
    """Return surrogate + coefficient · divergence − entropy bonus + value loss of the current `logits` on a rollout.

    Args:
        rollout: masks that an earlier policy has drawn.
        logits: of the policy now, of the rollout's images.
        values: of the value head, if the algorithm has one.
        algorithm: surrogate, ratio, estimator and entropy coefficient.
        kl_coefficient: of the divergence in the loss.
    """
    index, masks = rollout.image_index(), rollout.masks.flatten(0, 1)
    inside = rollout.valid.index_select(0, index)
    new = log_prob(logits / algorithm.temperature, masks, index)
    old = log_prob(rollout.logits / algorithm.temperature, masks, index)
    surrogate, clip_fraction = _surrogate(new, old, rollout.advantages.flatten(0, 1), inside, algorithm)
    parts = {"surrogate": surrogate}
    if kl_coefficient > 0 and rollout.reference_logits is not None:
        # The divergence is that of the policy at temperature 1, whatever the masks were drawn at.
        plain = new if algorithm.temperature == 1 else log_prob(logits, masks, index)
        parts["divergence"] = _divergence(rollout, logits, plain, old, inside, algorithm.divergence.estimator)
    parts["entropy"] = mean_inside(entropy(logits), rollout.valid).mean()
    if values is not None:
        parts["value"] = _value_loss(values, rollout)
    weights = {"surrogate": 1.0, "divergence": kl_coefficient, "entropy": -algorithm.entropy, "value": 1.0}
    total = sum((weights[name] * part for name, part in parts.items() if weights[name] != 0), logits.new_zeros(()))
    with torch.no_grad():
        kl_to_old = mean_inside(kl(rollout.logits, logits), rollout.valid).mean()
        ratio = mean_inside((new - old).exp(), inside).mean()
    return Loss(total, {name: part.detach() for name, part in parts.items()}, kl_to_old, ratio, clip_fraction)


def mean_inside(values: Tensor, inside: Tensor) -> Tensor:
    """Return the mean of each row [n, *spatial] over the pixels inside; 0 where there are none."""
    return torch.where(inside, values, 0.0).flatten(1).sum(1) / inside.flatten(1).sum(1).clamp(min=1)


def _surrogate(
    new: Tensor, old: Tensor, advantages: Tensor, inside: Tensor, algorithm: Algorithm
) -> tuple[Tensor, Tensor]:
    """Return the mean surrogate over masks, and the share of ratios that are clipped; at ratio 1, equal for each."""
    new, old = (per_ratio(one, inside, algorithm.ratio) for one in (new, old))
    loss = algorithm.surrogate(new, old, advantages)
    clipped = cut_off(loss, new, old, advantages).float()
    if algorithm.ratio == "pixel":
        return mean_inside(loss, inside).mean(), mean_inside(clipped, inside).mean()
    # The gradient of the ratio of a mask is that of a sum over pixels, those of the other ratios are of a mean.
    pixels = inside.flatten(1).sum(1).clamp(min=1) if algorithm.ratio == "mask" else 1
    return (loss / pixels).mean(), clipped.mean()


def _divergence(rollout: Rollout, logits: Tensor, new: Tensor, old: Tensor, inside: Tensor, estimator: str) -> Tensor:
    """Return KL(policy ‖ reference) a pixel; estimates are weighted by p / p_old, so that their gradients are right."""
    assert rollout.reference_logits is not None
    if estimator == "exact":
        return mean_inside(kl(logits, rollout.reference_logits), rollout.valid).mean()
    reference = log_prob(rollout.reference_logits, rollout.masks.flatten(0, 1), rollout.image_index())
    estimate = kl_k1(reference - new) if estimator == "k1" else kl_k3(reference - new)
    return mean_inside((new - old).exp() * estimate, inside).mean()


def _value_loss(values: Tensor, rollout: Rollout) -> Tensor:
    """Return ½ (V − R)², mean over masks and, if values are of pixels, over pixels."""
    rewards = rollout.rewards.view(*rollout.rewards.shape, *[1] * (values.ndim - 1))
    error = 0.5 * (values[:, None] - rewards).square()
    return error.mean() if values.ndim == 1 else mean_inside(error.mean(1), rollout.valid).mean()

"""The loss of one step on a rollout: surrogate, divergence, entropy and value, each a mean over pixels and masks."""

from dataclasses import dataclass

import torch
from torch import Tensor

from segdpo.losses.policy_gradient import cut_off, kl_k1, kl_k3, per_ratio
from segdpo.policies.pixel_policy import entropy, kl, log_prob
from segdpo.training.policy_gradient_rollout import Rollout
from segdpo.training.policy_gradient_settings import Algorithm


@dataclass(frozen=True, eq=False)
class Terms:
    """The loss, its parts before they are weighed, and what else is worth watching; all but the total detached."""

    total: Tensor
    parts: dict[str, Tensor]
    watched: dict[str, Tensor]


def terms_of(rollout: Rollout, logits: Tensor, values: Tensor | None, algorithm: Algorithm, price: float) -> Terms:
    """Return the loss of the policy's `logits` now on masks drawn earlier; `price`: of a nat, in the loss."""
    index, masks = rollout.image_index(), rollout.masks.flatten(0, 1)
    inside = rollout.valid.index_select(0, index)
    own = log_prob(logits / algorithm.temperature, masks, index)
    old = log_prob(rollout.logits / algorithm.temperature, masks, index)
    surrogate, cut = _surrogate(own, old, rollout.advantages.flatten(0, 1), inside, algorithm)
    parts = {"surrogate": surrogate}
    if price > 0 and rollout.reference_logits is not None:
        # The divergence is the untempered policy's, whatever the masks were drawn at.
        plain = own if algorithm.temperature == 1 else log_prob(logits, masks, index)
        parts["divergence"] = _divergence(rollout, logits, plain, old, inside, algorithm.divergence.estimator)
    parts["entropy"] = mean_inside(entropy(logits), rollout.valid).mean()
    if values is not None:
        parts["value"] = _value(values, rollout)
    weights = {"surrogate": 1.0, "divergence": price, "entropy": -algorithm.entropy, "value": 1.0}
    total = sum((weights[name] * part for name, part in parts.items() if weights[name] != 0), logits.new_zeros(()))
    with torch.no_grad():
        moved = mean_inside(kl(rollout.logits, logits), rollout.valid).mean()
        ratio = mean_inside((own - old).exp(), inside).mean()
    watched = {"moved": moved, "ratio": ratio, "clip_fraction": cut}
    return Terms(total, {name: part.detach() for name, part in parts.items()}, watched)


def mean_inside(values: Tensor, inside: Tensor) -> Tensor:
    """Return the mean of each row [n, *spatial] over the pixels inside; 0 where there are none."""
    return torch.where(inside, values, 0.0).flatten(1).sum(1) / inside.flatten(1).sum(1).clamp(min=1)


def _surrogate(
    own: Tensor, old: Tensor, advantages: Tensor, inside: Tensor, algorithm: Algorithm
) -> tuple[Tensor, Tensor]:
    """Return the mean over masks, and the share of ratios that are clipped; at r = 1, the same for every ratio."""
    ours, theirs = (per_ratio(one, inside, algorithm.ratio) for one in (own, old))
    loss = algorithm.surrogate(ours, theirs, advantages)
    cut = cut_off(loss, ours, theirs, advantages).float()
    if algorithm.ratio == "pixel":
        return mean_inside(loss, inside).mean(), mean_inside(cut, inside).mean()
    # The mask's own ratio has the gradient of a sum over pixels, the others that of a mean.
    pixels = inside.flatten(1).sum(1).clamp(min=1) if algorithm.ratio == "mask" else 1
    return (loss / pixels).mean(), cut.mean()


def _divergence(rollout: Rollout, logits: Tensor, own: Tensor, old: Tensor, inside: Tensor, estimator: str) -> Tensor:
    """Return KL(policy ‖ reference) a pixel; of samples weighed by p / p_old, so that its gradient is right too."""
    assert rollout.reference_logits is not None
    if estimator == "exact":
        return mean_inside(kl(logits, rollout.reference_logits), rollout.valid).mean()
    theirs = log_prob(rollout.reference_logits, rollout.masks.flatten(0, 1), rollout.image_index())
    estimate = kl_k1(theirs - own) if estimator == "k1" else kl_k3(theirs - own)
    return mean_inside((own - old).exp() * estimate, inside).mean()


def _value(values: Tensor, rollout: Rollout) -> Tensor:
    """Return ½ (V − R)², mean over masks, and pixels where values are theirs."""
    rewards = rollout.rewards.view(*rollout.rewards.shape, *[1] * (values.ndim - 1))
    error = 0.5 * (values[:, None] - rewards).square()
    return error.mean() if values.ndim == 1 else mean_inside(error.mean(1), rollout.valid).mean()

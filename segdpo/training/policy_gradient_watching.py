"""What policy gradients log: of each rollout, and as means over the steps taken on it."""

from collections.abc import Sequence

import torch
from torch import Tensor

from segdpo.policies.pixel_policy import entropy, kl
from segdpo.training.policy_gradient_loss import Terms, mean_inside
from segdpo.training.policy_gradient_rollout import Rollout

PARTS = ("surrogate", "divergence", "entropy", "value")
POLICY = ("kl", "entropy", "moved", "ratio", "clip_fraction", "one_class", "epochs", "gradient_norm")
NAMES = ("loss", "reward", "reward_std", "price", *(f"loss/{name}" for name in PARTS), *(f"policy/{n}" for n in POLICY))


@torch.no_grad()
def values_of(rollout: Rollout) -> dict[str, Tensor]:
    """Return the reward, its deviation within an image, the policy's entropy a pixel and its divergence an image."""
    values = {"reward": rollout.rewards.mean(1), "policy/entropy": mean_inside(entropy(rollout.logits), rollout.valid)}
    if rollout.rewards.shape[1] > 1:
        values["reward_std"] = rollout.rewards.std(1)
    if rollout.reference_logits is not None:
        nats = kl(rollout.logits, rollout.reference_logits).masked_fill(~rollout.valid, 0.0)
        values["policy/kl"] = nats.flatten(1).sum(1)
    return values


def means_of_steps(found: Sequence[Terms], norms: Sequence[Tensor], minibatches: int) -> dict[str, Tensor]:
    """Return means over the steps of a rollout; `moved` is how far the policy was at its last look."""
    values = {"loss": torch.stack([terms.total.detach() for terms in found]).mean()}
    for name in found[0].parts:
        values[f"loss/{name}"] = torch.stack([terms.parts[name] for terms in found]).mean()
    for name in ("ratio", "clip_fraction"):
        values[f"policy/{name}"] = torch.stack([terms.watched[name] for terms in found]).mean()
    values["policy/moved"] = found[-1].watched["moved"]
    values["policy/epochs"] = torch.tensor(len(norms) / minibatches)
    if norms:
        values["policy/gradient_norm"] = torch.stack(list(norms)).mean()
    return values

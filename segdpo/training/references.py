"""References: what the policy is compared with. Each is called with a batch, under no_grad and in evaluation mode.

A reference is not part of the task's parameters: it is not trained, not switched by `train()`, not in the optimiser.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import nn

from segdpo.losses import PreferenceLoss
from segdpo.models import adapter_off, fingerprint
from segdpo.scores import PairScores, Score
from segdpo.training.scoring import Logits, PreferenceBatch, logits_of

Answer = Logits | Mapping[Score, PairScores]


class Reference:
    """Base class: a reference of your own overrides `__call__`, and of the other methods those that it needs."""

    low_resolution = False
    """Whether the task wants logits before their upsampling; set by the task."""
    window: int | None = None
    """Side of the windows in which larger images are predicted, in evaluation; set by the task."""

    def __call__(self, batch: PreferenceBatch, policy: nn.Module) -> Answer:
        """Return the reference's logits for the batch's images, or its scores of the batch's pairs.

        Args:
            batch: pairs or rankings, on the policy's device.
            policy: the network that is trained.
        """
        raise NotImplementedError

    def logits(self, network: nn.Module, batch: PreferenceBatch) -> Logits:
        """Return a network's logits for the batch's images, at the resolution that the task wants."""
        return logits_of(network, batch.image, self.low_resolution, self.window)

    def beside_policy(self, policy: nn.Module) -> AbstractContextManager[None]:
        """Return a context in which first the reference and then the policy is called with a batch."""
        return nullcontext()

    def check(self, loss: PreferenceLoss) -> None:
        """Refuse, before training, a loss that reads what this reference does not provide."""

    def prepare(self, task: LightningModule, policy: nn.Module, scores: Sequence[Score]) -> None:
        """Prepare when training starts; `task.trainer` and its data module are set.

        Args:
            task: the task.
            policy: the network that is trained.
            scores: all scores that will be read.
        """

    def see(self, batch: PreferenceBatch) -> None:
        """Receive a batch while it is still on the CPU."""

    def after_step(self, policy: nn.Module, step: int) -> None:
        """Update the reference after a step of the optimiser."""

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint has to contain."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state of a checkpoint, or refuse one of another reference."""


class NoReference(Reference):
    """No reference, for losses that need none: cpo, simpo, orpo, arpo, sft."""

    def __init__(self, network: nn.Module | None = None) -> None:
        """Accept a network, as every reference does, and ignore it."""

    def __call__(self, batch: PreferenceBatch, policy: nn.Module) -> Answer:
        """Return no scores."""
        return {}

    def check(self, loss: PreferenceLoss) -> None:
        """Refuse a loss that needs a reference."""
        if loss.needs_reference:
            raise ValueError(
                "Expected a reference for this loss but got reference=none; use reference=frozen, "
                "or a loss that needs none (cpo, simpo, orpo, arpo, sft)."
            )


class FrozenCopy(Reference):
    """A copy of the network that never changes: one more forward per step, one more copy in memory."""

    def __init__(self, network: nn.Module) -> None:
        self.network = frozen_copy(network)
        self.fingerprint = fingerprint(self.network)

    @torch.no_grad()
    def __call__(self, batch: PreferenceBatch, policy: nn.Module) -> Answer:
        """Return the copy's logits."""
        return self.logits(beside(self.network, policy), batch)

    def state_dict(self) -> dict[str, Any]:
        """Return the fingerprint of the weights."""
        return {"fingerprint": self.fingerprint}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Refuse a checkpoint that was trained against other weights."""
        check_fingerprint(state.get("fingerprint"), self.fingerprint)


class AdapterOff(Reference):
    """The policy with its adapter switched off: no second copy in memory, one more forward per step."""

    def __init__(self, network: nn.Module | None = None) -> None:
        """Accept a network, as every reference does, and ignore it: the policy contains its weights."""

    @torch.no_grad()
    def __call__(self, batch: PreferenceBatch, policy: nn.Module) -> Answer:
        """Return the logits of the policy without its adapter."""
        with adapter_off(policy), in_eval(policy):
            return self.logits(policy, batch)


class Moving(Reference):
    """A copy that follows the policy; checkpoints contain its weights.

    Args:
        network: what it starts as.
        decay: after each step, reference = decay · reference + (1 − decay) · policy.
        every: instead, copy the policy every so many steps.
    """

    def __init__(self, network: nn.Module, *, decay: float | None = None, every: int | None = None) -> None:
        if (decay is None) == (every is None):
            raise ValueError("Expected either decay (a moving average) or every (steps between copies); set one.")
        if decay is not None and not 0 <= decay < 1:
            raise ValueError(f"Expected decay from 0 to below 1 but got {decay}.")
        if every is not None and every < 1:
            raise ValueError(f"Expected a copy every 1 or more steps but got {every}.")
        self.network = frozen_copy(network)
        self._decay, self._every = decay, every

    @torch.no_grad()
    def __call__(self, batch: PreferenceBatch, policy: nn.Module) -> Answer:
        """Return the copy's logits."""
        return self.logits(beside(self.network, policy), batch)

    @torch.no_grad()
    def after_step(self, policy: nn.Module, step: int) -> None:
        """Move the average, or copy the policy if it is time."""
        if self._every is not None and step % self._every:
            return
        own, new = beside(self.network, policy).state_dict(), policy.state_dict()
        if own.keys() != new.keys():
            raise ValueError(
                "Expected a policy with the weights of the reference but their names differ, "
                f"first {min(own.keys() ^ new.keys())!r}; a moving reference needs adapter=none."
            )
        smooth = [name for name in own if self._decay is not None and own[name].is_floating_point()]
        if smooth:
            torch._foreach_lerp_([own[n] for n in smooth], [new[n] for n in smooth], 1 - (self._decay or 0))
        for name in own.keys() - set(smooth):
            own[name].copy_(new[name])

    def state_dict(self) -> dict[str, Any]:
        """Return the weights."""
        return {"network": self.network.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the weights."""
        if "network" not in state:
            raise ValueError(
                "Expected the weights of a moving reference in the checkpoint but it has none; "
                "resume with the reference= of the run that wrote it."
            )
        self.network.load_state_dict(state["network"])


def frozen_copy(network: nn.Module) -> nn.Module:
    """Return a copy in evaluation mode that is not trained."""
    return copy.deepcopy(network).eval().requires_grad_(False)


def beside(network: nn.Module, policy: nn.Module) -> nn.Module:
    """Return the network, moved to the policy's device and precision."""
    own, like = next(network.parameters(), None), next(policy.parameters(), None)
    if own is not None and like is not None and (own.device != like.device or own.dtype != like.dtype):
        moved(network, device=like.device, dtype=like.dtype)
    return network


def moved(network: nn.Module, **to: Any) -> nn.Module:
    """Return the network, moved as by `.to(…)`; its weights stay ordinary tensors in inference mode too."""
    with torch.inference_mode(False):
        return network.to(**to)


def check_fingerprint(expected: object, own: str) -> None:
    """Refuse a checkpoint that was trained against other weights."""
    if expected != own:
        raise ValueError(
            f"Expected the reference that the checkpoint was trained against (fingerprint {expected}) but this one has "
            f"other weights ({own}); resume with the same reference, or start a new run from the checkpoint's weights."
        )


@contextmanager
def in_eval(module: nn.Module) -> Iterator[None]:
    """Put every submodule into evaluation mode inside the `with`, and back into its own mode after it."""
    training = [part for part in module.modules() if part.training]
    module.eval()
    try:
        yield
    finally:
        for part in training:
            part.training = True

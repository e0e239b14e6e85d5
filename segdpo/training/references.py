"""References: what the policy is held against. Each is asked with a batch and answers under no_grad, in eval mode.

A reference is no part of the task's parameters: it is not trained, not switched by `train()`, not in the optimiser.
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
    """What the task asks of a reference; a reference of your own answers `__call__` and whichever of these it needs."""

    low_resolution = False  # the task sets it while it trains on logits before their upsampling

    def __call__(self, batch: PreferenceBatch, policy: nn.Module) -> Answer:
        """Return the reference's logits for the batch's images, or its scores of the batch's pairs."""
        raise NotImplementedError

    def logits(self, network: nn.Module, batch: PreferenceBatch) -> Logits:
        """Return a network's logits for the batch's images, at the resolution that the task asks for."""
        return logits_of(network, batch.image, self.low_resolution)

    def beside_policy(self, policy: nn.Module) -> AbstractContextManager[None]:
        """Surround a batch for which first the reference is asked and then the policy."""
        return nullcontext()

    def check(self, loss: PreferenceLoss) -> None:
        """Refuse, before training, a loss that asks for what this reference cannot give."""

    def prepare(self, task: LightningModule, policy: nn.Module, scores: Sequence[Score]) -> None:
        """Get ready when training starts: the task has its trainer, the trainer its data module."""

    def see(self, batch: PreferenceBatch) -> None:
        """Look at a batch while it is still on the CPU."""

    def after_step(self, policy: nn.Module, step: int) -> None:
        """Follow the policy after a step of the optimiser."""

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint has to keep."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint, or refuse one of another reference."""


class NoReference(Reference):
    """For losses that ask for none: cpo, simpo, orpo, arpo, sft."""

    def __init__(self, network: nn.Module | None = None) -> None:
        """Take a network as every reference does, and let go of it."""

    def __call__(self, batch: PreferenceBatch, policy: nn.Module) -> Answer:
        """Return no scores."""
        return {}

    def check(self, loss: PreferenceLoss) -> None:
        """Refuse a loss that asks for a reference."""
        if loss.needs_reference:
            raise ValueError(
                "Expected a reference for this loss but got reference=none; use reference=frozen, "
                "or a loss that needs none (cpo, simpo, orpo, arpo, sft)."
            )


class FrozenCopy(Reference):
    """A copy of the network with the weights it has now, for ever. One more forward a step, one more copy in memory."""

    def __init__(self, network: nn.Module) -> None:
        self.network = frozen_copy(network)
        self.fingerprint = fingerprint(self.network)

    @torch.no_grad()
    def __call__(self, batch: PreferenceBatch, policy: nn.Module) -> Answer:
        """Return the copy's logits."""
        return self.logits(beside(self.network, policy), batch)

    def state_dict(self) -> dict[str, Any]:
        """Return which weights these are."""
        return {"fingerprint": self.fingerprint}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Refuse a checkpoint that was trained against other weights."""
        check_fingerprint(state.get("fingerprint"), self.fingerprint)


class AdapterOff(Reference):
    """The policy with its adapter switched off: no second copy in memory, one more forward a step."""

    def __init__(self, network: nn.Module | None = None) -> None:
        """Take a network as every reference does, and let go of it: the policy holds these weights."""

    @torch.no_grad()
    def __call__(self, batch: PreferenceBatch, policy: nn.Module) -> Answer:
        """Return the logits of the policy without its adapter."""
        with adapter_off(policy), in_eval(policy):
            return self.logits(policy, batch)


class Moving(Reference):
    """A copy that follows the policy: by a moving average (`decay`), or taken anew every `every` steps.

    After each step: reference = decay · reference + (1 − decay) · policy. Its weights are kept in checkpoints.
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
        """Move, or be copied if it is time."""
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
        """Take the weights of the checkpoint."""
        if "network" not in state:
            raise ValueError(
                "Expected the weights of a moving reference in the checkpoint but it has none; "
                "resume with the reference= of the run that wrote it."
            )
        self.network.load_state_dict(state["network"])


def frozen_copy(network: nn.Module) -> nn.Module:
    """Return a copy in eval mode that nothing trains."""
    return copy.deepcopy(network).eval().requires_grad_(False)


def beside(network: nn.Module, policy: nn.Module) -> nn.Module:
    """Bring the network to the policy's device and precision, if it is not there yet."""
    own, like = next(network.parameters(), None), next(policy.parameters(), None)
    if own is not None and like is not None and (own.device != like.device or own.dtype != like.dtype):
        network.to(device=like.device, dtype=like.dtype)
    return network


def check_fingerprint(expected: object, own: str) -> None:
    """Refuse to go on from a checkpoint that was trained against other weights."""
    if expected != own:
        raise ValueError(
            f"Expected the reference that the checkpoint was trained against (fingerprint {expected}) but this one's "
            f"weights are others ({own}); resume with the same reference, or start anew from the checkpoint's weights."
        )


@contextmanager
def in_eval(module: nn.Module) -> Iterator[None]:
    """Put every part of a module into eval mode inside the `with`, and back into its own mode after it."""
    training = [part for part in module.modules() if part.training]
    module.eval()
    try:
        yield
    finally:
        for part in training:
            part.training = True

"""A reference that shares the policy's encoder: for policies that train their decoder and head alone."""

import copy
import itertools
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from segdpo.models import fingerprint, fingerprint_tensors, parts_of
from segdpo.training.references import Answer, Reference, beside, check_fingerprint
from segdpo.training.scoring import PreferenceBatch

# What Lightning's precisions make of a network's weights.
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class SharedEncoder(Reference):
    """A frozen copy of all but the encoder, which is the policy's own: it runs once a step, for both networks.

    The encoder has to be frozen, held in eval mode and of the reference's weights, so that it is the reference's too;
    anything else is refused. The features that it gives the reference are handed to the policy.

    Args:
        network: the reference; its encoder is not copied.
        encoder: name of the submodule in network and policy alike, such as "network.backbone" (torchvision) or
            "network.segformer" (Hugging Face). Whatever follows it must not change features in place.
    """

    def __init__(self, network: nn.Module, encoder: str = "network.encoder") -> None:
        own = _submodule(network, encoder)
        self._name = encoder
        self.fingerprint = fingerprint(network)
        self._print, self._prints = fingerprint(own), {dtype: _print_of(own, dtype) for dtype in DTYPES}
        # Found in the memo, it is not copied: an empty module keeps its place.
        self.network = copy.deepcopy(network, {id(own): nn.Module()}).eval().requires_grad_(False)
        self._seen: tuple[Any, ...] = ()
        self._shelf: _Shelf | None = None

    @torch.no_grad()
    def __call__(self, batch: PreferenceBatch, policy: nn.Module) -> Answer:
        """Return the logits of the own decoder and head on the policy's encoder."""
        # Inside beside_policy it has been looked at already.
        encoder = self._checked(policy) if self._shelf is None else _submodule(policy, self._name)
        network = beside(self.network, policy)
        place = network.get_submodule(self._name)
        network.set_submodule(self._name, encoder)
        # Whoever asks for the reference alone gets it, and leaves nothing on a shelf.
        shelf = self._shelf or _Shelf(encoder.forward)
        shelf.fills = True
        try:
            return self.logits(network, batch)
        finally:
            shelf.fills = False
            network.set_submodule(self._name, place)

    @contextmanager
    def beside_policy(self, policy: nn.Module) -> Iterator[None]:
        """Inside the `with`, ask the reference first, then the policy: its encoder then gives the same features."""
        encoder = self._checked(policy)
        before = encoder.__dict__.get("forward")
        self._shelf = encoder.__dict__["forward"] = _Shelf(encoder.forward)
        try:
            yield
        finally:
            self._shelf = None
            del encoder.__dict__["forward"]
            if before is not None:
                encoder.__dict__["forward"] = before

    def state_dict(self) -> dict[str, Any]:
        """Return which weights these are: those of the whole, as for a frozen copy."""
        return {"fingerprint": self.fingerprint}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Refuse a checkpoint that was trained against other weights."""
        check_fingerprint(state.get("fingerprint"), self.fingerprint)

    def _checked(self, policy: nn.Module) -> nn.Module:
        """Return the policy's encoder, if it is the reference's too."""
        encoder = _submodule(policy, self._name)
        trained = [name for name, parameter in encoder.named_parameters() if parameter.requires_grad]
        if trained:
            raise ValueError(
                f"Expected an encoder that is not trained but {len(trained)} parameters of {self._name} are, first "
                f"{trained[0]}; freeze it (freeze=[{self._name}]), or use reference=frozen."
            )
        moving = next((name for name, part in encoder.named_modules() if part.training), None)
        if moving is not None:
            raise ValueError(
                f"Expected an encoder in eval mode but {self._name}{'.' * bool(moving)}{moving} is in training mode, "
                "where statistics move and dropout draws; set hold_statistics=true, or use reference=frozen."
            )
        # To hash all weights takes long; whatever is written into them counts their versions up.
        tensors = itertools.chain(encoder.parameters(), encoder.buffers())
        seen = tuple((tensor.data_ptr(), tensor._version) for tensor in tensors)
        if seen != self._seen:
            self._check_weights(encoder)
            self._seen = seen
        return encoder

    def _check_weights(self, encoder: nn.Module) -> None:
        dtype = next((parameter.dtype for parameter in encoder.parameters()), torch.float32)
        if fingerprint(encoder) not in (self._print, self._prints.get(dtype)):
            raise ValueError(
                f"Expected {self._name} of the policy to have the reference's weights but it has others, or an "
                "adapter; start the policy from the reference and keep adapters out of its encoder "
                "(adapter.targets=[network.decoder*]), or use reference=frozen."
            )


class _Shelf:
    """Stands for an encoder's forward: what it gave the reference is kept and given to the policy."""

    def __init__(self, forward: Callable[..., Any]) -> None:
        self._forward = forward
        self._kept: deque[tuple[Any, Any, list[int]]] = deque()
        self.fills = False

    def __call__(self, *args: Any, **keywords: Any) -> Any:
        """Compute and keep, or give what was kept for the same input."""
        asked = (args, keywords)
        if not self.fills:
            return self._take(asked) if self._kept else self._forward(*args, **keywords)
        features = self._forward(*args, **keywords)
        self._kept.append((asked, features, _versions(features)))
        # A list of its own for each of the two. Tensors made in inference mode do not count what is written into them.
        return tree_map(lambda one: one.clone() if _untracked(one) else one, features)

    def _take(self, asked: Any) -> Any:
        shown, features, versions = self._kept.popleft()
        if not _equal(shown, asked):
            raise RuntimeError(
                "Expected the policy to show its encoder what the reference showed it but the input is another; the "
                "two networks have to be alike before the encoder, or use reference=frozen."
            )
        if _versions(features) != versions:
            raise RuntimeError(
                "Expected features that stay as they are but the reference's decoder wrote into them (an operation in "
                "place); use reference=frozen with this network."
            )
        return features


def _submodule(network: nn.Module, name: str) -> nn.Module:
    try:
        return network.get_submodule(name)
    except AttributeError as error:
        there = parts_of(part for part, _ in network.named_modules() if part)
        raise ValueError(
            f"Expected a submodule {name} in the network but there is none; it has {', '.join(there)}: set "
            "reference.encoder to its encoder."
        ) from error


def _print_of(encoder: nn.Module, dtype: torch.dtype) -> str:
    """Return the fingerprint that the encoder has when it is cast to `dtype`."""
    state = encoder.state_dict().items()
    return fingerprint_tensors({name: value.to(dtype) if value.is_floating_point() else value for name, value in state})


def _untracked(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_inference()


def _versions(features: Any) -> list[int]:
    return [one._version for one in tree_leaves(features) if isinstance(one, Tensor) and not one.is_inference()]


def _equal(one: Any, other: Any) -> bool:
    """Say whether two calls have the same arguments; the same tensor is not read."""
    pairs = zip(tree_leaves(one), tree_leaves(other), strict=False)
    return len(tree_leaves(one)) == len(tree_leaves(other)) and all(
        a is b or (torch.equal(a, b) if isinstance(a, Tensor) and isinstance(b, Tensor) else a == b) for a, b in pairs
    )

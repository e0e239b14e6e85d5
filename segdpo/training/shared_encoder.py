"""A reference that shares the policy's frozen encoder."""

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

# Types to which Lightning's precisions cast a network's weights.
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class SharedEncoder(Reference):
    """A frozen copy of everything but the encoder: the policy's encoder runs once per step, for both networks.

    For policies that train only their decoder and head. The policy's encoder has to be frozen, in evaluation mode and
    of the reference's weights; anything else is refused. Its features for the reference are reused for the policy.

    Args:
        network: the reference; its encoder is not copied.
        encoder: name of the submodule in both networks, such as "network.backbone" (torchvision) or
            "network.segformer" (Hugging Face). What follows it must not change features in place.
    """

    def __init__(self, network: nn.Module, encoder: str = "network.encoder") -> None:
        own = _submodule(network, encoder)
        self._name = encoder
        self.fingerprint = fingerprint(network)
        self._print, self._prints = fingerprint(own), {dtype: _print_of(own, dtype) for dtype in DTYPES}
        # deepcopy takes what is in the memo instead of copying: an empty module in place of the encoder.
        self.network = copy.deepcopy(network, {id(own): nn.Module()}).eval().requires_grad_(False)
        self._checked_versions: tuple[Any, ...] = ()
        self._features: _Features | None = None

    @torch.no_grad()
    def __call__(self, batch: PreferenceBatch, policy: nn.Module) -> Answer:
        """Return the logits of the reference's decoder and head on the policy's encoder."""
        # Inside beside_policy it is checked already.
        encoder = self._checked(policy) if self._features is None else _submodule(policy, self._name)
        network = beside(self.network, policy)
        empty = network.get_submodule(self._name)
        network.set_submodule(self._name, encoder)
        # Called without the policy, the reference keeps no features.
        features = self._features or _Features(encoder.forward)
        features.keep = True
        try:
            return self.logits(network, batch)
        finally:
            features.keep = False
            network.set_submodule(self._name, empty)

    @contextmanager
    def beside_policy(self, policy: nn.Module) -> Iterator[None]:
        """Reuse features inside the `with`: call the reference first, then the policy."""
        encoder = self._checked(policy)
        before = encoder.__dict__.get("forward")
        self._features = encoder.__dict__["forward"] = _Features(encoder.forward)
        try:
            yield
        finally:
            self._features = None
            del encoder.__dict__["forward"]
            if before is not None:
                encoder.__dict__["forward"] = before

    def state_dict(self) -> dict[str, Any]:
        """Return the fingerprint of all weights, as a frozen copy does."""
        return {"fingerprint": self.fingerprint}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Refuse a checkpoint that was trained against other weights."""
        check_fingerprint(state.get("fingerprint"), self.fingerprint)

    def _checked(self, policy: nn.Module) -> nn.Module:
        """Return the policy's encoder, or refuse it if it is not the reference's too."""
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
                "where statistics change and dropout is active; set hold_statistics=true, or use reference=frozen."
            )
        # Hashing all weights takes long; every write increases a tensor's version.
        tensors = itertools.chain(encoder.parameters(), encoder.buffers())
        versions = tuple((tensor.data_ptr(), tensor._version) for tensor in tensors)
        if versions != self._checked_versions:
            self._check_weights(encoder)
            self._checked_versions = versions
        return encoder

    def _check_weights(self, encoder: nn.Module) -> None:
        dtype = next((parameter.dtype for parameter in encoder.parameters()), torch.float32)
        if fingerprint(encoder) not in (self._print, self._prints.get(dtype)):
            raise ValueError(
                f"Expected {self._name} of the policy to have the reference's weights but it has others, or an "
                "adapter; start the policy from the reference and keep adapters out of its encoder "
                "(adapter.targets=[network.decoder*]), or use reference=frozen."
            )


class _Features:
    """Replaces an encoder's forward: features computed for the reference are kept and returned to the policy."""

    def __init__(self, forward: Callable[..., Any]) -> None:
        self._forward = forward
        self._kept: deque[tuple[Any, Any, list[int]]] = deque()
        self.keep = False

    def __call__(self, *args: Any, **keywords: Any) -> Any:
        """Compute features and keep them, or return those that were kept for the same input."""
        given = (args, keywords)
        if not self.keep:
            return self._take(given) if self._kept else self._forward(*args, **keywords)
        features = self._forward(*args, **keywords)
        self._kept.append((given, features, _versions(features)))
        # Lists are copied, one for each network; so are inference tensors, which have no versions.
        return tree_map(lambda one: one.clone() if _has_no_version(one) else one, features)

    def _take(self, given: Any) -> Any:
        kept, features, versions = self._kept.popleft()
        if not _equal(kept, given):
            raise RuntimeError(
                "Expected the same encoder input for policy and reference but got another for the policy; the two "
                "networks have to be alike before the encoder, or use reference=frozen."
            )
        if _versions(features) != versions:
            raise RuntimeError(
                "Expected features that stay unchanged but the reference's decoder wrote into them (an operation in "
                "place); use reference=frozen with this network."
            )
        return features


def _submodule(network: nn.Module, name: str) -> nn.Module:
    try:
        return network.get_submodule(name)
    except AttributeError as error:
        parts = parts_of(part for part, _ in network.named_modules() if part)
        raise ValueError(
            f"Expected a submodule {name} in the network but got {', '.join(parts)}; set reference.encoder to its "
            "encoder."
        ) from error


def _print_of(encoder: nn.Module, dtype: torch.dtype) -> str:
    """Return the encoder's fingerprint after a cast to `dtype`."""
    state = encoder.state_dict().items()
    return fingerprint_tensors({name: value.to(dtype) if value.is_floating_point() else value for name, value in state})


def _has_no_version(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_inference()


def _versions(features: Any) -> list[int]:
    return [one._version for one in tree_leaves(features) if isinstance(one, Tensor) and not one.is_inference()]


def _equal(one: Any, other: Any) -> bool:
    """Return whether two calls have equal arguments; identical tensors are not read."""
    pairs = zip(tree_leaves(one), tree_leaves(other), strict=False)
    return len(tree_leaves(one)) == len(tree_leaves(other)) and all(
        a is b or (torch.equal(a, b) if isinstance(a, Tensor) and isinstance(b, Tensor) else a == b) for a, b in pairs
    )

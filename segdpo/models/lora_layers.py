"""Which layers of a network get a LoRA, which cannot have one and why."""

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

from torch import nn

from segdpo.models.freezing import parts_of

_LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


def choose_layers(
    module: nn.Module, targets: Sequence[str], besides: Sequence[str] = ()
) -> tuple[list[str], dict[str, str]]:
    """Return the names of the layers that get a LoRA, and of those that cannot have one with the reason.

    Layers in the modules `besides` are left out without a word: they are trained whole.
    """
    layers = {
        name: layer
        for name, layer in module.named_modules()
        if isinstance(layer, _LAYERS) and not any(f"{name}.".startswith(f"{other}.") for other in besides)
    }
    taken, skipped = [], {}
    for name in _matching(layers, targets):
        why = _refusal(layers[name])
        if why is None:
            taken.append(name)
        else:
            skipped[name] = why
    if not taken:
        raise ValueError(
            f"Expected a layer that can have a LoRA among {', '.join(targets)} but all {len(skipped)} are refused "
            f"({', '.join(sorted(set(skipped.values())))}); choose other adapter.targets, or adapter=none."
        )
    return taken, skipped


def choose_modules(module: nn.Module, patterns: Sequence[str]) -> list[str]:
    """Return the names of the modules that the patterns match, without those that are inside another one."""
    named = {name: part for name, part in module.named_modules() if name and any(True for _ in part.parameters())}
    found = _matching(named, patterns)
    return [name for name in found if not any(name.startswith(f"{other}.") for other in found)]


def _matching(named: Mapping[str, nn.Module], patterns: Sequence[str]) -> list[str]:
    patterns = [patterns] if isinstance(patterns, str) else patterns
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in named):
            raise ValueError(
                f"Expected {pattern!r} to match parts of the network but it matches none; there are "
                f"{', '.join(parts_of(named))} and what is in them."
            )
    return [name for name in named if any(fnmatchcase(name, pattern) for pattern in patterns)]


def _refusal(layer: nn.Module) -> str | None:
    # A kind of its own computes something of its own (another padding; attention reads the weight past the layer).
    if type(layer) not in _LAYERS:
        return f"a {type(layer).__name__} is no plain layer"
    groups = getattr(layer, "groups", 1)
    return f"a convolution in {groups} groups cannot be merged" if groups > 1 else None

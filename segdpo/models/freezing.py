"""Keeping parts of a network as they are: parameters by name, statistics and dropout by mode."""

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from torch import nn


def freeze_parts(module: nn.Module, patterns: Sequence[str]) -> list[str]:
    """Take parameters out of training by name and return their names.

    A pattern as of file names ("network.encoder*", "*.bias") is held against the names of parameters and of modules;
    a module that matches is frozen whole. Add an adapter before: what is frozen then counts for it too. The running
    statistics of frozen layers move on in training unless `hold_statistics` holds them.
    """
    patterns = [patterns] if isinstance(patterns, str) else patterns
    parameters = dict(module.named_parameters())
    frozen: set[str] = set()
    for pattern in patterns:
        matched = [name for name in parameters if any(fnmatchcase(part, pattern) for part in _parts_of(name))]
        if not matched:
            raise ValueError(
                f"Expected {pattern!r} to match parameters of the network but it matches none; there are "
                f"{', '.join(parts_of(parameters))} and what is in them."
            )
        frozen.update(matched)
    for name in frozen:
        parameters[name].requires_grad_(False)
    if frozen and not any(parameter.requires_grad for parameter in parameters.values()):
        raise ValueError(f"Expected something left to train but {', '.join(patterns)} freezes it all; freeze less.")
    return [name for name in parameters if name in frozen]


def hold_statistics(module: nn.Module) -> None:
    """Make the network compute in training what it computes in evaluation; call it again after every `.train()`.

    Normalisation uses its running statistics and leaves them alone, nothing is dropped. A LoRA's own dropout stays: it
    changes nothing while the adapter is what it starts as, zero.
    """
    for name, part in module.named_modules():
        # Not only the layers called dropout: attention drops by its own flag, so do stochastic depth and
        # whatever a network brings along. Gradients do not ask for the mode.
        if "lora_dropout" not in name.split("."):
            part.training = False


def parts_of(names: Iterable[str], depth: int = 2) -> list[str]:
    """Return the distinct beginnings of dotted names, to say what there is."""
    return list(dict.fromkeys(".".join(name.split(".")[:depth]) for name in names))


def _parts_of(name: str) -> list[str]:
    """Return a parameter's name and those of all modules that it is in: a.b.weight, a.b, a."""
    parts = name.split(".")
    return [".".join(parts[:end]) for end in range(len(parts), 0, -1)]

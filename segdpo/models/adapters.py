"""Low-rank adapters (LoRA) for segmentation models."""

import copy
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, cast

from torch import nn

from segdpo.extras import extra_named
from segdpo.models.segmenter import Segmenter, parts_of
from segdpo.models.weights import save_tensors

log = logging.getLogger(__name__)

# The name that peft gives an only adapter.
ADAPTER = "default"
LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


def add_lora(
    segmenter: Segmenter,
    *,
    rank: int = 8,
    alpha: float = 16.0,
    dropout: float = 0.0,
    targets: Sequence[str] = ("*",),
    modules_to_save: Sequence[str] = (),
) -> Segmenter:
    """Freeze the network and replace W of its convolutions and linear layers by W + alpha/rank · B·A, in place.

    B starts at 0, so the policy starts as the reference. BatchNorm statistics belong to the network, not to the
    adapter: call `hold_statistics`, or the reference changes with the policy.
    Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", 2021 (arXiv 2106.09685).

    Args:
        segmenter: the network, with the reference's weights in it.
        rank: columns of B and rows of A.
        alpha: scale; the addition is multiplied by alpha/rank.
        dropout: share of the adapter's input that is dropped.
        targets: patterns ("network.decoder*") of the layers' names; layers that peft cannot merge (grouped
            convolutions, subclasses of layers) are skipped and named in the log.
        modules_to_save: patterns of modules that are trained in full, such as "network.segmentation_head"; the
            reference keeps the original module.
    """
    with extra_named():
        from peft import LoraConfig, inject_adapter_in_model

    if rank < 1 or not 0 <= dropout < 1:
        raise ValueError(f"Expected rank ≥ 1 and dropout in [0, 1) but got {rank} and {dropout}; set adapter.rank.")
    if has_adapter(segmenter):
        raise ValueError("Expected a network without an adapter but it has one; merge_adapter first, or add only one.")
    full = choose_modules(segmenter, modules_to_save) if modules_to_save else []
    adapted, skipped = choose_layers(segmenter, targets, full)
    for name, reason in skipped.items():
        log.info("no LoRA on %s: %s", name, reason)
    # By their full names: peft also matches names that end in the given one.
    rest: dict[str, Any] = {"modules_to_save": full or None}
    inject_adapter_in_model(
        LoraConfig(r=rank, lora_alpha=cast(int, alpha), lora_dropout=dropout, target_modules=adapted, **rest),
        segmenter,
        ADAPTER,
    )
    for name in adapted:
        _copy_geometry(segmenter.get_submodule(name))
    log.info("LoRA of rank %d on %d layers, %d skipped", rank, len(adapted), len(skipped))
    return segmenter


def no_adapter(segmenter: Segmenter) -> Segmenter:
    """Return the network unchanged: all of it is trained."""
    return segmenter


def has_adapter(module: nn.Module) -> bool:
    """Return whether there is a LoRA in the network."""
    return any(".lora_" in name for name, _ in module.named_parameters())


@contextmanager
def adapter_off(module: nn.Module) -> Iterator[None]:
    """Switch the adapter off inside the `with`: the module then computes exactly what it did before `add_lora`.

    `requires_grad` does not change, so a graph built before stays valid.
    """
    layers = _adapted(module)
    if not layers:
        _need_adapter(module)
    # peft's own switch changes requires_grad, also of parameters that a user froze.
    parameters = [parameter for layer in layers for parameter in layer.parameters()]
    trained = [parameter.requires_grad for parameter in parameters]
    before = [layer.disable_adapters for layer in layers]
    try:
        _switch(layers, [True] * len(layers))
        yield
    finally:
        _switch(layers, before)
        for parameter, requires_grad in zip(parameters, trained, strict=True):
            if parameter.requires_grad != requires_grad:
                parameter.requires_grad_(requires_grad)


def merge_adapter(module: Segmenter) -> Segmenter:
    """Return a copy without adapter that computes the same; the network itself does not change."""
    _need_adapter(module)
    merged = copy.deepcopy(module)
    for name, part in list(merged.named_modules()):
        if hasattr(part, "lora_A"):
            part.merge(safe_merge=True)
            merged.set_submodule(name, part.get_base_layer())
        elif hasattr(part, "original_module"):
            merged.set_submodule(name, part.modules_to_save[ADAPTER])
    del merged.peft_config
    return merged.requires_grad_(True)


def save_adapter(folder: str | Path, module: nn.Module) -> None:
    """Write the adapter alone, and what was trained in full, in peft's format.

    `peft.PeftModel.from_pretrained(network, folder)` adds it to the same network with the reference's weights. Not for
    dilated convolutions, whose dilation peft does not copy.

    Args:
        folder: gets adapter_config.json and adapter_model.safetensors.
        module: a network with an adapter.
    """
    from peft import get_peft_model_state_dict

    _need_adapter(module)
    cast(dict[str, Any], module.peft_config)[ADAPTER].save_pretrained(str(folder))
    state = get_peft_model_state_dict(module, adapter_name=ADAPTER)
    save_tensors(
        Path(folder) / "adapter_model.safetensors",
        {f"base_model.model.{name}": value for name, value in state.items()},
        {"format": "pt"},
    )


def choose_layers(
    module: nn.Module, targets: Sequence[str], besides: Sequence[str] = ()
) -> tuple[list[str], dict[str, str]]:
    """Return the names of the layers that get a LoRA, and name → reason of those that cannot have one.

    Args:
        module: the network.
        targets: patterns of the layers' names.
        besides: names of modules that are trained in full; their layers are left out.
    """
    layers = {
        name: layer
        for name, layer in module.named_modules()
        if isinstance(layer, LAYERS) and not any(f"{name}.".startswith(f"{other}.") for other in besides)
    }
    chosen, skipped = [], {}
    for name in _matching(layers, targets):
        reason = _refusal(layers[name])
        if reason is None:
            chosen.append(name)
        else:
            skipped[name] = reason
    if not chosen:
        raise ValueError(
            f"Expected a layer that can have a LoRA among {', '.join(targets)} but all {len(skipped)} are refused "
            f"({', '.join(sorted(set(skipped.values())))}); choose other adapter.targets, or adapter=none."
        )
    return chosen, skipped


def choose_modules(module: nn.Module, patterns: Sequence[str]) -> list[str]:
    """Return the names of the outermost modules that the patterns match."""
    named = {name: part for name, part in module.named_modules() if name and any(True for _ in part.parameters())}
    found = _matching(named, patterns)
    return [name for name in found if not any(name.startswith(f"{other}.") for other in found)]


def _matching(named: Mapping[str, nn.Module], patterns: Sequence[str]) -> list[str]:
    patterns = [patterns] if isinstance(patterns, str) else patterns
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in named):
            raise ValueError(
                f"Expected {pattern!r} to match parts of the network but it matches none; the network has "
                f"{', '.join(parts_of(named))} and what is in them."
            )
    return [name for name in named if any(fnmatchcase(name, pattern) for pattern in patterns)]


def _refusal(layer: nn.Module) -> str | None:
    # A subclass may compute something else (another padding), and attention reads the weight without calling the layer.
    if type(layer) not in LAYERS:
        return f"a {type(layer).__name__} is no plain layer"
    groups = getattr(layer, "groups", 1)
    return f"a convolution in {groups} groups cannot be merged" if groups > 1 else None


def _copy_geometry(layer: Any) -> None:
    """Give A the base layer's dilation and padding; peft copies only kernel size and stride."""
    base, down = layer.get_base_layer(), layer.lora_A[ADAPTER]
    if not isinstance(base, nn.Linear):
        for name in ("dilation", "padding_mode", "_reversed_padding_repeated_twice"):
            setattr(down, name, getattr(base, name))


def _adapted(module: nn.Module) -> list[Any]:
    with extra_named():
        from peft.tuners.tuners_utils import BaseTunerLayer
        from peft.utils import AuxiliaryTrainingWrapper

    return [part for part in module.modules() if isinstance(part, BaseTunerLayer | AuxiliaryTrainingWrapper)]


def _switch(layers: Sequence[Any], off: Sequence[bool]) -> None:
    for layer, disabled in zip(layers, off, strict=True):
        layer.enable_adapters(not disabled)


def _need_adapter(module: nn.Module) -> None:
    if not has_adapter(module):
        raise ValueError("Expected a network with an adapter but it has none; use adapter=lora, or reference=frozen.")

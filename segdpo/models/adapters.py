"""Low-rank adapters (LoRA) for segmentation models."""

import copy
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, cast

from torch import nn

from segdpo.models.segmenter import Segmenter, parts_of
from segdpo.models.weights import save_tensors

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


log = logging.getLogger(__name__)

ADAPTER = "default"


def no_adapter(segmenter: Segmenter) -> Segmenter:
    """Return the network as it is: all of it is trained."""
    return segmenter


def add_lora(
    segmenter: Segmenter,
    *,
    rank: int = 8,
    alpha: float = 16.0,
    dropout: float = 0.0,
    targets: Sequence[str] = ("*",),
    modules_to_save: Sequence[str] = (),
) -> Segmenter:
    """Freeze the network and add W + alpha/rank · B·A to its convolutions and linear layers; changes it in place.

    B starts at 0, so the policy starts as the reference. The statistics of BatchNorm belong to the network, not to the
    adapter: hold them (`hold_statistics`), or the reference moves along.

    Args:
        segmenter: the network, with the reference's weights in it.
        rank: columns of B and rows of A.
        alpha: scale; the addition is multiplied by alpha/rank.
        dropout: share of the input dropped on the way through the adapter alone.
        targets: patterns ("network.decoder*") of the layers' names; of what they match, layers that peft cannot merge
            (grouped convolutions, own kinds of layers) go without, and are named in the log.
        modules_to_save: patterns of modules trained whole beside the adapter, such as "network.segmentation_head";
            the reference keeps the module as it was.
    """
    from peft import LoraConfig, inject_adapter_in_model

    if rank < 1 or not 0 <= dropout < 1:
        raise ValueError(f"Expected rank ≥ 1 and dropout in [0, 1) but got {rank} and {dropout}; set adapter.rank.")
    if has_adapter(segmenter):
        raise ValueError("Expected a network without an adapter but it has one; merge_adapter first, or add only one.")
    whole = choose_modules(segmenter, modules_to_save) if modules_to_save else []
    taken, skipped = choose_layers(segmenter, targets, whole)
    for name, why in skipped.items():
        log.info("no LoRA on %s: %s", name, why)
    # Each by its full name: peft matches a name at the end of others too.
    rest: dict[str, Any] = {"modules_to_save": whole or None}
    inject_adapter_in_model(
        LoraConfig(r=rank, lora_alpha=cast(int, alpha), lora_dropout=dropout, target_modules=taken, **rest),
        segmenter,
        ADAPTER,
    )
    for name in taken:
        _copy_geometry(segmenter.get_submodule(name))
    log.info("LoRA of rank %d on %d layers, %d without one", rank, len(taken), len(skipped))
    return segmenter


def has_adapter(module: nn.Module) -> bool:
    """Say whether there is a LoRA in the network."""
    return any(".lora_" in name for name, _ in module.named_parameters())


@contextmanager
def adapter_off(module: nn.Module) -> Iterator[None]:
    """Switch the adapter off inside the `with`: the module is then, bit for bit, the network before `add_lora`.

    What requires a gradient is left as it is, so a graph built before stays good.
    """
    layers = _adapted(module)
    if not layers:
        _need_adapter(module)
    # peft's own switch also turns requires_grad off, and on again for what a user froze.
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


def merge_adapter(module: Segmenter) -> Segmenter:
    """Return a plain network that computes what the adapted one does; the adapted one stays as it is."""
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


def _need_adapter(module: nn.Module) -> None:
    if not has_adapter(module):
        raise ValueError("Expected a network with an adapter but it has none; use adapter=lora, or reference=frozen.")


def _switch(layers: Sequence[Any], off: Sequence[bool]) -> None:
    for layer, disabled in zip(layers, off, strict=True):
        layer.enable_adapters(not disabled)


def _adapted(module: nn.Module) -> list[Any]:
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils import AuxiliaryTrainingWrapper

    return [part for part in module.modules() if isinstance(part, BaseTunerLayer | AuxiliaryTrainingWrapper)]


def _copy_geometry(layer: Any) -> None:
    """Give A the base layer's dilation and padding: peft copies kernel and stride only."""
    base, down = layer.get_base_layer(), layer.lora_A[ADAPTER]
    if not isinstance(base, nn.Linear):
        for name in ("dilation", "padding_mode", "_reversed_padding_repeated_twice"):
            setattr(down, name, getattr(base, name))

"""Low-rank adapters (LoRA) for segmentation models."""

import copy
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn

from segdpo.models.segmenter import Segmenter, parts_of
from segdpo.models.weights import check_fits, fingerprint_tensors, from_json, read_header, read_tensors, save_tensors

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


def save_adapter(path: str | Path, module: nn.Module) -> None:
    """Write the adapter alone (and what was trained whole), with what it takes to add it again."""
    _need_adapter(module)
    config = cast(dict[str, Any], module.peft_config)[ADAPTER]
    options = {
        "rank": config.r,
        "alpha": config.lora_alpha,
        "dropout": config.lora_dropout,
        "targets": [name for name, part in module.named_modules() if hasattr(part, "lora_A")],
        "modules_to_save": sorted(config.modules_to_save or []),
    }
    own, base = _split(module)
    save_tensors(path, own, {"adapter": json.dumps(options), "base": fingerprint_tensors(base)})


def load_adapter(path: str | Path, module: Segmenter) -> Segmenter:
    """Load an adapter that was saved alone into the network that it was trained on; adds it if none is there yet."""
    header = read_header(path)
    if "adapter" not in header:
        raise ValueError(
            f"Expected an adapter saved alone in {path} but its header names none; "
            "whole weights are read with load_weights (open_segmenter builds the network too)."
        )
    if fingerprint_tensors(_split(module)[1]) != header.get("base"):
        raise ValueError(
            f"Expected the network that the adapter in {path} was trained on but this one has other weights; load the "
            "reference's weights first. If statistics of BatchNorm were trained along, save and load the policy whole."
        )
    state = read_tensors(path)
    if not has_adapter(module):
        _add_described(path, module, from_json(header["adapter"], path), state)
    check_fits(path, state, _split(module)[0])
    module.load_state_dict(state, strict=False)
    return module


def _add_described(path: str | Path, module: Segmenter, options: Any, state: Mapping[str, Tensor]) -> None:
    """Add the adapter that a header describes; its rank is that of the file's tensors, so it takes no more memory."""
    ranks = {len(value) for name, value in state.items() if ".lora_A." in name and value.ndim}
    if not isinstance(options, dict) or options.get("rank") not in list(ranks):
        raise ValueError(f"{path}: Expected options of an adapter of rank {sorted(ranks)} but got {options!r:.200}.")
    try:
        add_lora(module, **options)
    except Exception as error:  # whatever options of other types raise, here and in peft
        raise ValueError(f"{path}: the adapter cannot be added from its description: {error}") from error


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


def _split(module: nn.Module) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the adapter's tensors, and the network's under the names they have without an adapter."""
    state = module.state_dict()
    own = {name: value for name, value in state.items() if ".lora_" in name or ".modules_to_save." in name}
    base = {
        name.replace(".base_layer.", ".").replace(".original_module.", "."): value
        for name, value in state.items()
        if name not in own
    }
    return own, base


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

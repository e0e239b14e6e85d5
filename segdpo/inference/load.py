"""Load a trained network from a run's folder, a .safetensors with its description, or a checkpoint."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypedDict, cast

from torch import nn

from segdpo.data import MaskSource, Preparation, read_preparation, unknown_preparation
from segdpo.models import (
    ADAPTERS,
    Segmenter,
    build_named,
    from_json,
    has_adapter,
    load_weights,
    merge_adapter,
    read_checkpoint,
    read_header,
    without_interpolations,
)
from segdpo.preferences import Network, checkpoints

POLICY = "policy.safetensors"
NEEDED = ("model", "classes", "mean", "std")


class Description(TypedDict):
    """What a file of weights says of its network.

    Attributes:
        model: what builds the network.
        adapter: what adds its adapter; None: it has none.
        classes: names of the classes.
        mean: that images are normalised with; `preparation` has it too.
        std: like `mean`.
        preparation: how images become the network's input.
    """

    model: Any
    adapter: Any
    classes: list[str]
    mean: list[float]
    std: list[float]
    preparation: Preparation


def open_segmenter(path: str | Path, *, trusted: Sequence[str] = ()) -> tuple[Segmenter, Description]:
    """Return a trained network in evaluation mode, and its description.

    Args:
        path: the folder of a run (its policy), a .safetensors with "config" in the header, or a .ckpt of a run.
        trusted: packages that the description may build networks from, in addition to the table in
            docs/howto/predict.md. What a description names is called, so name only packages that you know.

    Returns:
        The network, with an adapter merged, and what the file says of it. Files of earlier versions do not say how
        images were prepared: their `preparation` has mean and std alone, and node=None.

    Raises:
        ValueError: if the file is damaged, has no description, or names something that is not trusted.
    """
    path = weights_path(Path(path))
    description = read_description(path)
    segmenter = build_named(description["model"], path, "model", trusted=trusted)
    if not isinstance(segmenter, Segmenter):
        raise ValueError(f"{path}: Expected model to build a Segmenter but it builds a {type(segmenter).__name__}.")
    if description.get("adapter"):
        adapt = build_named(description["adapter"], path, "adapter", table=ADAPTERS, trusted=trusted)
        segmenter = _adapted(segmenter, adapt, path)
    try:
        load_weights(path, segmenter)
    except ValueError as error:
        if not _was_pretrained(description["model"]) or "segdpo" in trusted:
            raise
        hint = "The architecture came from pretrained=…, which is not downloaded here; --trust segdpo downloads it."
        raise ValueError(f"{error} {hint}") from error
    merged = merge_adapter(segmenter) if has_adapter(segmenter) else segmenter
    preparation = _preparation_of(description, merged, path, trusted)
    return merged.eval(), cast(Description, {**description, "preparation": preparation})


def open_network(path: str | Path, *, device: str = "cpu", trusted: Sequence[str] = ()) -> tuple[Network, Description]:
    """Return a trained network that predicts images as in its training, and its description; see `open_segmenter`."""
    segmenter, description = open_segmenter(path, trusted=trusted)
    return Network(segmenter, description["preparation"], device), description


def checkpoint_candidates(
    weights: Mapping[str, str | Path], *, device: str = "cpu", trusted: Sequence[str] = ()
) -> MaskSource:
    """Return candidates that are the predictions of several trained networks: name → path as in `open_segmenter`."""
    networks = {name: open_network(path, device=device, trusted=trusted)[0] for name, path in weights.items()}
    return partial(checkpoints, networks=networks)


def weights_path(path: Path) -> Path:
    """Return the file of weights that a path means: for a run's folder, its policy."""
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such run or file; give a run's folder, a .safetensors or a .ckpt.")
    if path.is_file():
        if path.suffix not in (".safetensors", ".ckpt"):
            raise ValueError(f"{path}: Expected a run's folder, a .safetensors or a .ckpt but got another file.")
        return path
    if (path / POLICY).is_file():
        return path / POLICY
    others = sorted(found for suffix in ("*.safetensors", "*.ckpt") for found in path.rglob(suffix))
    hint = f"the folder has {', '.join(map(str, others[:3]))}: give one of them" if others else "did the run finish?"
    raise FileNotFoundError(f"{path}: Expected a run's folder with {POLICY} but it has none; {hint}.")


def read_description(path: Path) -> dict[str, Any]:
    """Return the description of the network in a file of weights."""
    if path.suffix == ".ckpt":
        content = read_checkpoint(path, mmap=True)
        parameters = content.get("hyper_parameters") if isinstance(content, Mapping) else None
        config = parameters.get("config") if isinstance(parameters, Mapping) else None
    else:
        config = from_json(read_header(path).get("config", "null"), path)
    missing = [key for key in NEEDED if not isinstance(config, Mapping) or key not in config]
    if missing:
        raise ValueError(
            f"{path}: Expected a description of the network ({', '.join(NEEDED)}) with the weights but "
            f"{', '.join(missing)} is missing; give a file that train.py wrote."
        )
    found = cast(dict[str, Any], without_interpolations(config, path))
    for name, kind in (("classes", str), ("mean", int | float), ("std", int | float)):
        values = found[name]
        if not isinstance(values, list | tuple) or not values or not all(isinstance(one, kind) for one in values):
            raise ValueError(
                f"{path}: Expected {name} of the network as a list of {'names' if kind is str else 'numbers'} but got "
                f"{values!r:.200}; give a file that train.py wrote."
            )
    return found


def channels_of(network: nn.Module) -> int:
    """Return the number of channels of the network's first convolution, or 3 if it has none."""
    return next((part.in_channels for part in network.modules() if isinstance(part, nn.Conv2d)), 3)


def _preparation_of(
    description: Mapping[str, Any], network: nn.Module, path: Path, trusted: Sequence[str]
) -> Preparation:
    """Return the preparation that the description holds; images are decoded to as many channels as the network has."""
    channels = channels_of(network)
    known = channels if channels in (1, 3) else None
    if description.get("preparation") is None:
        return unknown_preparation(description["mean"], description["std"], known)
    found = read_preparation(description["preparation"], path, trusted=trusted)
    return found if found.channels is not None else replace(found, channels=known)


def _was_pretrained(config: Any) -> bool:
    """Return whether the network's architecture was downloaded, as with segformer's pretrained=…."""
    if isinstance(config, Mapping):
        return bool(config.get("pretrained")) or any(map(_was_pretrained, config.values()))
    return isinstance(config, list) and any(map(_was_pretrained, config))


def _adapted(segmenter: Segmenter, adapt: Any, path: Path) -> Segmenter:
    try:
        return cast(Segmenter, adapt(segmenter))
    except (AttributeError, RuntimeError, TypeError) as error:
        raise ValueError(f"{path}: adapter cannot be added from its description: {error}") from error

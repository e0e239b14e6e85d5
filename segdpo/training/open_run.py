"""A trained network back from disk: from a run's folder, a .safetensors with its description, or a checkpoint."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from hydra.errors import InstantiationException
from hydra.utils import get_object, instantiate

from segdpo.models.adapters import has_adapter, merge_adapter
from segdpo.models.segmenter import Segmenter
from segdpo.models.weights import load_weights, read_header

POLICY = "policy.safetensors"
# What a file of weights may ask to be built. Its description is read before anyone has looked at it, and a `_target_`
# can be any function: without this list, opening a stranger's file would run what the stranger likes.
TRUSTED = (
    "segdpo.models",
    "monai.networks",
    "segmentation_models_pytorch",
    "timm.models",
    "torch.nn",
    "torchvision.models",
    "transformers.models",
)
# Keys by which networks fetch weights; ours come from the file.
PRETRAINED = ("encoder_weights", "weights", "weights_backbone")
NEEDED = ("model", "classes", "mean", "std")


def open_segmenter(path: str | Path, *, trusted: Sequence[str] = ()) -> tuple[Segmenter, dict[str, Any]]:
    """Return the network in eval mode and its description: model, adapter, classes (names), mean and std.

    Args:
        path: the folder of a run (its policy), a .safetensors with "config" in the header, or a .ckpt of a run.
        trusted: packages of yours, beside `TRUSTED`, that the description may build networks from. What it names is
            called: trust what you know.
    """
    path = weights_path(Path(path))
    description = read_description(path)
    check_trusted(description["model"], path, trusted)
    check_trusted(description.get("adapter"), path, trusted)
    segmenter = cast(Segmenter, _build(path, without_pretrained(description["model"])))
    if description.get("adapter"):
        segmenter = _build(path, description["adapter"])(segmenter)
    load_weights(path, segmenter)
    merged = merge_adapter(segmenter) if has_adapter(segmenter) else segmenter
    return merged.eval(), description


def weights_path(path: Path) -> Path:
    """Return the file that a path means: a run's folder stands for its policy."""
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
    """Return what a file of weights says of its network."""
    if path.suffix == ".ckpt":
        # mmap: the weights stay on disk until they are asked for.
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        config = content.get("hyper_parameters", {}).get("config")
    else:
        config = json.loads(read_header(path).get("config", "null"))
    missing = [key for key in NEEDED if key not in (config or {})]
    if missing:
        raise ValueError(
            f"{path}: Expected a description of the network ({', '.join(NEEDED)}) beside the weights but "
            f"{', '.join(missing)} is missing; give a file that train.py wrote."
        )
    return cast(dict[str, Any], config)


def check_trusted(config: object, path: Path, trusted: Sequence[str] = ()) -> None:
    """Refuse a description that asks to call anything outside the trusted packages."""
    packages = (*TRUSTED, *trusted)
    for target in targets_of(config):
        # The package first, lest a stranger's module be imported, which runs it; then where the thing is really from,
        # since "torch.nn.os.system" begins well.
        if target.split(".")[0] in {name.split(".")[0] for name in packages} and _inside(_home(target), packages):
            continue
        raise ValueError(
            f"{path}: the file asks to call {target!r}, which is not of {', '.join(packages)}; if you know that file "
            f"and that package, trust it: --trust {target.split('.')[0]}, in Python trusted=[…]."
        )


def targets_of(config: object) -> Iterator[str]:
    """Give every `_target_` in nested mappings and lists."""
    if isinstance(config, Mapping):
        if "_target_" in config:
            yield str(config["_target_"])
        for value in config.values():
            yield from targets_of(value)
    elif isinstance(config, list | tuple):
        for value in config:
            yield from targets_of(value)


def without_pretrained(config: Any) -> Any:
    """Return the config with every key that would download weights set to null."""
    if isinstance(config, Mapping):
        return {key: None if key in PRETRAINED else without_pretrained(value) for key, value in config.items()}
    return [without_pretrained(value) for value in config] if isinstance(config, list | tuple) else config


def _inside(name: str, packages: Sequence[str]) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def _home(target: str) -> str:
    try:
        found = get_object(target)
    # Hydra wraps whatever goes wrong on the way there.
    except Exception as error:
        raise ValueError(
            f"Expected {target!r} to exist but it does not import ({error}); install its package."
        ) from error
    return f"{getattr(found, '__module__', '')}.{getattr(found, '__qualname__', '')}"


def _build(path: Path, config: Any) -> Any:
    try:
        return instantiate(config, _convert_="all")
    except InstantiationException as error:
        raise ValueError(f"{path}: the network cannot be built from its description: {error}") from error

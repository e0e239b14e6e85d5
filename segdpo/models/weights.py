"""Weights on disk: safetensors with a header, Lightning checkpoints and PyTorch state_dicts."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn

from segdpo.files import write_atomically

# What precedes the network's own names in the checkpoints of the tasks, and of many a LightningModule.
PREFIXES = ("", "policy.", "network.", "model.")


def save_weights(path: str | Path, module: nn.Module, header: Mapping[str, str] | None = None) -> None:
    """Write all parameters and buffers as safetensors; if that fails, the old file stays.

    Args:
        path: the file.
        module: the network.
        header: texts to keep in the file.
    """
    save_tensors(path, module.state_dict(), header or {})


def save_tensors(path: str | Path, tensors: Mapping[str, Tensor], header: Mapping[str, str]) -> None:
    """Write named tensors as safetensors, atomically."""
    wrong = [key for key, value in header.items() if not isinstance(value, str)]
    if wrong:
        raise TypeError(f"Expected strings in the header of {path} but {wrong[0]!r} is not one; write it as JSON.")
    copies: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        copy = tensor.detach().cpu().contiguous()
        # Tied weights: safetensors refuses two names for the same memory.
        copies[name] = copy.clone() if copy.untyped_storage().data_ptr() in seen else copy
        seen.add(copy.untyped_storage().data_ptr())
    write_atomically(path, save(copies, dict(header)))


def load_weights(path: str | Path, module: nn.Module) -> None:
    """Load weights into a network of the same architecture, all of them or, with an error, none.

    Never runs code from the file.

    Args:
        path: a .safetensors, a Lightning checkpoint ("policy.…" or "network.…" under "state_dict"), or a state_dict of
            PyTorch.
        module: the network.

    Raises:
        ValueError: if the file is damaged, or its weights do not fit; says what differs.
    """
    state = _within(read_tensors(path), module)
    check_fits(path, state, module.state_dict())
    module.load_state_dict(state)


def check_fits(path: str | Path, state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> None:
    """Refuse weights of another architecture, of another number of classes, or of a network with an adapter.

    Args:
        path: the file, for the message.
        state: its tensors by name.
        own: the network's tensors by name.
    """
    missing = [name for name in own if name not in state]
    unexpected = sorted(name for name in state if name not in own)
    shapes = {
        name: (tuple(state[name].shape), tuple(value.shape))
        for name, value in own.items()
        if name in state and state[name].shape != value.shape
    }
    if not (missing or unexpected or shapes):
        return
    differing = [f"{name} {theirs} instead of {ours}" for name, (theirs, ours) in shapes.items()]
    found = [
        f"{len(names)} {what} ({_some(names)})"
        for what, names in (("missing", missing), ("unexpected", unexpected), ("of another shape", differing))
        if names
    ]
    fix = _fix(missing, unexpected, shapes)
    raise ValueError(f"Expected {path} to hold the weights of this network but found {', '.join(found)}; {fix}")


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """Return the tensors of a file by name, on the CPU."""
    path = _existing(path)
    if path.suffix == ".safetensors":
        try:
            return load_file(path, device="cpu")
        except Exception as error:
            raise _damaged(path, error) from error
    content = read_checkpoint(path)
    state = content.get("state_dict", content) if isinstance(content, Mapping) else {}
    tensors = {str(name): value for name, value in state.items() if isinstance(value, Tensor)}
    if not tensors:
        raise ValueError(f'Expected a state_dict in {path}, bare or under "state_dict", but found no tensors in it.')
    odd = [name for name, value in tensors.items() if value.layout != torch.strided or value.is_quantized]
    if odd:
        raise ValueError(f"Expected dense tensors in {path} but {_some(odd)} is sparse or quantized; convert it.")
    return tensors


def read_checkpoint(path: Path, *, mmap: bool = False) -> Any:
    """Return the tensors and plain values that `torch.save` wrote; never runs code from the file.

    Args:
        path: the file.
        mmap: leave the tensors on disk until they are used.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except Exception as error:  # damaged bytes raise OSError, KeyError, AttributeError and more
        raise _damaged(path, error) from error


def read_header(path: str | Path) -> dict[str, str]:
    """Return the header that `save_weights` wrote, without reading the weights."""
    path = _existing(path)
    try:
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except SafetensorError as error:
        raise ValueError(
            f"Expected a .safetensors file but {path} cannot be read as one ({_first_line(error)}); "
            "take another file, or save the weights again."
        ) from error


def from_json(text: str, path: str | Path) -> Any:
    """Return the JSON value in a text of the header; `path` is for the message."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: Expected JSON in the header but it cannot be read ({error}).") from error


def fingerprint(module: nn.Module) -> str:
    """Return 32 hex digits over the names, types, shapes and bytes of all parameters and buffers."""
    return fingerprint_tensors(module.state_dict())


def fingerprint_tensors(tensors: Mapping[str, Tensor]) -> str:
    """Return 32 hex digits over names, types, shapes and bytes, independent of order and device."""
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _within(tensors: Mapping[str, Tensor], module: nn.Module) -> dict[str, Tensor]:
    """Remove the prefix under which most of the network's names are found, and the tensors that are not under it.

    The names of a Segmenter begin with "network."; those of the network that it wraps do not.
    """
    own = module.state_dict().keys()
    candidates = [
        {before + name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
        for before, prefix in product(("", "network."), PREFIXES)
    ]
    return max(candidates, key=lambda state: len(state.keys() & own))


def _fix(
    missing: Sequence[str], unexpected: Sequence[str], shapes: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]]
) -> str:
    outputs = {(theirs[:1], ours[:1]) for theirs, ours in shapes.values() if theirs and ours and theirs[1:] == ours[1:]}
    if not missing and not unexpected and len(outputs) == 1 and all(a[1:] == b[1:] for a, b in shapes.values()):
        ((theirs,), (ours,)) = outputs.pop()
        return (
            f"the file's network predicts {_outputs(theirs)} and this one {_outputs(ours)}: take the data set that it "
            "was trained on, or set model.classes as it was."
        )
    if any(".lora_" in name for name in unexpected):
        return "the file holds an adapter: add one of the same rank and targets first (adapter=lora)."
    if any(".lora_" in name for name in missing):
        return "this network has an adapter and the file none: load the weights before the adapter is added."
    return "choose the model (model=…, model.encoder_name=…) that they were trained with, or other weights."


def _outputs(channels: int) -> str:
    return "1 channel (2 classes)" if channels == 1 else f"{channels} classes"


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")


def _existing(path: str | Path) -> Path:
    path = Path(path)
    if path.is_file():
        return path
    there = sorted(p.name for p in path.parent.glob("*") if p.suffix in (".safetensors", ".ckpt", ".pt", ".pth"))
    hint = f"; {path.parent} has {', '.join(there[:5])}" if there else ""
    raise FileNotFoundError(f"Expected a file of weights at {path} but there is none{hint}; check the path.")


def _damaged(path: Path, error: Exception) -> ValueError:
    return ValueError(
        f"Expected weights in {path} but it cannot be read ({_first_line(error)}); the file is damaged, unfinished "
        "or holds more than tensors and plain values: take another checkpoint, or save the weights again."
    )


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]

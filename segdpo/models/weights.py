"""Weights on disk: safetensors with a header, Lightning checkpoints and PyTorch state_dicts.

Every .safetensors that is written here has two checksums in its header: of the tensors, and of the header. Archives of
`torch.save` have one for each tensor, which `torch.load` does not read. Both are compared before anything is returned.
"""

import hashlib
import json
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn

from segdpo.files import DataError, write_atomically

# What precedes the network's own names in the checkpoints of the tasks, and of many a LightningModule.
PREFIXES = ("", "policy.", "network.", "model.")
# Names of the two checksums in the header; the second covers the first.
TENSORS, HEADER = "tensors_crc32", "header_crc32"
ARCHIVE = b"PK\x03\x04"


def save_weights(path: str | Path, module: nn.Module, header: Mapping[str, str] | None = None) -> None:
    """Write all parameters and buffers as safetensors; if that fails, the old file stays.

    Args:
        path: the file.
        module: the network.
        header: texts to keep in the file.
    """
    save_tensors(path, module.state_dict(), header or {})


def save_tensors(path: str | Path, tensors: Mapping[str, Tensor], header: Mapping[str, str]) -> None:
    """Write named tensors as safetensors with checksums, atomically; equal tensors and headers give equal bytes."""
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
    texts = {**header, TENSORS: _tensors_checksum(copies)}
    write_atomically(path, *_in_order(save(copies, {**texts, HEADER: checksum(texts)})))


def _in_order(content: bytes) -> tuple[bytes, memoryview]:
    """Return a .safetensors with its header sorted by name, and its tensors: the library's order changes."""
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.dumps(json.loads(content[8:end]), sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header, memoryview(content)[end:]


def checksum(content: Any) -> str:
    """Return the CRC-32 of a JSON value, whatever the order of its keys, as 8 hex digits."""
    text = json.dumps(content, sort_keys=True, ensure_ascii=False)
    return f"{zlib.crc32(text.encode(errors='surrogatepass')):08x}"


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
        found = _open_header(path)
        try:
            tensors = load_file(path, device="cpu")
        except Exception as error:
            raise _damaged(path, error) from error
        if TENSORS in found and found[TENSORS] != _tensors_checksum(tensors):
            raise _damaged(path, ValueError("its tensors do not fit their checksum"))
        return tensors
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
        mmap: leave the tensors on disk until they are used, and do not compare checksums.

    Raises:
        DataError: the file is damaged, or holds more than that.
    """
    try:
        if not mmap:
            check_archive(path)
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except Exception as error:  # damaged bytes raise OSError, KeyError, AttributeError and more
        raise error if isinstance(error, DataError) else _damaged(path, error) from error


def check_archive(path: str | Path) -> None:
    """Compare the parts of an archive of `torch.save` with their checksums, which `torch.load` does not do.

    Files of the old format, from before PyTorch 1.6, have none.

    Raises:
        DataError: the file is damaged.
    """
    path = Path(path)
    with path.open("rb") as file:
        if file.read(len(ARCHIVE)) != ARCHIVE:
            return
    try:
        with zipfile.ZipFile(path) as archive:
            # Compressed parts, which torch.save never writes, could take any time to read.
            stored = all(part.compress_type == zipfile.ZIP_STORED for part in archive.infolist())
            wrong = archive.testzip() if stored else "a compressed part"
    except Exception as error:  # a dozen kinds
        raise _damaged(path, error) from error
    if wrong:
        raise _damaged(path, ValueError(f"{wrong} does not fit its checksum"))


def read_header(path: str | Path) -> dict[str, str]:
    """Return the header that `save_weights` wrote, without reading the weights.

    Raises:
        DataError: the file is no .safetensors, or the header is damaged.
    """
    return {name: text for name, text in _open_header(_existing(path)).items() if name not in (TENSORS, HEADER)}


def _open_header(path: Path) -> dict[str, str]:
    """Return the header with its checksums, if it has them: older versions and other packages write none."""
    try:
        with safe_open(path, framework="pt") as file:
            found = dict(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise _damaged(path, error) from error
    texts = {name: text for name, text in found.items() if name != HEADER}
    if (HEADER in found or TENSORS in found) and found.get(HEADER) != checksum(texts):
        raise _damaged(path, ValueError("its header does not fit its checksum"))
    return found


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
    for part in _bytes_of(tensors):
        digest.update(part)
    return digest.hexdigest()


def _tensors_checksum(tensors: Mapping[str, Tensor]) -> str:
    """Return the CRC-32 of the same, which takes a fifth of the time."""
    value = 0
    for part in _bytes_of(tensors):
        value = zlib.crc32(part, value)
    return f"{value:08x}"


def _bytes_of(tensors: Mapping[str, Tensor]) -> Iterator[bytes | memoryview]:
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        yield f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode()
        yield tensor.reshape(-1).view(torch.uint8).numpy().data


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


def _damaged(path: Path, error: Exception) -> DataError:
    return DataError(
        f"Expected weights in {path} but it cannot be read ({_first_line(error)}); the file is damaged, unfinished "
        "or holds more than tensors and plain values: take another checkpoint, or save the weights again.",
        "damaged",
    )


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]

"""Mutations of bytes and of JSON values; each draws from the case's own random numbers."""

import copy
import io
import json
import struct
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from random import Random
from typing import Any

from fuzzing.hostile import DEEP, LITERALS, NUMBERS, Hostile

Path = tuple[Any, ...]


def mutate_bytes(rng: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """Return the bytes with one to four changes."""
    for _ in range(rng.choice((1, 1, 2, 4))):
        data = rng.choice(BYTE_MUTATIONS)(rng, data, others)
    return data


def mutate_value(rng: Random, value: Any, hostile: Hostile, calls: bool = False) -> Any:
    """Return a JSON value with one to three changes; with `calls`, nodes that ask to call something are among them."""
    value = copy.deepcopy(value)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        value = _change_one(rng, value, hostile, calls)
    return value


def read_zip(data: bytes) -> dict[str, bytes]:
    """Return the members of an archive."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def write_zip(members: Mapping[str, bytes]) -> bytes:
    """Return an archive; equal members give equal bytes at any time."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(zipfile.ZipInfo(name), data, zipfile.ZIP_DEFLATED)
    return buffer.getvalue()


def dump(rng: Random, value: Any, ensure_ascii: bool = True) -> bytes:
    """Return the JSON text of a mutated value; what is marked as deep becomes deep."""
    depth = rng.choice((30, 900, 100_000))
    opening, closing = rng.choice((("[", "]"), ('{"a":', "}")))
    text = json.dumps(value, ensure_ascii=ensure_ascii).replace(f'"{DEEP}"', opening * depth + "1" + closing * depth)
    return text.encode("utf-8", "surrogatepass")


def _nodes(value: Any, path: Path = ()) -> Iterator[Path]:
    yield path
    items: Any = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from _nodes(item, (*path, key))


def _at(value: Any, path: Path) -> Any:
    for key in path:
        value = value[key]
    return value


def _change_one(rng: Random, value: Any, hostile: Hostile, calls: bool) -> Any:
    paths = list(_nodes(value))
    path = rng.choice(paths[1:] or paths)
    if not path:
        return _new(rng, value, value, hostile, calls)
    parent, key = _at(value, path[:-1]), path[-1]
    kind = rng.random()
    if kind < 0.1:
        del parent[key]
    elif kind < 0.2 and isinstance(parent, list):
        parent.insert(rng.randrange(len(parent) + 1), copy.deepcopy(parent[key]))
    elif kind < 0.2:
        name = rng.choice(("x", "_args_", "_target_", "_recursive_", "_convert_", hostile.text(rng)))
        parent[name] = _new(rng, parent[key], value, hostile, calls)
    elif kind < 0.3:
        parent[key] = copy.deepcopy(_at(value, rng.choice(paths)))
    else:
        parent[key] = _new(rng, parent[key], value, hostile, calls)
    return value


def _new(rng: Random, old: Any, whole: Any, hostile: Hostile, calls: bool) -> Any:
    """Return what takes the place of a node."""
    if calls and rng.random() < 0.6:
        if isinstance(old, str) and "." in old and rng.random() < 0.4:
            return hostile.target(rng)
        return [hostile.call(rng)] if isinstance(old, list) and rng.random() < 0.5 else hostile.call(rng)
    if isinstance(old, str) and rng.random() < 0.6:
        text = hostile.text(rng)
        return rng.choice((text, old + text, text + old))
    if isinstance(old, int | float) and rng.random() < 0.6:
        return rng.choice((hostile.number(rng), old + rng.choice((-1, 1, 7, 0.5)), -old))
    if isinstance(old, list) and old and rng.random() < 0.3:
        return old * rng.choice((2, 300))
    return rng.choice((rng.choice(LITERALS), hostile.number(rng), hostile.text(rng), {"a": old}, [old], str(old)))


def _flip(rng: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 3, 20)) if data else 0):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _delete(rng: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    start = rng.randrange(len(data) + 1)
    return data[:start] + data[start + rng.choice((1, 2, 4, 8, 64)) :]


def _insert(rng: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    start = rng.randrange(len(data) + 1)
    return data[:start] + rng.randbytes(rng.choice((1, 2, 4, 8, 64))) + data[start:]


def _repeat(rng: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    start = rng.randrange(len(data) + 1)
    end = start + rng.choice((1, 4, 16, 100))
    return data[:end] + data[start:end] * rng.choice((1, 2, 50)) + data[end:]


def _truncate(rng: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    return data[: rng.randrange(len(data) + 1)]


def _splice(rng: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    other = rng.choice(others)
    return data[: rng.randrange(len(data) + 1)] + other[rng.randrange(len(other) + 1) :]


def _number(rng: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    form = rng.choice(("<B", "<H", ">H", "<I", ">I", "<Q", ">Q"))
    size = struct.calcsize(form)
    start = rng.randrange(max(1, len(data) - size + 1))
    value = int(rng.choice(NUMBERS)) & (256**size - 1)
    return data[:start] + struct.pack(form, value) + data[start + size :]


BYTE_MUTATIONS: tuple[Callable[[Random, bytes, Sequence[bytes]], bytes], ...] = (
    _flip, _flip, _delete, _insert, _repeat, _truncate, _splice, _number, _number,
)  # fmt: skip

"""Mutations behind a checksum: a part is changed and every checksum above it is computed again."""

import ast
import csv
import io
import json
import struct
import tempfile
import zlib
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pyarrow as pa

from fuzzing.hostile import Hostile
from fuzzing.kind import Files
from fuzzing.mutations import dump, mutate_bytes, mutate_value, read_zip, write_zip
from segdpo.data import checksum, write_table

# More than the memory that a worker has.
BOMB_MIB = 3072
ZSTD = pa.Codec("zstd")
# The start and the end of a shard: magic, version; offset, length and checksum of the index, magic.
HEAD, TAIL = struct.Struct("<8sI"), struct.Struct("<QII8s")
SIGNATURE = b"\x89PNG\r\n\x1a\n"


@cache
def bomb() -> bytes:
    """Return a small zstd frame of many zeros, which says how many: blocks of one repeated byte, 128 KiB each."""
    size, block = BOMB_MIB << 20, 1 << 17
    head = b"\x28\xb5\x2f\xfd" + bytes([0b11000000, 7 << 3]) + size.to_bytes(8, "little")
    more, last = ((block << 3 | 2 | end).to_bytes(3, "little") + b"\0" for end in (0, 1))
    return head + more * (size // block - 1) + last


def json_file(name: str, lines: bool = False) -> Any:
    """Return a mutation of a file of JSON, or of one line of it."""

    def mutate(rng: Random, files: Files, hostile: Hostile) -> Files:
        if not lines:
            return {name: dump(rng, mutate_value(rng, json.loads(files[name]), hostile))}
        rows = files[name].splitlines()
        number = rng.randrange(len(rows))
        rows[number] = dump(rng, mutate_value(rng, json.loads(rows[number]), hostile), rng.random() < 0.5)
        return {name: b"\n".join(rows) + b"\n"}

    return mutate


def csv_file(name: str) -> Any:
    """Return a mutation of one cell of a CSV file."""

    def mutate(rng: Random, files: Files, hostile: Hostile) -> Files:
        rows = list(csv.reader(io.StringIO(files[name].decode())))
        row = rng.choice(rows)
        row[rng.randrange(len(row))] = str(rng.choice((hostile.text(rng), hostile.number(rng), "nan", "inf")))
        if rng.random() < 0.2:
            rows.insert(rng.randrange(len(rows)), rng.choice(rows))
        text = io.StringIO()
        csv.writer(text).writerows(rows)
        return {name: text.getvalue().encode("utf-8", "surrogatepass")}

    return mutate


def sealed_folder(rng: Random, files: Files, hostile: Hostile) -> Files:
    """Change the manifest or the classes and seal the folder again."""
    text = json_file("manifest.jsonl", lines=True)(rng, files, hostile)["manifest.jsonl"]
    values = json.loads(files["dataset.json"])
    if rng.random() < 0.5:
        text, values = files["manifest.jsonl"], mutate_value(rng, values, hostile)
    if isinstance(values, dict) and "checksum" in values and isinstance(values.get("classes"), list):
        values["checksum"] = checksum(tuple(values["classes"]), text.decode("utf-8", "replace"))
    return {"manifest.jsonl": text, "dataset.json": dump(rng, values)}


def pack_settings(rng: Random, files: Files, hostile: Hostile) -> Files:
    """Change pack.json and its checksum."""
    values = mutate_value(rng, json.loads(files["pack.json"]), hostile)
    if isinstance(values, dict):
        values.pop("checksum", None)
        version = {"version": values.pop("version")} if "version" in values else {}
        found = f"{zlib.crc32(json.dumps(values, sort_keys=True).encode()):08x}"
        values = {**version, **values, "checksum": found}
    return {"pack.json": dump(rng, values)}


def record(rng: Random, files: Files, hostile: Hostile) -> Files:
    """Change a record in its shard, and the checksum that records.arrow has of it."""
    rows = rows_of(files["records.arrow"])
    row = rng.choice(rows)
    shard = f"shard-{row['shard']:05d}.bin"
    start, end = row["offset"], row["offset"] + row["length"]
    body = _body(rng, files[shard][start:end], hostile)
    for other in rows:
        if other["shard"] == row["shard"] and other["offset"] > start:
            other["offset"] += len(body) - row["length"]
    row |= {"length": len(body), "crc": zlib.crc32(body)}
    # The index at the shard's end is not read from a finished pack.
    return {
        shard: files[shard][:start] + body + files[shard][end:],
        "records.arrow": _table(files["records.arrow"], rows),
    }


def _body(rng: Random, data: bytes, hostile: Hostile) -> bytes:
    size = struct.unpack_from("<I", data)[0]
    text, rest = data[4 : 4 + size], data[4 + size :]
    header = json.loads(text)
    image, frame = rest[: header["image_bytes"]], rest[header["image_bytes"] :]
    kind = rng.random()
    if kind < 0.65:
        text = dump(rng, mutate_value(rng, header, hostile), ensure_ascii=False)
    elif kind < 0.7:
        frame = bomb()[: rng.choice((None, 30, 1000))]
        header["shape"] = rng.choice((header["shape"], [30000, 30000, 3], [2**31, 2**31, 3], [-6, -5, 3], [0, 5, 3]))
        text = json.dumps(header).encode()
    elif kind < 0.8:
        image = mutate_bytes(rng, image, [image])
        header["image_bytes"] = len(image)
        text = json.dumps(header).encode()
    elif kind < 0.9:
        frame = mutate_bytes(rng, frame, [frame])
    else:
        return mutate_bytes(rng, data, [data])
    return struct.pack("<I", len(text)) + text + image + frame


def table(rng: Random, files: Files, hostile: Hostile) -> Files:
    """Change cells of records.arrow, and its checksum."""
    rows = rows_of(files["records.arrow"])
    for _ in range(rng.choice((1, 1, 3))):
        row = rng.choice(rows)
        key = rng.choice(list(row))
        row[key] = hostile.text(rng) if isinstance(row[key], str) else rng.choice((hostile.number(rng), 3, 9, 70, 1000))
    if rng.random() < 0.2:
        rows += rows[:1] * rng.choice((1, 70))
    return {"records.arrow": _table(files["records.arrow"], rows)}


def rows_of(data: bytes) -> list[dict[str, Any]]:
    """Return the rows of an Arrow file."""
    found: list[dict[str, Any]] = pa.ipc.open_file(pa.BufferReader(data)).read_all().to_pylist()
    return found


def _table(data: bytes, rows: list[dict[str, Any]]) -> bytes:
    """Return an Arrow file of the rows with a right checksum."""
    schema = pa.ipc.open_file(pa.BufferReader(data)).schema.remove_metadata()
    columns = [pa.array([_fit(row[field.name], field.type) for row in rows], field.type) for field in schema]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.arrow"
        write_table(path, pa.Table.from_arrays(columns, schema=schema))
        return path.read_bytes()


def _fit(value: Any, kind: Any) -> Any:
    if pa.types.is_string(kind):
        return str(value).encode("utf-8", "replace").decode()
    if pa.types.is_floating(kind):
        return float(value) if abs(float(value)) < 3e38 else np.inf
    return int(value) % 2**kind.bit_width


def shard_index(rng: Random, files: Files, hostile: Hostile) -> Files:
    """Change the index at the end of the shard of an unfinished pack, and its checksum."""
    name = "begun.pack/shard-00000.bin"
    data = files[name]
    magic, _ = HEAD.unpack(data[: HEAD.size])
    offset, length, _, end = TAIL.unpack(data[-TAIL.size :])
    rows = json.loads(pa.input_stream(memoryview(data)[offset : offset + length], compression="zstd").read())
    if rng.random() < 0.05:
        index = bomb()
    else:
        text = dump(rng, mutate_value(rng, rows, hostile), ensure_ascii=False)
        index = ZSTD.compress(text if rng.random() < 0.9 else mutate_bytes(rng, text, [text]), asbytes=True)
    head = HEAD.pack(magic, rng.choice((1, 1, 1, 1, 0, 2, 2**32 - 1)))
    tail = TAIL.pack(offset, len(index), zlib.crc32(index), end)
    return {name: head + data[HEAD.size : offset] + index + tail}


def png(name: str) -> Any:
    """Return a mutation of a PNG's chunks with their checksums."""

    def mutate(rng: Random, files: Files, hostile: Hostile) -> Files:
        chunks = _chunks(files[name])
        number = rng.randrange(len(chunks))
        kind, data = chunks[number]
        how = rng.random()
        if how < 0.3:
            size = [rng.choice((0, 1, 9, 5000, 12000, 20000, 65535, 2**31 - 1)) for _ in range(2)]
            head = chunks[0][1]
            tail = bytes(
                rng.choice(((8, 0, 0, 0, 0), (8, 2, 0, 0, 0), (16, 2, 0, 0, 0), (1, 0, 0, 0, 0), (8, 6, 0, 0, 1)))
            )
            chunks[0] = (b"IHDR", struct.pack(">II", *size) + (tail if rng.random() < 0.6 else head[8:]))
        elif how < 0.5:
            pixels = kind == b"IDAT"
            chunks[number] = (
                kind,
                zlib.compress(mutate_bytes(rng, zlib.decompress(data), [data])) if pixels else data + b"\0",
            )
        elif how < 0.6:
            extra = rng.choice(
                (b"zTXt", b"iCCP", b"iTXt", b"tEXt", b"PLTE", b"tRNS", b"acTL", b"fcTL", b"eXIf", b"IDAT")
            )
            chunks.insert(
                number, (extra, rng.choice((b"k\0\0" + zlib.compress(bytes(1 << 24)), rng.randbytes(6), b"\0" * 30)))
            )
        elif how < 0.7:
            chunks.insert(rng.randrange(len(chunks)), chunks.pop(number))
        else:
            chunks[number] = (kind, mutate_bytes(rng, data, [data]))
        return {name: SIGNATURE + b"".join(map(_chunk, chunks))}

    return mutate


def npy(name: str) -> Any:
    """Return a mutation of the header of a .npy file, or of its numbers."""

    def mutate(rng: Random, files: Files, hostile: Hostile) -> Files:
        return {name: _array(rng, files[name], hostile)}

    return mutate


def npz(name: str) -> Any:
    """Return a mutation of the array in a .npz file, with a right checksum."""

    def mutate(rng: Random, files: Files, hostile: Hostile) -> Files:
        arrays = read_zip(files[name])
        member = rng.choice(list(arrays))
        arrays[member] = _array(rng, arrays[member], hostile)
        if rng.random() < 0.1:
            arrays[rng.choice(("b.npy", "../b.npy", "/b"))] = arrays[member]
        return {name: write_zip(arrays)}

    return mutate


def _array(rng: Random, data: bytes, hostile: Hostile) -> bytes:
    """Change the text of an array's header, or its numbers to some that are not finite or far away."""
    length = int.from_bytes(data[8:10], "little")
    text, body = data[10 : 10 + length].decode(), data[10 + length :]
    if rng.random() < 0.4:
        kind = ast.literal_eval(text)["descr"]
        numbers = np.frombuffer(body, kind).copy()
        with np.errstate(all="ignore"):
            numbers[rng.randrange(len(numbers))] = np.array(rng.choice((np.nan, np.inf, -1, 1e30, 300, 2))).astype(kind)
        return data[: 10 + length] + numbers.tobytes()
    fields = ast.literal_eval(text)
    field = rng.choice(list(fields))
    size = rng.choice((0, 1, -1, 13, 2**31, 2**62))
    fields[field] = {
        "descr": rng.choice(
            ("|O", "<f2", "<c16", "|b1", "<i8", "|S4", "<M8[s]", ">u2", [("a", "<i4")], hostile.text(rng))
        ),
        "fortran_order": rng.choice((True, False, 2, None)),
        "shape": rng.choice(((size,), (13, 11, size), (size, 13, 11), (11, 13), (13, 1, 11), (), None, [13, 11])),
    }[field]
    head = repr(fields).encode("utf-8", "replace").ljust(length - 1)[: 2**16 - 2] + b"\n"
    return data[:8] + len(head).to_bytes(2, "little") + head + body


def _chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    found, position = [], len(SIGNATURE)
    while position < len(data):
        length = struct.unpack_from(">I", data, position)[0]
        found.append((data[position + 4 : position + 8], data[position + 8 : position + 8 + length]))
        position += 12 + length
    return found


def _chunk(chunk: tuple[bytes, bytes]) -> bytes:
    kind, data = chunk
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

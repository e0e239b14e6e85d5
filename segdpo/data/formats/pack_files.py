"""The files of a pack: shards, which hold the bytes of records, and records.arrow, which says where each record is.

A shard:

    8 bytes, uint32              magic, version
    records                      one after another (pack_records.py)
    index                        zstd frame of JSON: [offset, length, crc32, header] of each record
    uint64, uint32, uint32, 8    offset, length and crc32 of the index, magic of the end

The index is read when an unfinished pack is continued. Reading a finished pack needs records.arrow alone.
"""

import json
import os
import struct
import zlib
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa

from segdpo.data.formats.pack_records import check_header, compress, decompress, frame_size, parse_packed
from segdpo.files import DataError, exists, open_file, write_atomically

VERSION = 1
TABLE_VERSION = 2
HEAD = struct.Struct("<8sI")
TAIL = struct.Struct("<QII8s")
MAGIC, END = b"SEGDPOSH", b"SEGDPOND"
FIX = "restore the shard, or remove it with records.arrow and run the command that wrote the pack again."
TABLE_FIX = "write the pack again with segdpo pack."
RECORDS = "records.arrow"
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("group", pa.string()),
        ("split", pa.string()),
        ("pairs", pa.uint32()),
        ("ranking", pa.uint32()),
        ("gold", pa.uint8()),
        ("shard", pa.uint32()),
        ("offset", pa.uint64()),
        ("length", pa.uint32()),
        ("crc", pa.uint32()),
    ]
)
# Version 1 of the table does not say which records have gold.
SCHEMAS = {"1": SCHEMA.remove(SCHEMA.get_field_index("gold")), str(TABLE_VERSION): SCHEMA}
ARROW_MAGIC = b"ARROW1\0\0"


@dataclass(frozen=True)
class Place:
    """Where a record's bytes lie in its shard, their checksum, and the record's header."""

    offset: int
    length: int
    crc: int
    header: dict[str, Any]


def shard_path(pack: Path, number: int) -> Path:
    """Return the path of a pack's shard."""
    return pack / f"shard-{number:05d}.bin"


def write_shard(path: Path, records: Sequence[tuple[bytes, dict[str, Any]]]) -> list[Place]:
    """Write records (bytes and header of each) as a shard; the same records give the same bytes."""
    places, offset = [], HEAD.size
    for body, header in records:
        places.append(Place(offset, len(body), zlib.crc32(body), header))
        offset += len(body)
    rows = [[place.offset, place.length, place.crc, place.header] for place in places]
    index = compress(json.dumps(rows, ensure_ascii=False, separators=(",", ":")).encode())
    tail = TAIL.pack(offset, len(index), zlib.crc32(index), END)
    write_atomically(path, HEAD.pack(MAGIC, VERSION), *(body for body, _ in records), index, tail)
    return places


def read_index(path: Path) -> list[Place]:
    """Return the places of a shard's records, from the index at its end."""
    with _open(path) as file:
        size = file.seek(0, 2)
        file.seek(max(size - TAIL.size, 0))
        tail = file.read(TAIL.size)
        offset, length, crc, end = TAIL.unpack(tail) if len(tail) == TAIL.size else (0, 0, 0, b"")
        if end != END or offset < HEAD.size or offset + length + TAIL.size != size:
            raise DataError(f"{path}: the shard is cut short; {FIX}", "damaged")
        file.seek(offset)
        index = file.read(length)
    if zlib.crc32(index) != crc:
        raise DataError(f"{path}: the shard's index is damaged (checksum); {FIX}", "damaged")
    expanded = frame_size(index)
    # It repeats headers that also stand in the records, so it is at most twice as long as they are.
    if not 0 <= expanded <= 2 * offset:
        raise DataError(
            f"{path}: Expected an index of at most {2 * offset} bytes but its frame says {expanded}; {FIX}", "damaged"
        )
    rows = parse_packed(decompress(index, expanded, f"{path}, index").tobytes(), f"{path}, index")
    if not isinstance(rows, list):
        raise DataError(f"{path}: Expected a list as index but got {type(rows).__name__}; {FIX}", "damaged")
    return [_place(row, offset, f"{path}, record {number}") for number, row in enumerate(rows)]


def read_body(path: Path, offset: int, length: int, crc: int) -> bytes:
    """Return the bytes of one record, compared with their checksum."""
    try:
        # Opened anew each time: a thousand shards held open would meet the limit of open files.
        with _open(path) as file:
            size = os.fstat(file.fileno()).st_size
            # Checked first: read() reserves what it is asked for, up to 4 GB, however short the file is.
            if offset < HEAD.size or offset + length > size:
                raise DataError(
                    f"{path}: the shard is cut short (at {size} bytes): Expected a record of {length} bytes at byte "
                    f"{offset}; {FIX}",
                    "damaged",
                )
            file.seek(offset)
            data = file.read(length)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); {FIX}") from None
    if zlib.crc32(data) != crc:
        raise DataError(f"{path}: the record at byte {offset} is damaged (checksum); {FIX}", "damaged")
    return data


class RecordTable:
    """Collects the rows of records.arrow while a pack is written; numbers take 8 bytes each."""

    def __init__(self) -> None:
        self._columns: list[list[Any] | array[int]] = [
            [] if pa.types.is_string(field.type) else array("Q") for field in SCHEMA
        ]

    def add(self, shard: int, places: Iterable[Place]) -> None:
        """Append the records of a shard."""
        for place in places:
            header = place.header
            texts = (header["id"], header["group"], header["split"])
            known = (len(header["pairs"]), len(header["ranking"]), header["gold"])
            numbers = (shard, place.offset, place.length, place.crc)
            for column, cell in zip(self._columns, (*texts, *known, *numbers), strict=True):
                column.append(cell)

    def write(self, pack: Path) -> None:
        """Write records.arrow into the pack."""
        arrays = [
            pa.array(column if isinstance(column, list) else np.asarray(column), field.type)
            for column, field in zip(self._columns, SCHEMA, strict=True)
        ]
        write_table(pack / RECORDS, pa.Table.from_arrays(arrays, schema=SCHEMA))


def write_table(path: Path, table: pa.Table) -> None:
    """Write a table as one record batch, with a version and a checksum of its columns in the schema's metadata."""
    batch = (table.combine_chunks().to_batches() or [pa.RecordBatch.from_pylist([], table.schema)])[0]
    marked = batch.replace_schema_metadata({"version": str(TABLE_VERSION), "checksum": _checksum(batch)})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, marked.schema) as writer:
        writer.write_batch(marked)
    write_atomically(path, memoryview(sink.getvalue()))


def open_table(path: Path) -> pa.RecordBatch:
    """Return the rows of records.arrow as views of the mapped file; a DataError if it is damaged."""
    if not exists(path):
        raise DataError(f"{path}: no such file; {TABLE_FIX}")
    # pyarrow waits for a FIFO's writer, and maps a device.
    open_file(path).close()
    try:
        with pa.memory_map(str(path)) as source:
            batch, checksum = _read_batch(source)
        batch.validate(full=True)
        filled = not any(column.null_count for column in batch.columns)
        whole = filled and checksum == _checksum(batch)
    except _OtherVersionError as error:
        raise DataError(
            f"{path}: Expected version 1 to {TABLE_VERSION} but got {error}; {TABLE_FIX}", "version"
        ) from None
    except (pa.ArrowException, OSError, ValueError, IndexError, EOFError, TypeError, struct.error) as error:
        raise DataError(f"{path}: the table is damaged ({error}); {TABLE_FIX}", "damaged") from None
    if not whole:
        raise DataError(f"{path}: the table is damaged (checksum or columns differ); {TABLE_FIX}", "damaged")
    return batch


def _place(row: Any, records_end: int, where: str) -> Place:
    if not (isinstance(row, list) and len(row) == 4 and all(type(number) is int for number in row[:3])):
        raise DataError(f"{where}: Expected offset, length, checksum and header but got {row!r:.200}; {FIX}", "damaged")
    offset, length, crc, header = row
    if not (HEAD.size <= offset and 0 <= length < 2**32 and offset + length <= records_end and 0 <= crc < 2**32):
        raise DataError(
            f"{where}: Expected bytes between {HEAD.size} and {records_end} but got {length} at {offset}; {FIX}",
            "damaged",
        )
    return Place(offset, length, crc, check_header(header, where))


def _open(path: Path) -> BinaryIO:
    """Return the shard, read as far as its head."""
    file = open_file(path)
    try:
        head = file.read(HEAD.size)
        magic, version = HEAD.unpack(head) if len(head) == HEAD.size else (b"", 0)
        if magic != MAGIC:
            raise DataError(f"{path}: Expected a shard of a pack but got other bytes; {FIX}", "damaged")
        if version != VERSION:
            fix = "write the pack again with this program."
            raise DataError(f"{path}: Expected a shard of version {VERSION} but got {version}; {fix}", "version")
    except BaseException:
        file.close()
        raise
    return file


class _OtherVersionError(Exception):
    """The table is of a version that this program does not know; its text is that version."""


def _read_batch(source: pa.NativeFile) -> tuple[pa.RecordBatch, str]:
    """Return the first record batch and the checksum in the metadata of the schema.

    The schema of the file is not given to pyarrow, which crashes on damaged ones: the columns of each version are
    known. What is compressed is refused before it is expanded.
    """
    if source.read(len(ARROW_MAGIC)) != ARROW_MAGIC:
        raise ValueError("it is no Arrow file")
    found = _metadata_of(pa.ipc.read_message(source).metadata.to_pybytes())
    version = found.get(b"version", b"1").decode()
    if version not in SCHEMAS:
        raise _OtherVersionError(repr(version))
    message = pa.ipc.read_message(source)
    if message.type != "record batch":
        raise ValueError(f"Expected a record batch but got a {message.type}")
    if _is_compressed(message.metadata.to_pybytes()):
        raise ValueError("Expected a table without compression")
    return pa.ipc.read_record_batch(message, SCHEMAS[version]), found.get(b"checksum", b"").decode()


def _metadata_of(message: bytes) -> dict[bytes, bytes]:
    """Return the keys and values in field 2, custom_metadata, of the Schema that is field 2 of a flatbuffer Message."""
    table = _number(message, 0)
    schema = table + _field(message, table, 2)
    schema += _number(message, schema)
    if not (entries := _field(message, schema, 2)):
        return {}
    vector = schema + entries
    vector += _number(message, vector)
    found = {}
    for place in range(vector + 4, vector + 4 + 4 * _number(message, vector), 4):
        pair = place + _number(message, place)
        key, value = (_text(message, pair + _field(message, pair, number)) for number in (0, 1))
        found[key] = value
    return found


def _number(metadata: bytes, place: int) -> int:
    return int(struct.unpack_from("<I", metadata, place)[0])


def _text(metadata: bytes, place: int) -> bytes:
    """Return the string that the offset at a place leads to."""
    start = place + _number(metadata, place)
    return metadata[start + 4 : start + 4 + _number(metadata, start)]


def _is_compressed(metadata: bytes) -> bool:
    """Return whether field 3, compression, is there in the table that is field 2 of a flatbuffer Message.

    pyarrow does not say, and expands what a table of a few kilobytes claims to hold.
    """
    message = _number(metadata, 0)
    place = message + _field(metadata, message, 2)
    return bool(_field(metadata, place + _number(metadata, place), 3))


def _field(metadata: bytes, table: int, number: int) -> int:
    """Return where a field lies behind the start of a flatbuffer's table, 0 if it is not there."""
    fields = table - struct.unpack_from("<i", metadata, table)[0]
    place = 4 + 2 * number
    inside = place + 2 <= struct.unpack_from("<H", metadata, fields)[0]
    return int(struct.unpack_from("<H", metadata, fields + place)[0]) if inside else 0


def _checksum(batch: pa.RecordBatch) -> str:
    value = zlib.crc32(str((batch.num_rows, batch.schema.names)).encode())
    for column in batch.columns:
        for buffer in column.buffers():
            value = zlib.crc32(buffer or b"", value)
    return f"{value:08x}"

"""A shard: some records in one file that is there as a whole or not at all.

head    "SEGDPOSH", version
bodies  the records' bytes, one after the other
index   zstd JSON: offset, length, crc32 and header of each record
tail    offset, length and crc32 of the index, "SEGDPOND"
"""

import json
import os
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import zstandard

from segdpo.data.arrow_file import atomic
from segdpo.data.errors import DataError
from segdpo.data.files import open_file
from segdpo.data.pack_header import check_header, parse_json
from segdpo.data.pixels import decompress

VERSION = 1
HEAD = struct.Struct("<8sI")
TAIL = struct.Struct("<QII8s")
MAGIC, END = b"SEGDPOSH", b"SEGDPOND"
MEND = "restore the shard, or remove it with records.arrow and run the command that wrote the pack again."


@dataclass(frozen=True)
class Place:
    """Where a record's bytes lie in its shard, their checksum, and the record's header."""

    offset: int
    length: int
    crc: int
    header: dict[str, Any]


def write_shard(path: Path, bodies: list[bytes], headers: list[dict[str, Any]]) -> list[Place]:
    """Write the records' bytes as a shard and return their places; the same records give the same bytes."""
    places, offset = [], HEAD.size
    for body, header in zip(bodies, headers, strict=True):
        places.append(Place(offset, len(body), zlib.crc32(body), header))
        offset += len(body)
    rows = [[place.offset, place.length, place.crc, place.header] for place in places]
    text = json.dumps(rows, ensure_ascii=False, separators=(",", ":")).encode()
    index = zstandard.ZstdCompressor(level=3).compress(text)
    with atomic(path) as temporary, temporary.open("wb") as file:
        file.write(HEAD.pack(MAGIC, VERSION))
        file.writelines(bodies)
        file.write(index)
        file.write(TAIL.pack(offset, len(index), zlib.crc32(index), END))
    return places


def read_index(path: Path) -> list[Place]:
    """Return the places of a shard's records."""
    with _open(path) as file:
        size = file.seek(0, 2)
        file.seek(max(size - TAIL.size, 0))
        tail = file.read(TAIL.size)
        offset, length, crc, end = TAIL.unpack(tail) if len(tail) == TAIL.size else (0, 0, 0, b"")
        if end != END or offset < HEAD.size or offset + length + TAIL.size != size:
            raise DataError(f"{path}: the shard is cut short; {MEND}", "damaged")
        file.seek(offset)
        index = file.read(length)
    if zlib.crc32(index) != crc:
        raise DataError(f"{path}: the shard's index is damaged (checksum); {MEND}", "damaged")
    rows = parse_json(_expand(index, offset, str(path)), f"{path}, index")
    if not isinstance(rows, list):
        raise DataError(f"{path}: Expected a list as index but got {type(rows).__name__}; {MEND}", "damaged")
    return [_place(row, offset, f"{path}, record {number}") for number, row in enumerate(rows)]


def read_body(path: Path, offset: int, length: int, crc: int) -> bytes:
    """Return the bytes of one record, compared with their checksum."""
    try:
        # Opened anew each time: a thousand shards held open would meet the limit of open files.
        with _open(path) as file:
            size = os.fstat(file.fileno()).st_size
            # Asked first: read() sets aside what it is asked for, up to 4 GB, however short the file is.
            if offset < HEAD.size or offset + length > size:
                raise DataError(
                    f"{path}: the shard is cut short (at {size} bytes): Expected a record of {length} bytes at byte "
                    f"{offset}; {MEND}",
                    "damaged",
                )
            file.seek(offset)
            data = file.read(length)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); {MEND}") from None
    if zlib.crc32(data) != crc:
        raise DataError(f"{path}: the record at byte {offset} is damaged (checksum); {MEND}", "damaged")
    return data


def _expand(index: bytes, bodies_end: int, name: str) -> bytes:
    """Return the index; it repeats headers that also stand in the bodies, so it is at most twice as long as they."""
    try:
        size = zstandard.frame_content_size(index)
    except zstandard.ZstdError:
        size = -1
    if not 0 <= size <= 2 * bodies_end:
        raise DataError(
            f"{name}: Expected an index of at most {2 * bodies_end} bytes but its frame says {size}; {MEND}", "damaged"
        )
    return decompress(index, size, f"{name}, index")


def _place(row: Any, bodies_end: int, where: str) -> Place:
    if not (isinstance(row, list) and len(row) == 4 and all(type(number) is int for number in row[:3])):
        raise DataError(
            f"{where}: Expected offset, length, checksum and header but got {row!r:.200}; {MEND}", "damaged"
        )
    offset, length, crc, header = row
    if not (HEAD.size <= offset and 0 <= length < 2**32 and offset + length <= bodies_end and 0 <= crc < 2**32):
        raise DataError(
            f"{where}: Expected bytes between {HEAD.size} and {bodies_end} but got {length} at {offset}; {MEND}",
            "damaged",
        )
    return Place(offset, length, crc, check_header(header, where))


def _open(path: Path) -> BinaryIO:
    """Return the shard behind its head."""
    file = open_file(path)
    try:
        _check_head(file.read(HEAD.size), path)
    except BaseException:
        file.close()
        raise
    return file


def _check_head(head: bytes, path: Path) -> None:
    magic, version = HEAD.unpack(head) if len(head) == HEAD.size else (b"", 0)
    if magic != MAGIC:
        raise DataError(f"{path}: Expected a shard of a pack but got other bytes; {MEND}", "damaged")
    if version != VERSION:
        raise DataError(
            f"{path}: Expected a shard of version {VERSION} but got {version}; write the pack again with this program.",
            "version",
        )

"""A data set as a pack: one read and two decodings a record, however many masks it has; made for training.

    pack.json          classes, version, records a shard
    records.arrow      where each record is, its checksum, id, group and split
    pairs.arrow        all pairs (pair_table.py)
    shard-00000.bin …  the records (pack_shard.py, pack_record.py)

Each record has a checksum: damage gives an error or the right record, never a wrong one.
"""

import json
import math
import os
import struct
import zlib
from array import array
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
import pyarrow as pa
import zstandard
from PIL import Image as Pillow

from segdpo.data.formats.arrow import SCHEMA as PAIR_SCHEMA
from segdpo.data.formats.arrow import PairTable, atomic, open_table, write_table
from segdpo.data.formats.folder import MAX_DESCRIPTION_BYTES, check_version, parse_object
from segdpo.data.formats.pack_header import FIX, check_header, parse_json
from segdpo.data.images import ImageFile, decode_image, encode_image
from segdpo.data.record import Image, Pair, Record, RecordInfo, check_classes, check_id, check_split
from segdpo.files import DataError, open_file, read_file

LEVEL = 3


def encode_pixels(image: Image) -> bytes:
    """Return the bytes of an image uint8 [H, W, C]."""
    # Differences of uint8 wrap round, and so do the sums that undo them: nothing is lost.
    rows = np.diff(image, axis=0, prepend=np.zeros_like(image[:1]))
    return zstandard.ZstdCompressor(level=LEVEL).compress(rows.tobytes())


def decode_pixels(data: bytes | memoryview, shape: tuple[int, int, int], name: str) -> Image:
    """Return the image uint8 [H, W, C] of `shape` in `data`."""
    pixels = decompress(data, math.prod(shape), name)
    rows = np.frombuffer(bytearray(pixels), np.uint8).reshape(shape)
    # Row by row this is four times as fast as cumsum.
    for above, row in pairwise(rows):
        row += above
    return rows


def decompress(frame: bytes | memoryview, size: int, name: str) -> bytes:
    """Return the `size` bytes in a zstd frame; a frame that says anything else is refused before it is expanded.

    zstandard reserves what a frame says that it holds, whatever `max_output_size` is: a frame of 98 kB took 3 GB.
    """
    try:
        found = zstandard.frame_content_size(frame)
        if found == size:
            return zstandard.ZstdDecompressor().decompress(frame)
    except (zstandard.ZstdError, MemoryError) as error:
        raise DataError(f"{name}: cannot be decompressed ({error}); restore the file.", "damaged") from None
    said = "an unknown number" if found < 0 else found
    raise DataError(f"{name}: Expected a frame of {size} bytes but it says {said}; restore the file.", "damaged")


def with_channels(image: Image, channels: int | None, name: str) -> Image:
    """Return the image as RGB for 3 `channels`, grey for 1, as it is for None."""
    found = image.shape[2]
    if channels in (None, found):
        return image
    if found not in (1, 3, 4):
        raise DataError(f"{name}: Expected 1, 3 or 4 channels but got {found}; read it with channels=None.")
    if found == 1:
        return np.repeat(image, 3, axis=2)
    colours = np.ascontiguousarray(image[..., :3])
    return colours if channels == 3 else np.array(Pillow.fromarray(colours).convert("L"))[..., None]


SETTINGS_VERSION = 1
DESCRIPTION = "pack.json"
Images = Literal["files", "pixels"]


@dataclass(frozen=True)
class PackSettings:
    """The classes, how many records a shard has, and whether images are kept as files or as pixels."""

    classes: tuple[str, ...]
    records_per_shard: int
    images: Images

    def __post_init__(self) -> None:
        number = self.records_per_shard
        if type(number) is not int or number < 1 or self.images not in ("files", "pixels"):
            raise DataError(
                f"Expected at least 1 record a shard, and images 'files' or 'pixels', but got "
                f"{self.records_per_shard} and {self.images!r}."
            )


def read_settings(path: Path) -> PackSettings:
    """Return the settings of the pack at `path`."""
    name = str(path / DESCRIPTION)
    values = parse_object(read_file(path / DESCRIPTION, MAX_DESCRIPTION_BYTES), name)
    check_version(values.pop("version", None), SETTINGS_VERSION, name, "write the pack again with this program.")
    if values.pop("checksum", None) != _checksum(values):
        raise DataError(f"{name}: is damaged (checksum); restore it, or write the pack again.", "damaged")
    if values.keys() != {"classes", "records_per_shard", "images"} or not isinstance(values["classes"], list):
        raise DataError(
            f"{name}: Expected a list of classes, records_per_shard and images but got {values!r:.200}; "
            "write the pack again with this program.",
            "damaged",
        )
    classes = check_classes(values["classes"], f"{name}: ")
    try:
        return PackSettings(classes, values["records_per_shard"], values["images"])
    except DataError as error:
        raise DataError(f"{name}: {error}", "damaged") from None


def write_settings(path: Path, settings: PackSettings) -> None:
    """Write the settings into the pack at `path`."""
    values = {**asdict(settings), "classes": list(settings.classes)}
    text = json.dumps(
        {"version": SETTINGS_VERSION, **values, "checksum": _checksum(values)}, ensure_ascii=False, indent=1
    )
    with atomic(path / DESCRIPTION) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def _checksum(values: dict[str, Any]) -> str:
    return f"{zlib.crc32(json.dumps(values, sort_keys=True).encode()):08x}"


SHARD_VERSION = 1
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
        file.write(HEAD.pack(MAGIC, SHARD_VERSION))
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
    if version != SHARD_VERSION:
        raise DataError(
            f"{path}: Expected a shard of version {SHARD_VERSION} but got {version}; "
            "write the pack again with this program.",
            "version",
        )


LENGTH = struct.Struct("<I")
# Level 3 reads as fast as level 1 and writes nearly so; higher ones save a tenth and write several times slower.


def encode_record(record: Record, file: ImageFile | None) -> tuple[bytes, dict[str, Any]]:
    """Return the record's bytes and its header; without the image's file, its pixels are kept."""
    file = file or ImageFile("", encode_pixels(record.image))
    planes = record.masks if record.gold is None else np.concatenate([record.masks, record.gold[None]])
    header = {
        "id": record.id,
        "suffix": file.suffix,
        "image_bytes": len(file.data),
        "shape": list(record.image.shape),
        "masks": list(record.mask_names),
        "gold": record.gold is not None,
        "pairs": [[pair.chosen, pair.rejected, pair.weight] for pair in record.pairs],
        "ranking": list(record.ranking),
        "group": record.group,
        "split": record.split,
        "meta": record.meta,
    }
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":"), default=_plain).encode()
    frame = zstandard.ZstdCompressor(level=LEVEL).compress(np.ascontiguousarray(planes).tobytes())
    # What a reader would refuse is not written.
    return LENGTH.pack(len(text)) + text + file.data + frame, check_header(json.loads(text), repr(record.id))


def decode_record(data: bytes, name: str, channels: int | None) -> Record:
    """Return the record in `data`, which the caller has compared with its checksum."""
    header, start, end = _split(data, name)
    height, width, _ = header["shape"]
    masks = header["masks"]
    count = len(masks) + header["gold"]
    where = f"{name}, record {header['id']!r}"
    # The view spares a copy of all masks.
    pixels = decompress(memoryview(data)[end:], count * height * width, where)
    planes = np.frombuffer(bytearray(pixels), np.uint8).reshape(count, height, width)
    return Record(
        id=header["id"],
        image=_decode_image(header, data[start:end], where, channels),
        masks=planes[: len(masks)],
        mask_names=tuple(masks),
        pairs=tuple(Pair(*pair) for pair in header["pairs"]),
        ranking=tuple(header["ranking"]),
        gold=planes[-1] if header["gold"] else None,
        group=header["group"],
        split=header["split"],
        meta=header["meta"],
    )


def decode_image_file(data: bytes, name: str) -> ImageFile:
    """Return the image's file in `data` as it was given, or a PNG of its pixels."""
    header, start, end = _split(data, name)
    if header["suffix"]:
        return ImageFile(header["suffix"], data[start:end])
    return encode_image(decode_pixels(data[start:end], header["shape"], f"{name}, record {header['id']!r}"))


def _decode_image(header: dict[str, Any], data: bytes, where: str, channels: int | None) -> Image:
    shape = header["shape"]
    if not header["suffix"]:
        return with_channels(decode_pixels(data, shape, where), channels, where)
    image = decode_image(data, where, channels)
    if image.shape[0] != shape[0] or image.shape[1] != shape[1]:
        raise DataError(f"{where}: Expected an image of {shape} but got {list(image.shape)}; {FIX}", "size")
    return image


def _split(data: bytes, name: str) -> tuple[dict[str, Any], int, int]:
    """Return the header, and where the image begins and ends."""
    start = LENGTH.size + (LENGTH.unpack_from(data)[0] if len(data) >= LENGTH.size else len(data))
    if start > len(data):
        raise DataError(f"{name}: Expected a header of {start} bytes but the record has {len(data)}; {FIX}", "damaged")
    header = check_header(parse_json(data[LENGTH.size : start], name), name)
    end = start + header["image_bytes"]
    if end > len(data):
        raise DataError(
            f"{name}, record {header['id']!r}: Expected {header['image_bytes']} bytes of image after byte {start} but "
            f"the record has {len(data)}; {FIX}",
            "damaged",
        )
    return header, start, end


def _plain(value: Any) -> Any:
    """Return a numpy number as Python's: judges and rules count in numpy."""
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"Expected numbers in pairs and ranking but got {value!r}.")


INDEX_VERSION = 1
RECORDS, PAIRS = "records.arrow", "pairs.arrow"
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("group", pa.string()),
        ("split", pa.string()),
        ("pairs", pa.uint32()),
        ("ranking", pa.uint32()),
        ("shard", pa.uint32()),
        ("offset", pa.uint64()),
        ("length", pa.uint32()),
        ("crc", pa.uint32()),
    ]
)
TEXTS = ("id", "group", "split")
PLACE = ("shard", "offset", "length", "crc")


class PackIndex:
    """Collects the rows of records.arrow and pairs.arrow, in machine numbers, while a pack is written."""

    def __init__(self) -> None:
        self._texts: dict[str, list[str]] = {name: [] for name in TEXTS}
        self._numbers: dict[str, array[int]] = {name: array("Q") for name in SCHEMA.names if name not in TEXTS}
        # Three times the memory of the table's own types, and one type for all: a million pairs take 32 MB.
        self._pairs: list[array[float]] = [array("d") for _ in PAIR_SCHEMA]

    def add(self, shard: int, places: list[Place]) -> None:
        """Append the records of a shard."""
        for place in places:
            header = place.header
            pairs = header["pairs"]
            for pair in pairs:
                for column, number in zip(self._pairs, (len(self._texts["id"]), *pair), strict=True):
                    column.append(number)
            for name in TEXTS:
                self._texts[name].append(header[name])
            numbers = (len(pairs), len(header["ranking"]), shard, place.offset, place.length, place.crc)
            for cells, cell in zip(self._numbers.values(), numbers, strict=True):
                cells.append(cell)

    def write(self, path: Path) -> None:
        """Write both tables; records.arrow last, since a pack is finished when it is there."""
        count = len(self._texts["id"])
        PairTable.from_columns([np.array(column) for column in self._pairs], count).write(path / PAIRS)
        columns = {**self._texts, **{name: np.array(column) for name, column in self._numbers.items()}}
        arrays = [pa.array(columns[field.name], field.type) for field in SCHEMA]
        write_table(path / RECORDS, pa.Table.from_arrays(arrays, schema=SCHEMA), INDEX_VERSION)


def shard_path(path: Path, number: int) -> Path:
    """Return the path of a pack's shard."""
    return path / f"shard-{number:05d}.bin"


class PackDataset:
    """The records of a finished pack; `pack[i]` reads record i.

    `channels`: 3 replicates grey images to RGB, 1 makes grey, None leaves images as stored.
    """

    def __init__(self, path: str | Path, channels: int | None = 3):
        self.path, self.channels = Path(path), channels
        self.classes = read_settings(self.path).classes
        if not (self.path / RECORDS).exists():
            raise DataError(f"{self.path}: the pack is not finished; run the command that wrote it again, it goes on.")
        self._records = open_table(self.path / RECORDS, SCHEMA, INDEX_VERSION)
        # Views of the mapped file: a cell of one is read ten times as fast as one of a table.
        self._places = tuple(self._records.column(name).to_numpy() for name in PLACE)

    def __len__(self) -> int:
        return int(self._records.num_rows)

    def __getitem__(self, index: int) -> Record:
        name, body = self._read(index)
        return decode_record(body, name, self.channels)

    def describe(self, index: int) -> RecordInfo:
        """Return what the index says of a record, without reading it."""
        row = self._row(index)
        cells = (self._records.column(name)[row].as_py() for name in ("id", "group", "split", "pairs", "ranking"))
        name, group, split, pairs, ranking = cells
        where = f"{self.path / RECORDS}, record {index}: "
        return RecordInfo(check_id(name, where), group, check_split(split, where), pairs, ranking)

    def image_file(self, index: int) -> ImageFile:
        """Return the image's file as it was packed, or a PNG of its pixels."""
        name, body = self._read(index)
        return decode_image_file(body, name)

    @cached_property
    def pairs(self) -> PairTable:
        """All pairs as views of the mapped table."""
        table = PairTable.open(self.path / PAIRS, len(self))
        if not np.array_equal(np.diff(table.offsets), self._records.column("pairs").to_numpy()):
            raise DataError(
                f"{self.path / PAIRS}: is not of this pack; run the command that wrote it again.", "damaged"
            )
        return table

    def _read(self, index: int) -> tuple[str, bytes]:
        row = self._row(index)
        shard, offset, length, crc = (int(column[row]) for column in self._places)
        path = shard_path(self.path, shard)
        return str(path), read_body(path, offset, length, crc)

    def _row(self, index: int) -> int:
        if not -len(self) <= index < len(self):
            raise IndexError(f"Expected a record below {len(self)} but got {index}.")
        return int(index) % len(self)

"""A data set as a pack, made for training: one read and two decodings a record, however many masks it has.

    pack.json          version, classes, records a shard, how images are stored, the settings that it was made with
    records.arrow      where each record is, its checksum, id, group, split, number of pairs and whether it has gold
    shard-00000.bin …  the records (pack_files.py, pack_records.py)

Each record has a checksum: damage gives an error or the right record, never a wrong one.
"""

import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np

from segdpo.data.formats.folder import MAX_DESCRIPTION_BYTES, check_version, parse_object
from segdpo.data.formats.pack_files import (
    RECORDS,
    Place,
    RecordTable,
    open_table,
    read_body,
    read_index,
    shard_path,
    write_shard,
)
from segdpo.data.formats.pack_records import decode_image_file, decode_record, encode_record
from segdpo.data.images import ImageFile
from segdpo.data.record import Record, RecordInfo, check_classes, check_id, check_record, check_split
from segdpo.files import DataError, read_file, remove_unfinished, write_atomically

VERSION = 1
DESCRIPTION = "pack.json"
RECORDS_PER_SHARD = 64
PLACE = ("shard", "offset", "length", "crc")
Images = Literal["files", "pixels"]
Packed = tuple[bytes, dict[str, Any]]
"""A record's bytes and its header."""


class PackDataset:
    """The records of a finished pack; `pack[i]` reads record i.

    Args:
        path: the folder of the pack.
        channels: 3 repeats the channel of grey images to RGB, 1 converts to grey, None leaves images as stored.
    """

    def __init__(self, path: str | Path, channels: int | None = 3):
        self.path, self.channels = Path(path), channels
        settings = _read_settings(self.path)
        self.classes, self.made_with = settings.classes, settings.made_with
        if not (self.path / RECORDS).exists():
            raise DataError(
                f"{self.path}: the pack is not finished; run the command that wrote it again, which continues it."
            )
        self._records = open_table(self.path / RECORDS)
        # Views of the mapped file: a cell of one is read ten times as fast as one of a table. to_numpy imports pandas.
        self._places = tuple(np.from_dlpack(self._records.column(name)) for name in PLACE)

    def __len__(self) -> int:
        return int(self._records.num_rows)

    def __getitem__(self, index: int) -> Record:
        name, body = self._read(index)
        return decode_record(body, name, self.channels)

    @property
    def pairs(self) -> int:
        """The number of pairs of all records."""
        return int(np.from_dlpack(self._records.column("pairs")).sum())

    def describe(self, index: int) -> RecordInfo:
        """Return what records.arrow says of a record, without reading the record."""
        row = self._row(index)
        cells = (self._records.column(name)[row].as_py() for name in ("id", "group", "split", "pairs", "ranking"))
        name, group, split, pairs, ranking = cells
        where = f"{self.path / RECORDS}, record {index}: "
        # Tables of the first version do not say it.
        gold = bool(self._records.column("gold")[row].as_py()) if "gold" in self._records.schema.names else None
        return RecordInfo(check_id(name, where), group, check_split(split, where), pairs, ranking, gold)

    def image_file(self, index: int) -> ImageFile:
        """Return the image's file as it was packed, or a PNG of its pixels."""
        name, body = self._read(index)
        return decode_image_file(body, name)

    def _read(self, index: int) -> tuple[str, bytes]:
        row = self._row(index)
        shard, offset, length, crc = (int(column[row]) for column in self._places)
        path = shard_path(self.path, shard)
        return str(path), read_body(path, offset, length, crc)

    def _row(self, index: int) -> int:
        if not -len(self) <= index < len(self):
            raise IndexError(f"Expected a record below {len(self)} but got {index}.")
        return int(index) % len(self)


def packed(record: Record, classes: Sequence[str], image_file: ImageFile | None = None) -> Packed:
    """Return a valid record as a pack stores it; without the file of its image, its pixels are stored."""
    return encode_record(check_record(record, tuple(classes)), image_file)


class PackWriter:
    """Writes records to a pack; a pack that is already there is continued.

    A shard is written as soon as it is full, so a killed process loses less than one shard. To continue, skip the
    records of `done_ids` and write the rest in the same order: the pack ends with the same bytes as an uninterrupted
    run. Those that are written once more are compared. Only one writer may have a pack open.

    Args:
        path: the folder of the pack.
        classes: names of the classes, in the order of their ids.
        records_per_shard: None: 64, or as the pack has it.
        images: "files" stores an image's file byte for byte where `write` is given one. "pixels" stores the pixels of
            all images, which read several times faster than PNG and take more room than JPEG. None: "files", or as
            the pack has it.
        made_with: the settings that decide what the records are, such as those of mining; a pack that was made with
            others is not continued.
    """

    def __init__(
        self,
        path: str | Path,
        classes: Sequence[str],
        records_per_shard: int | None = None,
        images: Images | None = None,
        made_with: Mapping[str, Any] | None = None,
    ):
        self.path = Path(path)
        self.path.mkdir(parents=True, exist_ok=True)
        self._settings = self._open_settings(check_classes(tuple(classes)), records_per_shard, images, made_with)
        self.classes = self._settings.classes
        self._lock = _lock(self.path / DESCRIPTION)
        self.done_ids: set[str] = set()
        self._earlier: dict[str, int] = {}  # checksums of records that this process did not write
        self._table = RecordTable()
        self._waiting: list[Packed] = []
        self._shards = 0
        self._resume()

    def write(self, record: Record, image_file: ImageFile | None = None) -> None:
        """Append a record; `image_file` is the file that its image was read from.

        Raises:
            DataError: the record is not valid, its id came before, or an interrupted run wrote other content for it.
        """
        self.write_packed(packed(record, self.classes, image_file if self._settings.images == "files" else None))

    def write_packed(self, record: Packed) -> None:
        """Append what `packed` returned for a record of these classes.

        Raises:
            DataError: its id came before, or an interrupted run wrote other content for it.
        """
        body, header = record
        if header["id"] in self._earlier:
            self._compare(header["id"], body)
            return
        if header["id"] in self.done_ids:
            raise DataError(f"{self.path}: Expected each id once but {header['id']!r} is there already.", "id")
        self._waiting.append(record)
        self.done_ids.add(header["id"])
        if len(self._waiting) == self._settings.records_per_shard:
            self._write_shard()

    def finish(self) -> None:
        """Write the last, shorter shard and records.arrow, which makes the folder a pack; closes the writer."""
        if self._waiting:
            self._write_shard()
        # The first release wrote a table of all pairs too; it would not know of the new records.
        (self.path / "pairs.arrow").unlink(missing_ok=True)
        self._table.write(self.path)
        self.close()

    def close(self) -> None:
        """Release the pack; records that are not yet in a shard are lost and have to be written again."""
        self._lock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: object, trace: TracebackType | None) -> None:
        if kind is None and not self._lock.closed:
            self.finish()
        self.close()

    def _write_shard(self) -> None:
        self._table.add(self._shards, write_shard(shard_path(self.path, self._shards), self._waiting))
        self._shards += 1
        self._waiting = []

    def _compare(self, record_id: str, body: bytes) -> None:
        if zlib.crc32(body) != self._earlier.pop(record_id):
            raise DataError(
                f"{self.path}: Expected record {record_id!r} as it is in the pack but now it is another: the data or "
                "the software has changed; write to another path, or remove this pack.",
                "version",
            )

    def _open_settings(
        self,
        classes: tuple[str, ...],
        records_per_shard: int | None,
        images: Images | None,
        made_with: Mapping[str, Any] | None,
    ) -> "_Settings":
        """Return the settings of the pack that is there, which have to be the ones asked for; else write them."""
        if (self.path / DESCRIPTION).exists():
            found = _read_settings(self.path)
            check_made_with(self.path, found.made_with, made_with)
            number = records_per_shard or found.records_per_shard
            wanted = _Settings(classes, number, images or found.images, found.made_with)
            if wanted != found:
                raise DataError(
                    f"{self.path}: Expected {wanted} but got {found}; write to another path, or remove this pack."
                )
            return found
        if others := sorted(entry.name for entry in self.path.iterdir() if not entry.name.endswith(".tmp")):
            raise DataError(f"{self.path}: Expected a pack or nothing but got {others[0]!r}; write to another path.")
        number = RECORDS_PER_SHARD if records_per_shard is None else records_per_shard
        settings = _Settings(classes, number, images or "files", _as_json(made_with))
        _write_settings(self.path, settings)
        return settings

    def _resume(self) -> None:
        remove_unfinished(self.path)
        count = len(list(self.path.glob("shard-*.bin")))
        for number in range(count):
            path = shard_path(self.path, number)
            if not path.exists():
                raise DataError(f"{path}: no such shard but later ones; restore it or remove the pack.", "damaged")
            self._take(path, number, read_index(path), last=number == count - 1)

    def _take(self, path: Path, number: int, places: list[Place], last: bool) -> None:
        self.done_ids.update(place.header["id"] for place in places)
        self._earlier.update((place.header["id"], place.crc) for place in places)
        if len(places) == self._settings.records_per_shard:
            self._table.add(number, places)
            self._shards += 1
        elif last:
            # The short shard of a finished pack: its records and those to come are written as one shard.
            self._waiting = [(read_body(path, place.offset, place.length, place.crc), place.header) for place in places]
        else:
            raise DataError(
                f"{path}: Expected {self._settings.records_per_shard} records but got {len(places)}.", "damaged"
            )


@dataclass(frozen=True)
class _Settings:
    """What pack.json says."""

    classes: tuple[str, ...]
    records_per_shard: int
    images: Images
    made_with: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        number = self.records_per_shard
        if type(number) is not int or number < 1 or self.images not in ("files", "pixels"):
            raise DataError(
                f"Expected at least 1 record a shard, and images 'files' or 'pixels', but got {number!r} and "
                f"{self.images!r}."
            )


def _read_settings(path: Path) -> _Settings:
    name = str(path / DESCRIPTION)
    values = parse_object(read_file(path / DESCRIPTION, MAX_DESCRIPTION_BYTES), name)
    check_version(values.pop("version", None), VERSION, name, "write the pack again with this program.")
    if values.pop("checksum", None) != _checksum(values):
        raise DataError(f"{name}: is damaged (checksum); restore it, or write the pack again.", "damaged")
    made_with = values.pop("made_with", None)
    if (
        values.keys() != {"classes", "records_per_shard", "images"}
        or not isinstance(values["classes"], list)
        or not isinstance(made_with, dict | None)
    ):
        raise DataError(
            f"{name}: Expected a list of classes, records_per_shard and images but got {values!r:.200}; "
            "write the pack again with this program.",
            "damaged",
        )
    classes = check_classes(values["classes"], f"{name}: ")
    try:
        return _Settings(classes, values["records_per_shard"], values["images"], made_with)
    except DataError as error:
        raise DataError(f"{name}: {error}", "damaged") from None


def _write_settings(path: Path, settings: _Settings) -> None:
    values = {**asdict(settings), "classes": list(settings.classes)}
    if settings.made_with is None:
        del values["made_with"]
    content = {"version": VERSION, **values, "checksum": _checksum(values)}
    write_atomically(path / DESCRIPTION, (json.dumps(content, ensure_ascii=False, indent=1) + "\n").encode())


def check_made_with(path: Path, found: Mapping[str, Any] | None, wanted: Mapping[str, Any] | None) -> None:
    """Raise a DataError unless the pack at `path` was made with the wanted settings."""
    if found != (made := _as_json(wanted)):
        raise DataError(
            f"{path}: Expected a pack that was made with these settings but {first_difference(found, made)}; use those "
            "settings, write to another path, or remove this pack.",
            "version",
        )


def _as_json(settings: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Return settings as they are read again: tuples as lists."""
    return None if settings is None else dict(json.loads(json.dumps(settings)))


def first_difference(then: Any, now: Any, where: str = "") -> str:
    """Name the first value in which nested settings differ.

    >>> first_difference({"judge": {"name": "iou"}}, {"judge": {"name": "dice"}})
    "judge.name was 'iou' and is 'dice'"
    """
    if isinstance(then, dict) and isinstance(now, dict):
        for key in [*then, *(key for key in now if key not in then)]:
            if then.get(key) != now.get(key):
                return first_difference(then.get(key), now.get(key), f"{where}.{key}" if where else key)
    return f"{where or 'they'} was {then!r:.200} and is {now!r:.200}"


def _checksum(values: dict[str, Any]) -> str:
    return f"{zlib.crc32(json.dumps(values, sort_keys=True).encode()):08x}"


def _lock(path: Path) -> Any:
    """Hold the pack for this process; the system releases it when the process ends, however it ends."""
    file = path.open("rb")
    try:
        import fcntl
    except ImportError:  # Windows has no such lock; there, two writers are not noticed.
        return file
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        raise DataError(f"{path.parent}: another process is writing this pack; wait for it to end.") from None
    return file

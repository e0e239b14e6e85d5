"""Writing a pack; an interrupted one continues where it stopped."""

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from segdpo.data.formats.pack import (
    DESCRIPTION,
    Images,
    PackIndex,
    PackSettings,
    Place,
    encode_record,
    read_body,
    read_index,
    read_settings,
    shard_path,
    write_settings,
    write_shard,
)
from segdpo.data.images import ImageFile
from segdpo.data.record import Record, check_classes, check_record
from segdpo.files import DataError

RECORDS_PER_SHARD = 64


class PackWriter:
    """Writes records to a pack; opened on a pack that is already there, it goes on with it.

    A shard is written when `records_per_shard` records are there (None: 64, or as the pack has it), so a killed
    process loses at most those not yet in a shard: pass over `done_ids`, write the rest in the same order, and the
    pack ends with the bytes that an undisturbed run gives. One writer a pack at a time.

    `images`: "files" keeps an image's file byte for byte where `write` is given one; "pixels" keeps the pixels of
    all images, which read several times faster than PNG and take more room than JPEG (None: "files", or as the pack
    has it).
    """

    def __init__(
        self,
        path: str | Path,
        classes: Sequence[str],
        records_per_shard: int | None = None,
        images: Images | None = None,
    ):
        self.path = Path(path)
        self.path.mkdir(parents=True, exist_ok=True)
        self._settings = self._describe(check_classes(tuple(classes)), records_per_shard, images)
        self.classes = self._settings.classes
        self._lock = _lock(self.path / DESCRIPTION)
        self.done_ids: set[str] = set()
        self._index = PackIndex()
        self._bodies: list[bytes] = []
        self._headers: list[dict[str, Any]] = []
        self._shards = 0
        self._resume()

    def write(self, record: Record, image_file: ImageFile | None = None) -> None:
        """Append a sound record; `image_file` is the file that its image was read from."""
        if record.id in self.done_ids:
            raise DataError(f"{self.path}: Expected each id once but {record.id!r} is there already.", "id")
        file = image_file if self._settings.images == "files" else None
        body, header = encode_record(check_record(record, self.classes), file)
        self._bodies.append(body)
        self._headers.append(header)
        self.done_ids.add(record.id)
        if len(self._bodies) == self._settings.records_per_shard:
            self._flush()

    def finish(self) -> None:
        """Write the last, shorter shard and the tables that make the directory a pack; the writer is closed."""
        if self._bodies:
            self._flush()
        self._index.write(self.path)
        self.close()

    def close(self) -> None:
        """Let go of the pack; what is not yet in a shard is lost and has to be written again."""
        self._lock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: object, trace: TracebackType | None) -> None:
        if kind is None and not self._lock.closed:
            self.finish()
        self.close()

    def _flush(self) -> None:
        places = write_shard(shard_path(self.path, self._shards), self._bodies, self._headers)
        self._index.add(self._shards, places)
        self._shards += 1
        self._bodies, self._headers = [], []

    def _describe(self, classes: tuple[str, ...], records_per_shard: int | None, images: Images | None) -> PackSettings:
        if (self.path / DESCRIPTION).exists():
            found = read_settings(self.path)
            wanted = PackSettings(classes, records_per_shard or found.records_per_shard, images or found.images)
            if wanted != found:
                raise DataError(
                    f"{self.path}: Expected {wanted} but got {found}; write to another path, or remove this pack."
                )
            return found
        if strange := sorted(entry.name for entry in self.path.iterdir() if entry.name != DESCRIPTION + ".tmp"):
            raise DataError(f"{self.path}: Expected a pack or nothing but got {strange[0]!r}; write to another path.")
        settings = PackSettings(
            classes, RECORDS_PER_SHARD if records_per_shard is None else records_per_shard, images or "files"
        )
        write_settings(self.path, settings)
        return settings

    def _resume(self) -> None:
        for stale in self.path.glob("*.tmp"):
            stale.unlink()
        count = len(list(self.path.glob("shard-*.bin")))
        for number in range(count):
            path = shard_path(self.path, number)
            if not path.exists():
                raise DataError(f"{path}: no such shard but later ones; restore it or remove the pack.", "damaged")
            self._take(path, number, read_index(path), last=number == count - 1)

    def _take(self, path: Path, number: int, places: list[Place], last: bool) -> None:
        self.done_ids.update(place.header["id"] for place in places)
        if len(places) == self._settings.records_per_shard:
            self._index.add(number, places)
            self._shards += 1
        elif last:
            # The short shard of a finished pack: its records join those to come, as if it had not been finished.
            self._bodies = [read_body(path, place.offset, place.length, place.crc) for place in places]
            self._headers = [place.header for place in places]
        else:
            raise DataError(
                f"{path}: Expected {self._settings.records_per_shard} records but got {len(places)}.", "damaged"
            )


def _lock(path: Path) -> Any:
    """Hold the pack for this process; the system lets go when the process ends, however it ends."""
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

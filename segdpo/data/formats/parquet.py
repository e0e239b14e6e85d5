"""The files of Hugging Face's data sets as tables of rows: parquet, and what `Dataset.save_to_disk` writes."""

import contextlib
import json
import re
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from segdpo.files import MAX_FILE_BYTES, DataError, exists, open_file

Row = dict[str, Any]
PICTURE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
SCHEMA = pa.schema(
    [
        *((name, PICTURE) for name in ("image", "chosen", "rejected")),
        *((name, pa.string()) for name in ("id", "chosen_name", "rejected_name")),
        ("weight", pa.float64()),
        ("gold", PICTURE),
        *((name, pa.string()) for name in ("group", "split")),
        ("others", pa.list_(PICTURE)),
        *((name, pa.list_(pa.string())) for name in ("mask_names", "ranking")),
        ("meta", pa.string()),
    ]
)
# The names that `datasets` gives to splits, and ours.
SPLITS = {"train": "train", "validation": "val", "test": "test"}
RECORDS_IN_A_GROUP = 32
DISK, DISKS = "state.json", "dataset_dict.json"


@dataclass(frozen=True)
class File:
    """A file as it was when it was opened: what is read is kept, but not of a file that was written again since."""

    path: Path
    size: int
    changed: int

    @classmethod
    def at(cls, path: Path) -> "File":
        """Return the file at a path."""
        with _as_data_error(path):
            found = path.stat()
        return cls(path, found.st_size, found.st_mtime_ns)


@dataclass(frozen=True, eq=False)
class Table:
    """The rows of one file; `names`: our names of columns → those of the file."""

    file: File
    names: Mapping[str, str]

    @property
    def path(self) -> Path:
        """The file's path."""
        return self.file.path

    def column(self, name: str) -> list[Any]:
        """Return a column of text, numbers or lists; where there is none, None a row."""
        with _as_data_error(self.path):
            return [value for part in self._parts(name) for value in part.to_pylist()] or [None] * self.length

    def has(self, name: str) -> list[bool]:
        """Return in which rows a column of images holds one."""
        return [value for part in self._parts(name) for value in part.is_valid().to_pylist()] or [False] * self.length

    def _parts(self, name: str) -> Iterator[pa.ChunkedArray]:
        own = self.names[name]
        for group in range(len(_lengths(self.file))) if own in self.present else ():
            yield _read(self.file, group, (own,)).column(0)

    def row(self, number: int) -> Row:
        """Return a row by our names."""
        starts = list(accumulate(_lengths(self.file), initial=0))
        group = bisect_right(starts, number) - 1
        wanted = {name: own for name, own in self.names.items() if own in self.present}
        table = _read(self.file, group, tuple(sorted(set(wanted.values()))))
        with _as_data_error(self.path):  # validation sees no text in an image's cell that is not UTF-8
            row = table.slice(number - starts[group], 1).to_pylist()[0]
        return {name: row[own] for name, own in wanted.items()}

    @property
    def length(self) -> int:
        """Number of rows."""
        return sum(_lengths(self.file))

    @property
    def present(self) -> frozenset[str]:
        """Names of the file's columns."""
        return frozenset(_schema(self.file).names)


def files_of(path: Path) -> list[tuple[File, str]]:
    """Return the files of a data set, train first, and the split of each; "": its name says none."""
    if path.is_file():
        return [(File.at(path), "")]
    if exists(path / DISKS) or exists(path / DISK):
        files = sorted(path.glob("*.arrow")) or sorted(path.glob("*/*.arrow"))
    else:
        files = sorted(path.rglob("*.parquet"))
    if not files:
        raise DataError(f"{path}: Expected .parquet files, or what Dataset.save_to_disk wrote, but found neither.")
    found = [(File.at(file), _split_of(file.relative_to(path))) for file in files]
    order = list(SPLITS.values())
    return sorted(found, key=lambda one: order.index(one[1]) if one[1] else len(order))


def _split_of(path: Path) -> str:
    """Return the split that a path names as a word, as `datasets` finds it: data/validation-00000-of-00001.parquet."""
    words = re.split(r"[^a-z0-9]+", path.as_posix().lower())
    return next((split for name, split in SPLITS.items() if name in words), "")


def classes_in(tables: Sequence[Table]) -> list[str]:
    """Return the names of the classes in the metadata of the first file."""
    metadata = _schema(tables[0].file).metadata or {}
    try:
        classes = json.loads(metadata.get(b"segdpo", b"null"))["classes"]
    except (ValueError, TypeError, KeyError, RecursionError):
        classes = None
    if not isinstance(classes, list):
        raise DataError(
            f"{tables[0].path}: Expected the names of the classes but the file does not have them; set "
            "data.classes=[background,…], in the order of their ids.",
            "class",
        )
    return classes


def _is_arrow(path: Path) -> bool:
    return path.suffix == ".arrow"


# Opened again in every process, since what pyarrow opens cannot be sent to the workers of a loader.
@lru_cache(maxsize=64)
def _schema(file: File) -> pa.Schema:
    with _as_data_error(file.path):
        open_file(file.path).close()  # pyarrow waits for a FIFO's writer
        return _stream(file).schema if _is_arrow(file.path) else pq.read_schema(file.path)


@lru_cache(maxsize=64)
def _lengths(file: File) -> tuple[int, ...]:
    """Return how many rows each group of a file has."""
    with _as_data_error(file.path):
        if _is_arrow(file.path):
            return (_stream(file).num_rows,)
        metadata = pq.read_metadata(file.path)
        groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
        largest = max((group.total_byte_size for group in groups), default=0)
        if largest > MAX_FILE_BYTES:
            raise DataError(
                f"{file.path}: Expected row groups of at most {MAX_FILE_BYTES} bytes but got {largest}.", "size"
            )
        return tuple(group.num_rows for group in groups)


@lru_cache(maxsize=8)
def _read(file: File, group: int, columns: tuple[str, ...]) -> pa.Table:
    with _as_data_error(file.path):
        if _is_arrow(file.path):
            return _stream(file).select(list(columns))
        table = pq.ParquetFile(file.path).read_row_group(group, columns=list(columns))
        table.validate(full=True)
        if table.num_rows != (expected := _lengths(file)[group]):
            raise ValueError(f"a group of {expected} rows has {table.num_rows}")
        return table.select(list(columns))


@lru_cache(maxsize=64)
def _stream(file: File) -> pa.Table:
    """Return the table of a file of `save_to_disk`; its bytes stay on the disk until they are used."""
    table = pa.ipc.open_stream(pa.memory_map(str(file.path))).read_all()
    table.validate(full=True)
    return table


@contextlib.contextmanager
def _as_data_error(path: Path) -> Iterator[None]:
    try:
        yield
    except DataError:
        raise
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError, MemoryError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise DataError(f"{path}: Expected a data set of Hugging Face but it cannot be read ({reason}).") from None


class TableWriter:
    """Writes the rows of one parquet file; there is no file until there are rows."""

    def __init__(self, path: Path, classes: Sequence[str]) -> None:
        self._path, self._records, self._rows = path, 0, list[Row]()
        self._writer: pq.ParquetWriter | None = None
        features = {field.name: _feature(field.type) for field in SCHEMA}
        metadata = {"huggingface": {"info": {"features": features}}, "segdpo": {"classes": list(classes)}}
        self._schema = SCHEMA.with_metadata({key: json.dumps(value) for key, value in metadata.items()})

    def add(self, rows: Sequence[Row]) -> None:
        """Add the rows of a record."""
        self._rows += rows
        self._records += 1
        if self._records % RECORDS_IN_A_GROUP == 0:
            self._flush()

    def close(self) -> None:
        """Write what is left."""
        self._flush()
        if self._writer is not None:
            self._writer.close()

    def _flush(self) -> None:
        if not self._rows:
            return
        if self._writer is None:
            # The image of several rows is stored once.
            self._writer = pq.ParquetWriter(self._path, self._schema, dictionary_pagesize_limit=2**30)
        self._writer.write_table(pa.Table.from_pylist(self._rows, self._schema))
        self._rows = []


def _feature(kind: pa.DataType) -> Any:
    """Return what `datasets` calls a type."""
    if pa.types.is_list(kind):
        return [_feature(kind.value_type)]
    return (
        {"_type": "Image"} if kind == PICTURE else {"dtype": str(kind).replace("double", "float64"), "_type": "Value"}
    )

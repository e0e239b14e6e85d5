"""Arrow tables on disk, opened by mmap, and the table of all pairs of a pack."""

import struct
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import pyarrow as pa
from jaxtyping import Float32, Int64, UInt8, UInt32

from segdpo.data.record import Pair
from segdpo.files import DataError, exists, open_file, write_atomically

MAGIC = b"ARROW1\0\0"
MEND = "write the pack again with scripts/pack.py."


def write_table(path: Path, table: pa.Table, version: int) -> None:
    """Write a table as one record batch, with its version and a checksum of its columns in the schema's metadata."""
    batch = table.combine_chunks().to_batches() or [pa.RecordBatch.from_pylist([], table.schema)]
    metadata = {"version": str(version), "checksum": _checksum(batch[0])}
    marked = batch[0].replace_schema_metadata(metadata)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, marked.schema) as writer:
        writer.write_batch(marked)
    write_atomically(path, memoryview(sink.getvalue()))


def open_table(path: Path, schema: pa.Schema, version: int) -> pa.RecordBatch:
    """Return the table's one record batch as views of the file; a DataError if it is not what was written."""
    if not exists(path):
        raise DataError(f"{path}: no such file; {MEND}")
    # pyarrow waits for a FIFO's writer, and maps a device.
    open_file(path).close()
    try:
        with pa.memory_map(str(path)) as source:
            batch = _read_batch(source, schema)
        found = dict(batch.schema.metadata or {})
        batch.validate(full=True)
        filled = not any(column.null_count for column in batch.columns)
        whole = filled and found.get(b"checksum", b"").decode() == _checksum(batch)
    except (pa.ArrowException, OSError, ValueError, IndexError, EOFError, TypeError, struct.error) as error:
        raise DataError(f"{path}: the table is damaged ({error}); {MEND}", "damaged") from None
    if found.get(b"version") not in (None, str(version).encode()):
        raise DataError(f"{path}: Expected version {version} but got {found[b'version']!r}; {MEND}", "version")
    if not whole:
        raise DataError(f"{path}: the table is damaged (checksum or columns differ); {MEND}", "damaged")
    return batch


def _read_batch(source: pa.NativeFile, schema: pa.Schema) -> pa.RecordBatch:
    """Return the first record batch, message by message: what is compressed is refused before it is expanded."""
    if source.read(len(MAGIC)) != MAGIC:
        raise ValueError("it is no Arrow file")
    found = pa.ipc.read_schema(pa.ipc.read_message(source))
    message = pa.ipc.read_message(source)
    if not found.equals(schema) or message.type != "record batch":
        raise ValueError(f"Expected the columns {schema.names} but got {found.names}")
    if _is_compressed(message.metadata.to_pybytes()):
        raise ValueError("Expected a table without compression")
    return pa.ipc.read_record_batch(message, found)


def _is_compressed(metadata: bytes) -> bool:
    """Tell whether field 3, compression, is there in the table that is field 2 of a flatbuffer Message.

    pyarrow does not say, and expands what a table of a few kilobytes claims to hold.
    """
    message = struct.unpack_from("<I", metadata, 0)[0]
    place = message + _field(metadata, message, 2)
    return bool(_field(metadata, place + struct.unpack_from("<I", metadata, place)[0], 3))


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


VERSION = 1
SCHEMA = pa.schema(
    [("record", pa.uint32()), ("chosen", pa.uint8()), ("rejected", pa.uint8()), ("weight", pa.float32())]
)


@dataclass(frozen=True, eq=False)
class PairTable:
    """Pair p prefers mask `chosen[p]` to mask `rejected[p]` of record `record[p]`; sorted by record.

    `offsets` [records + 1]: record r has the pairs offsets[r] … offsets[r + 1] − 1. The order of an epoch is a
    permutation of `range(len(table))`, or of the records with their slices; no list of pairs is needed.

    >>> table = PairTable.from_records([[Pair(0, 1)], [], [Pair(2, 0, 0.5), Pair(1, 0)]])
    >>> table.offsets.tolist(), table.chosen[table.slice_of(2)].tolist()
    ([0, 1, 1, 3], [2, 1])
    """

    record: UInt32[np.ndarray, "pairs"]
    chosen: UInt8[np.ndarray, "pairs"]
    rejected: UInt8[np.ndarray, "pairs"]
    weight: Float32[np.ndarray, "pairs"]
    offsets: Int64[np.ndarray, "records_plus_one"]

    @classmethod
    def from_columns(cls, columns: Sequence[np.ndarray], records: int) -> Self:
        """Return the table of the columns record (sorted), chosen, rejected and weight, of `records` records in all."""
        kinds = (np.uint32, np.uint8, np.uint8, np.float32)
        record, chosen, rejected, weight = (np.asarray(c, kind) for c, kind in zip(columns, kinds, strict=True))
        # The sorted column is searched, not counted: that needs no second array of a million numbers.
        offsets = np.searchsorted(record, np.arange(records + 1, dtype=np.uint32)).astype(np.int64)
        if (record[1:] < record[:-1]).any() or offsets[-1] != len(record):
            raise DataError(
                f"Expected pairs sorted by record, each below {records}; sort the columns first.", "preference"
            )
        if (chosen == rejected).any():
            first = int(np.argmax(chosen == rejected))
            raise DataError(
                f"Expected chosen and rejected to differ but pair {first} has both {chosen[first]}.", "preference"
            )
        if not (np.isfinite(weight) & (weight >= 0)).all():
            first = int(np.argmin(np.isfinite(weight) & (weight >= 0)))
            raise DataError(
                f"Expected finite weights of at least 0 but pair {first} has {weight[first]}; correct it.", "preference"
            )
        return cls(record, chosen, rejected, weight, offsets)

    @classmethod
    def from_records(cls, pairs: Iterable[Iterable[Pair]]) -> Self:
        """Return the table of each record's pairs, in order."""
        records, rows = 0, []
        for records, group in enumerate(pairs, 1):
            rows += [(records - 1, pair.chosen, pair.rejected, pair.weight) for pair in group]
        return cls.from_columns([*np.array(rows, np.float64).reshape(-1, 4).T], records)

    @classmethod
    def open(cls, path: str | Path, records: int) -> Self:
        """Return the table of a file that `write` made, its columns views of the mapped file."""
        batch = open_table(Path(path), SCHEMA, VERSION)
        try:
            return cls.from_columns([column.to_numpy() for column in batch.columns], records)
        except DataError as error:
            raise DataError(f"{path}: {error}", error.kind) from None

    def write(self, path: str | Path) -> None:
        """Write the table as an Arrow IPC file, which pyarrow, pandas and polars read too."""
        columns = [pa.array(column) for column in (self.record, self.chosen, self.rejected, self.weight)]
        write_table(Path(path), pa.Table.from_arrays(columns, schema=SCHEMA), VERSION)

    def __len__(self) -> int:
        return len(self.record)

    def slice_of(self, record: int) -> slice:
        """Return where the pairs of a record are."""
        return slice(int(self.offsets[record]), int(self.offsets[record + 1]))

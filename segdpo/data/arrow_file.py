"""Tables on disk as Arrow IPC files: opened by mmap, read without a copy, and checked against damage."""

import os
import zlib
from pathlib import Path

import pyarrow as pa

from segdpo.data.errors import DataError

MEND = "write the pack again with scripts/pack.py."


def write_table(path: Path, table: pa.Table, version: int) -> None:
    """Write a table as one record batch, with its version and a checksum of its columns in the schema's metadata."""
    batch = table.combine_chunks().to_batches() or [pa.RecordBatch.from_pylist([], table.schema)]
    metadata = {"version": str(version), "checksum": _checksum(batch[0])}
    with atomic(path) as temporary, pa.OSFile(str(temporary), "wb") as sink:
        marked = batch[0].replace_schema_metadata(metadata)
        with pa.ipc.new_file(sink, marked.schema) as writer:
            writer.write_batch(marked)


def open_table(path: Path, schema: pa.Schema, version: int) -> pa.RecordBatch:
    """Return the table's one record batch as views of the file; a DataError if it is not what was written."""
    if not path.exists():
        raise DataError(f"{path}: no such file; {MEND}")
    try:
        with pa.memory_map(str(path)) as source:
            reader = pa.ipc.open_file(source)
            batch = reader.get_batch(0)
            found = dict(batch.schema.metadata or {})
            batch.validate(full=True)
            same = batch.schema.equals(schema) and reader.num_record_batches == 1
            whole = same and found.get(b"checksum", b"").decode() == _checksum(batch)
    except (pa.ArrowException, OSError, ValueError, IndexError) as error:
        raise DataError(f"{path}: the table is damaged ({error}); {MEND}", "damaged") from None
    if found.get(b"version") not in (None, str(version).encode()):
        raise DataError(f"{path}: Expected version {version} but got {found[b'version']!r}; {MEND}", "version")
    if not whole:
        raise DataError(f"{path}: the table is damaged (checksum or columns differ); {MEND}", "damaged")
    return batch


class atomic:  # noqa: N801 (reads as a verb: with atomic(path) as temporary)
    """A temporary path beside `path` that takes its place, once it lies safely on the disk, if nothing failed."""

    def __init__(self, path: Path):
        self.path, self.temporary = path, path.with_name(path.name + ".tmp")

    def __enter__(self) -> Path:
        return self.temporary

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is not None:
            self.temporary.unlink(missing_ok=True)
            return
        sync(self.temporary)
        os.replace(self.temporary, self.path)
        sync(self.path.parent)


def sync(path: Path) -> None:
    """Wait until a file, or the names in a directory, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _checksum(batch: pa.RecordBatch) -> str:
    value = zlib.crc32(str((batch.num_rows, batch.schema.names)).encode())
    for column in batch.columns:
        for buffer in column.buffers():
            value = zlib.crc32(buffer or b"", value)
    return f"{value:08x}"

"""All pairs of a data set as four columns, opened by mmap: a million pairs cost no Python object each."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import pyarrow as pa
from jaxtyping import Float32, Int64, UInt8, UInt32

from segdpo.data.arrow_file import open_table, write_table
from segdpo.data.errors import DataError
from segdpo.pairs.record import Pair

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

"""The index of a pack: one row a record, where its bytes are and what splitting asks for; opened by mmap."""

from array import array
from pathlib import Path

import numpy as np
import pyarrow as pa

from segdpo.data.arrow_file import write_table
from segdpo.data.pack_shard import Place
from segdpo.data.pair_table import SCHEMA as PAIR_SCHEMA
from segdpo.data.pair_table import PairTable

VERSION = 1
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
        write_table(path / RECORDS, pa.Table.from_arrays(arrays, schema=SCHEMA), VERSION)

"""A data set as a pack: one read and two decodings a record, however many masks it has; made for training.

    pack.json          classes, version, records a shard
    records.arrow      where each record is, its checksum, id, group and split
    pairs.arrow        all pairs (pair_table.py)
    shard-00000.bin …  the records (pack_shard.py, pack_record.py)

Each record has a checksum: damage gives an error or the right record, never a wrong one.
"""

from functools import cached_property
from pathlib import Path

import numpy as np

from segdpo.data.arrow_file import open_table
from segdpo.data.errors import DataError
from segdpo.data.image_files import ImageFile
from segdpo.data.names import check_id, check_split
from segdpo.data.pack_index import PAIRS, PLACE, RECORDS, SCHEMA, VERSION
from segdpo.data.pack_record import decode_image_file, decode_record
from segdpo.data.pack_settings import read_settings
from segdpo.data.pack_shard import read_body
from segdpo.data.pack_writer import PackWriter, shard_path
from segdpo.data.pair_table import PairTable
from segdpo.data.record_source import RecordInfo
from segdpo.pairs.record import Record

__all__ = ["PackDataset", "PackWriter"]


class PackDataset:
    """The records of a finished pack; `pack[i]` reads record i.

    `channels`: 3 replicates grey images to RGB, 1 makes grey, None leaves images as stored.
    """

    def __init__(self, path: str | Path, channels: int | None = 3):
        self.path, self.channels = Path(path), channels
        self.classes = read_settings(self.path).classes
        if not (self.path / RECORDS).exists():
            raise DataError(f"{self.path}: the pack is not finished; run the command that wrote it again, it goes on.")
        self._records = open_table(self.path / RECORDS, SCHEMA, VERSION)
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

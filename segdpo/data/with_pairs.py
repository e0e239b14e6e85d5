"""Records with the pairs of a table: judged anew without being written anew."""

from dataclasses import dataclass, replace

from segdpo.data.errors import DataError
from segdpo.data.pair_table import PairTable
from segdpo.data.record_source import RecordInfo, RecordSource, info_of
from segdpo.pairs.record import Pair, Record


@dataclass(frozen=True, eq=False)
class WithPairs:
    """The records of `source`, each with its pairs in `table` instead of its own pairs and ranking."""

    source: RecordSource
    table: PairTable

    def __post_init__(self) -> None:
        """Refuse a table of other records."""
        if len(self.table.offsets) - 1 != len(self.source):
            raise DataError(
                f"Expected a table of {len(self.source)} records but got one of {len(self.table.offsets) - 1}; "
                "open the table that was made for these records.",
                "preference",
            )

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes of the source."""
        return self.source.classes

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Record:
        rows, table = self.table.slice_of(index), self.table
        columns = (column[rows].tolist() for column in (table.chosen, table.rejected, table.weight))
        return replace(self.source[index], pairs=tuple(map(Pair, *columns)), ranking=())

    def describe(self, index: int) -> RecordInfo:
        """Return what the source says of a record, and how many pairs the table has of it."""
        rows = self.table.slice_of(index)
        return replace(info_of(self.source, index), pairs=rows.stop - rows.start, ranking=0)

"""Some records of a data set, as a data set."""

from collections.abc import Sequence
from dataclasses import dataclass

from segdpo.data.record_source import RecordInfo, RecordSource, info_of
from segdpo.pairs.record import Record


@dataclass(frozen=True, eq=False)
class Subset:
    """Records number `numbers` of `source`, in that order."""

    source: RecordSource
    numbers: Sequence[int]

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes of the source."""
        return self.source.classes

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> Record:
        return self.source[int(self.numbers[index])]

    def describe(self, index: int) -> RecordInfo:
        """Return what the source says of the record."""
        return info_of(self.source, int(self.numbers[index]))

"""What a data set is: anything with a length that gives a Record for a number, and knows its classes' names."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from segdpo.pairs.record import Record


@dataclass(frozen=True)
class RecordInfo:
    """What splitting needs to know of a record: its id, what it must stay with, and the split it came with, if any.

    `pairs` is how many pairs it has, `ranking` how long its ranking is; None = not known without decoding it. A source
    that says so saves every training run from decoding all of its images once.
    """

    id: str
    group: str = ""
    split: str = ""
    pairs: int | None = None
    ranking: int | None = None


class RecordSource(Protocol):
    """A data set: `source[i]` for i in 0 … len − 1 decodes one record; the same i always gives the same record.

    `classes` names the classes in the order of their ids: ("background", "object") for binary masks.
    """

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes; a mask's pixels are below their number, or 255."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Record: ...


@runtime_checkable
class DescribesRecords(Protocol):
    """A source that can say what a record is without decoding its pixels; optional, see `info_of`."""

    def describe(self, index: int, /) -> RecordInfo:
        """Return id, group and split of record `index`."""
        ...


def info_of(source: RecordSource, index: int, *, preferences: bool = False) -> RecordInfo:
    """Return what a record is; decodes it only if the source cannot `describe` it.

    With `preferences`, the numbers of pairs and of ranked masks are never None.
    """
    if isinstance(source, DescribesRecords):
        info = source.describe(index)
        if not preferences or (info.pairs is not None and info.ranking is not None):
            return info
    record = source[index]
    return RecordInfo(record.id, record.group, record.split, len(record.pairs), len(record.ranking))

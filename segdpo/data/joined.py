"""Several data sets, one after the other, as one."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from segdpo.data.record_source import RecordInfo, RecordSource, info_of
from segdpo.pairs.record import Record


@dataclass(frozen=True, eq=False)
class Joined:
    """The records of the first of `parts`, then those of the second, and so on; all have the same classes."""

    parts: Sequence[RecordSource]

    def __post_init__(self) -> None:
        """Refuse parts of different classes."""
        names = {part.classes for part in self.parts}
        if len(names) != 1:
            raise ValueError(f"Expected data sets of the same classes to join but got {sorted(names) or 'none'}.")

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, the same in all parts."""
        return self.parts[0].classes

    def __len__(self) -> int:
        return sum(len(part) for part in self.parts)

    def __getitem__(self, index: int) -> Record:
        part, number = self._place(index)
        return part[number]

    def describe(self, index: int) -> RecordInfo:
        """Return what its part says of the record."""
        return info_of(*self._place(index))

    def _place(self, index: int) -> tuple[RecordSource, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"Expected a record from 0 to {len(self) - 1} but got {index}.")
        ends = list(accumulate(len(part) for part in self.parts))
        number = bisect_right(ends, index)
        return self.parts[number], index - (ends[number - 1] if number else 0)

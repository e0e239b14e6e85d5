"""Data sets made of other data sets (a subset, several joined), and data sets with image files."""

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Protocol, runtime_checkable

from segdpo.data.images import ImageFile
from segdpo.data.record import Record, RecordInfo, RecordSource, info_of

# What wraps a loop to show how far it is: `rich.progress.track`, `tqdm`, or `iter` for nothing.
Progress = Callable[[Iterable[Any]], Iterable[Any]]


@runtime_checkable
class FileSource(RecordSource, Protocol):
    """A data set that can hand out an image's file as it is, so that copying it loses nothing."""

    def image_file(self, index: int, /) -> ImageFile:
        """Return the file of the image of record `index`."""
        ...


def records_with_files(
    source: RecordSource | Iterable[Record], progress: Progress = iter
) -> Iterator[tuple[Record, ImageFile | None]]:
    """Yield each record and its image's file, None where the source has no files."""
    if isinstance(source, Iterable) and not isinstance(source, FileSource):
        yield from ((record, None) for record in progress(source))
    else:
        for index in progress(range(len(source))):
            yield source[index], file_of(source, index)


def file_of(source: RecordSource, index: int) -> ImageFile | None:
    """Return the file of the image of record `index`, None if the source has no files."""
    return source.image_file(index) if isinstance(source, FileSource) else None


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

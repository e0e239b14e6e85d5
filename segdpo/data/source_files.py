"""Going through a data set with the files of its images, so that what copies it loses nothing."""

from collections.abc import Iterable, Iterator
from typing import Protocol, runtime_checkable

from segdpo.data.image_files import ImageFile
from segdpo.data.record_source import RecordSource
from segdpo.pairs.record import Record


@runtime_checkable
class FileSource(RecordSource, Protocol):
    """A data set that can hand out an image's file as it is, so that copying it loses nothing."""

    def image_file(self, index: int, /) -> ImageFile:
        """Return the file of the image of record `index`."""
        ...


def records_with_files(source: RecordSource | Iterable[Record]) -> Iterator[tuple[Record, ImageFile | None]]:
    """Yield each record and its image's file, None where the source has no files."""
    if isinstance(source, FileSource):
        yield from ((source[index], source.image_file(index)) for index in range(len(source)))
    elif isinstance(source, Iterable):
        yield from ((record, None) for record in source)
    else:
        yield from ((source[index], None) for index in range(len(source)))

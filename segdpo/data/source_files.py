"""Going through a data set with the files of its images, so that what copies it loses nothing."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol, runtime_checkable

from segdpo.data.image_files import ImageFile
from segdpo.data.record_source import RecordSource
from segdpo.pairs.record import Record

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

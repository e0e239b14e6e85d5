"""Going through a data set with the files of its images, so that what copies it loses nothing."""

from collections.abc import Iterable, Iterator

from segdpo.data.image_files import HasImageFiles, ImageFile
from segdpo.data.record_source import RecordSource
from segdpo.pairs.record import Record


def records_with_files(source: RecordSource | Iterable[Record]) -> Iterator[tuple[Record, ImageFile | None]]:
    """Yield each record and its image's file, None where the source has no files."""
    if isinstance(source, Iterable) and not isinstance(source, HasImageFiles):
        yield from ((record, None) for record in source)
        return
    for index in range(len(source)):
        yield source[index], source.image_file(index) if isinstance(source, HasImageFiles) else None

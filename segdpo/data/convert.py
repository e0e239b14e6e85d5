"""From one form of a data set to another, losing nothing: image files byte for byte, masks pixel for pixel."""

from pathlib import Path

from segdpo.data.errors import DataError
from segdpo.data.pack import PackWriter
from segdpo.data.pack_settings import Images
from segdpo.data.record_source import RecordSource, info_of
from segdpo.data.source_files import Progress, file_of


def write_pack(
    path: str | Path,
    source: RecordSource,
    records_per_shard: int | None = None,
    images: Images | None = None,
    progress: Progress = iter,
) -> None:
    """Write a data set as a pack; an unfinished pack of the same data set is gone on with."""
    with PackWriter(path, source.classes, records_per_shard, images) as writer:
        ids = [info_of(source, index).id for index in range(len(source))]
        if strange := sorted(writer.done_ids.difference(ids)):
            writer.close()
            raise DataError(
                f"{path}: Expected an unfinished pack of the same data set but it has {strange[0]!r}; "
                "remove it or write to another path."
            )
        for index in progress(range(len(source))):
            if ids[index] not in writer.done_ids:
                writer.write(source[index], file_of(source, index))

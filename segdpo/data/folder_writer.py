"""Writing a data set as a folder: all of it is there, or none of it."""

import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import numpy as np

from segdpo.data.errors import DataError
from segdpo.data.files import path_inside
from segdpo.data.folder_description import write_description
from segdpo.data.image_files import ImageFile, encode_image, encode_mask
from segdpo.data.manifest import Entry, NamedPair, check_entry
from segdpo.data.names import check_classes
from segdpo.data.record_check import check_record
from segdpo.data.record_source import RecordSource
from segdpo.data.source_files import Progress, records_with_files
from segdpo.pairs.record import Mask, Record

ManifestKind = Literal["jsonl", "csv"]


def write_folder(
    root: str | Path,
    records: RecordSource | Iterable[Record],
    classes: Iterable[str],
    manifest: ManifestKind = "jsonl",
    progress: Progress = iter,
) -> None:
    """Write records as a folder that FolderDataset reads; `root` must not be there yet, or be empty.

    Images keep their files byte for byte where the source has files (`image_file`), else they become PNG. The
    folder is made beside `root` and takes its name at the end, so a killed run leaves no half of a data set.
    """
    root, names = Path(root), check_classes(tuple(classes))
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise DataError(f"{root}: Expected nothing there, or an empty folder; remove it or write to another path.")
    partial = root.absolute().with_name(f".{root.absolute().name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    (partial / "images").mkdir(parents=True)
    entries = [_write_record(partial, record, file, names) for record, file in records_with_files(records, progress)]
    _check_ids(entries)
    write_description(partial, names, entries, manifest)
    os.replace(partial, root)


def entry_of(record: Record, suffix: str) -> Entry:
    """Return the manifest's entry of a record whose image's file has this suffix."""
    names = record.mask_names
    return Entry(
        id=record.id,
        suffix=suffix,
        masks=names,
        gold=record.gold is not None,
        pairs=tuple(NamedPair(names[p.chosen], names[p.rejected], float(p.weight)) for p in record.pairs),
        ranking=tuple(names[k] for k in record.ranking),
        group=record.group,
        split=record.split,
        meta=dict(record.meta),
    )


def _write_record(root: Path, record: Record, file: ImageFile | None, classes: tuple[str, ...]) -> Entry:
    check_record(record, classes)
    file = file or encode_image(record.image)
    # Whatever is wrong with the record is found before the first of its files is written.
    entry = check_entry(entry_of(record, file.suffix))
    _write(path_inside(root, "images", f"{record.id}{file.suffix}"), file.data)
    for name, mask in zip(record.mask_names, record.masks, strict=True):
        _write_mask(path_inside(root, "masks", name, f"{record.id}.png"), mask)
    if record.gold is not None:
        _write_mask(path_inside(root, "gold", f"{record.id}.png"), record.gold)
    return entry


def _write_mask(path: Path, mask: Mask) -> None:
    _write(path, encode_mask(np.ascontiguousarray(mask)))


def _write(path: Path, data: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # "x": two ids that the file system takes for one (a and A on some) must not overwrite each other.
        with path.open("xb") as file:
            file.write(data)
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror}); is the id there twice, or too long?") from None


def _check_ids(entries: list[Entry]) -> None:
    if len({entry.id for entry in entries}) < len(entries):
        raise DataError("Expected each id once but one comes twice, with images of two suffixes.", "id")

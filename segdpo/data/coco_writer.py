"""Writing records as COCO JSON with their images beside it; what each key holds is said in coco.py."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from segdpo.data.arrow_file import atomic
from segdpo.data.coco_masks import IGNORE, encode_mask
from segdpo.data.errors import DataError
from segdpo.data.files import exists, path_inside, read_file
from segdpo.data.folder_writer import entry_of
from segdpo.data.image_files import ImageFile, encode_image
from segdpo.data.manifest import check_entry, format_line
from segdpo.data.names import check_classes
from segdpo.data.record_check import check_record
from segdpo.data.record_source import RecordSource
from segdpo.data.source_files import Progress, records_with_files
from segdpo.pairs.record import Record

VERSION = 1


def write_coco(
    path: str | Path, records: RecordSource | Iterable[Record], classes: Iterable[str], progress: Progress = iter
) -> None:
    """Write records as a COCO file, their images to images/ beside it; the file must not be there yet."""
    path, names = Path(path), check_classes(tuple(classes))
    if path.exists():
        raise DataError(f"{path}: Expected nothing there; remove it or write to another path.")
    # Uncovered pixels are class 0. Where that is a thing (sky, not "background"), other readers should see it too.
    skip = 0 if names[0] == "background" else None
    values: dict[str, Any] = {
        "info": {"description": "Preference data, see candidates", "segdpo": {"version": VERSION, "classes": names}},
        "images": [],
        "categories": _categories(names, skip),
        "annotations": [],
        "candidates": [],
    }
    for number, (record, file) in enumerate(records_with_files(records, progress), 1):
        _add(
            values,
            number,
            check_record(record, names),
            file or encode_image(record.image),
            path.parent / "images",
            skip,
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(values, ensure_ascii=False), encoding="utf-8")


def _add(values: dict[str, Any], number: int, record: Record, file: ImageFile, images: Path, skip: int | None) -> None:
    entry = check_entry(entry_of(record, file.suffix))
    height, width = record.image.shape[:2]
    name = record.id + file.suffix
    _write_image(path_inside(images, name), file.data)
    line = {**json.loads(format_line(entry)), "masks": list(record.mask_names)}
    values["images"].append({"id": number, "file_name": name, "width": width, "height": height, "segdpo": line})
    if record.gold is not None:
        for region in encode_mask(record.gold, skip):
            values["annotations"].append({"id": len(values["annotations"]) + 1, "image_id": number, **region})
    for mask_name, mask in zip(record.mask_names, record.masks, strict=True):
        for region in encode_mask(mask, skip):
            identity = {"id": len(values["candidates"]) + 1, "image_id": number, "mask": mask_name}
            values["candidates"].append({**identity, **region})


def _categories(names: tuple[str, ...], skip: int | None) -> list[dict[str, Any]]:
    listed = [{"id": number, "name": name} for number, name in enumerate(names) if number != skip]
    return [*listed, {"id": IGNORE, "name": "ignore"}]


def _write_image(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if exists(path) and read_file(path) != data:
        raise DataError(f"{path}: Expected nothing there but got another image; write to an empty folder.", "id")
    try:
        path.write_bytes(data)
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror}); is the id too long?") from None

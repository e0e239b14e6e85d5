"""COCO files: any are read; those that segdpo writes hold all masks and preferences too."""

import json
import logging
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np

from segdpo.checks import IGNORE
from segdpo.data.formats.folder import check_version, entry_of, parse_object
from segdpo.data.formats.manifest import Entry, check_entry, format_line, parse_line
from segdpo.data.images import ImageFile, ValueRange, check_value_range, decode_image, eight_bit_file, encode_image
from segdpo.data.mask_files.regions import coco_codes, paint, region_code
from segdpo.data.record import Pair, Record, RecordInfo, RecordSource, check_classes, check_record
from segdpo.data.sources import Progress, records_with_files
from segdpo.files import MAX_TEXT_BYTES, DataError, exists, path_inside, read_file, write_atomically
from segdpo.masks import Mask

log = logging.getLogger(__name__)

VERSION = 1


class CocoDataset:
    """The records of a COCO file.

    A file of another program gives gold masks alone: class 0 is what no annotation covers, the categories follow by
    their ids (one called "background" is class 0), and larger regions are painted first.

    Args:
        annotations: the .json file.
        images: the folder of the images; None: images/ beside the file.
        crowd: "ignore" makes iscrowd regions 255, "class" their class.
        unannotated: what an image without annotations is, in a file of another program: "background" everywhere, or
            without gold ("no_gold"). None: background, and a warning says how many there are.
        channels: 3 repeats the channel of grey images to RGB, 1 converts to grey, None leaves images as stored.
        value_range: (low, high) of 16-bit and float images, which become 0 and 255; see `decode_image`.
    """

    def __init__(
        self,
        annotations: str | Path,
        images: str | Path | None = None,
        crowd: Literal["ignore", "class"] = "ignore",
        channels: int | None = 3,
        value_range: ValueRange | None = None,
        unannotated: Literal["background", "no_gold"] | None = None,
    ):
        self.path, self.channels = Path(annotations), channels
        self.value_range = None if value_range is None else check_value_range(value_range)
        if crowd not in ("ignore", "class"):
            raise DataError(f"Expected crowd 'ignore' or 'class' but got {crowd!r}.", "class")
        self.images = self.path.parent / "images" if images is None else Path(images)
        if unannotated not in (None, "background", "no_gold"):
            raise DataError(f"Expected unannotated 'background' or 'no_gold' but got {unannotated!r}.", "class")
        self._crowd, self._unannotated = crowd, unannotated
        try:
            self._read(parse_object(read_file(self.path, MAX_TEXT_BYTES), str(self.path)))
        except DataError:
            raise
        except (KeyError, TypeError, AttributeError, ValueError, OverflowError, RecursionError) as error:
            raise DataError(f"{self.path}: Expected COCO but got none ({error!r}).", "manifest") from None

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, index: int) -> Record:
        entry, values = self._entries[index], self._images[index]
        path = self._image_path(index)
        image = decode_image(read_file(path), str(path), self.channels, self.value_range)
        size = (values["height"], values["width"])
        where = f"{self.path}, image {entry.id!r}: "
        if image.shape[:2] != size:
            raise DataError(
                f"{where}Expected {size} (height, width) as the file says but got {image.shape[:2]}.", "size"
            )
        names = entry.masks or ()
        numbers = {name: k for k, name in enumerate(names)}
        masks = [self._paint(self._regions.get((values["id"], name), []), size, where) for name in names]
        return Record(
            id=entry.id,
            image=image,
            masks=np.stack(masks) if masks else np.zeros((0, *size), np.uint8),
            mask_names=names,
            pairs=tuple(Pair(numbers[p.chosen], numbers[p.rejected], p.weight) for p in entry.pairs),
            ranking=tuple(numbers[name] for name in entry.ranking),
            gold=self._paint(self._regions.get((values["id"], None), []), size, where) if entry.gold else None,
            group=entry.group,
            split=entry.split,
            meta=dict(entry.meta),
        )

    def describe(self, index: int) -> RecordInfo:
        """Return what the file says of a record, without opening its image."""
        entry = self._entries[index]
        return RecordInfo(entry.id, entry.group, entry.split, len(entry.pairs), len(entry.ranking), bool(entry.gold))

    def image_file(self, index: int) -> ImageFile:
        """Return the image's file as it lies on disk; of 16-bit and float images, a PNG by the value range."""
        return eight_bit_file(self._image_path(index), self.value_range)

    def _image_path(self, index: int) -> Path:
        entry = self._entries[index]
        return self.images / f"{entry.id}{entry.suffix}"

    def _read(self, values: dict[str, Any]) -> None:
        ours = values.get("info", {}).get("segdpo")
        self.classes, self._class_of = _own_classes(ours, self.path) if ours else _categories(values, self.path)
        self._images = list(values["images"])
        self._entries = [_entry(image, bool(ours), self.path) for image in self._images]
        self._check_images()
        self._regions: dict[tuple[int, str | None], list[dict[str, Any]]] = {}
        known = {image["id"] for image in self._images}
        for region in [*values.get("annotations", []), *values.get("candidates", [])]:
            number, category = region["image_id"], region["category_id"]
            if number not in known or category not in self._class_of:
                raise DataError(
                    f"{self.path}, annotation {region.get('id')}: Expected a listed image and category but got "
                    f"image {number}, category {category}.",
                    "manifest",
                )
            self._regions.setdefault((number, region.get("mask")), []).append(region)
        if not ours:
            self._set_unannotated()

    def _set_unannotated(self) -> None:
        bare = {place for place, image in enumerate(self._images) if (image["id"], None) not in self._regions}
        if self._unannotated == "no_gold":
            self._entries = [replace(entry, gold=place not in bare) for place, entry in enumerate(self._entries)]
        elif bare and self._unannotated is None:
            log.warning(
                "%s: %d of %d images have no annotation and count as background everywhere; if they are not annotated "
                "yet, set data.unannotated=no_gold, and if they are, data.unannotated=background.",
                self.path,
                len(bare),
                len(self._images),
            )

    def _check_images(self) -> None:
        for what, names in (("id", [e.id for e in self._entries]), ("number", [image["id"] for image in self._images])):
            counted = Counter(names)
            if len(counted) < len(names):
                twice = next(name for name in names if counted[name] > 1)
                raise DataError(f"{self.path}: Expected each image's {what} once but got {twice!r} twice.", "id")

        for image in self._images:
            size = (image["height"], image["width"])
            if not all(type(number) is int and number > 0 for number in size):
                raise DataError(
                    f"{self.path}, image {image['id']}: Expected height and width as whole numbers but got {size}.",
                    "size",
                )

    def _paint(self, regions: list[dict[str, Any]], size: tuple[int, int], where: str) -> Mask:
        codes = [region_code(region.get("segmentation"), size, where) for region in regions]
        return paint(zip(codes, map(self._value, regions), strict=True), size)

    def _value(self, region: dict[str, Any]) -> int:
        ignored = region.get("iscrowd") and self._crowd == "ignore"
        return IGNORE if ignored else self._class_of[region["category_id"]]


def write_coco(
    path: str | Path, records: RecordSource | Iterable[Record], classes: Iterable[str], progress: Progress = iter
) -> None:
    """Write records as a COCO file, and their images to images/ beside it.

    Args:
        path: the .json file; it must not exist yet.
        records: images are copied byte for byte from a source that has their files; others are written as PNG.
        classes: names of the classes, in the order of their ids.
        progress: wraps the loop over the records to show progress.
    """
    path, names = Path(path), check_classes(tuple(classes))
    if path.exists():
        raise DataError(f"{path}: Expected nothing there; remove it or write to another path.")
    # Uncovered pixels are class 0. If that class is an object (sky), other programs need its regions too.
    skip = 0 if names[0] == "background" else None
    values: dict[str, Any] = {
        "info": {"description": "Preference data, see candidates", "segdpo": {"version": VERSION, "classes": names}},
        "images": [],
        "categories": _category_list(names, skip),
        "annotations": [],
        "candidates": [],
    }
    for number, (record, file) in enumerate(records_with_files(records, progress), 1):
        check_record(record, names)
        _add(values, number, record, file or encode_image(record.image), path.parent / "images", skip)
    write_atomically(path, json.dumps(values, ensure_ascii=False).encode())


def encode_coco_mask(mask: Mask, skip: int | None) -> list[dict[str, Any]]:
    """Return one annotation a class that occurs, without ids; class `skip` is left out, 255 is marked iscrowd."""
    annotations, rle = [], coco_codes()
    for number in np.unique(mask).tolist():
        if number == skip:
            continue
        code = rle.encode(np.asfortranarray(mask == number, np.uint8))
        annotations.append(
            {
                "category_id": number,
                "segmentation": {"size": list(mask.shape), "counts": code["counts"].decode()},
                "area": int(rle.area(code)),
                "bbox": rle.toBbox(code).tolist(),
                "iscrowd": int(number == IGNORE),
            }
        )
    return annotations


def _own_classes(ours: dict[str, Any], path: Path) -> tuple[tuple[str, ...], dict[int, int]]:
    check_version(ours.get("version"), VERSION, str(path), "write the file again with this program.")
    classes = check_classes(ours["classes"], f"{path}: ")
    return classes, {**{number: number for number in range(len(classes))}, IGNORE: IGNORE}


def _categories(values: dict[str, Any], path: Path) -> tuple[tuple[str, ...], dict[int, int]]:
    categories = sorted(values["categories"], key=lambda category: int(category["id"]))
    objects = [category for category in categories if category["name"] != "background"]
    class_of = {category["id"]: 0 for category in categories}
    class_of.update({category["id"]: number for number, category in enumerate(objects, 1)})
    return check_classes(("background", *(category["name"] for category in objects)), f"{path}: "), class_of


def _entry(image: dict[str, Any], ours: bool, path: Path) -> Entry:
    name = PurePosixPath(image["file_name"])
    where = f"{path}, image {image['id']}: "
    plain = Entry(str(name.with_suffix("")), suffix=name.suffix, masks=(), gold=True)
    if not ours:
        return check_entry(plain, where)
    entry = parse_line(json.dumps(image["segdpo"]), where)
    if (entry.id, entry.suffix) != (plain.id, plain.suffix) or entry.masks is None:
        raise DataError(f"{where}Expected the id {plain.id!r} and a list of masks but got {entry.id!r}.", "id")
    return check_entry(plain, where) and entry


def _add(values: dict[str, Any], number: int, record: Record, file: ImageFile, images: Path, skip: int | None) -> None:
    entry = check_entry(entry_of(record, file.suffix))
    height, width = record.image.shape[:2]
    name = record.id + file.suffix
    _write_image(path_inside(images, name), file.data)
    line = {**json.loads(format_line(entry)), "masks": list(record.mask_names)}
    values["images"].append({"id": number, "file_name": name, "width": width, "height": height, "segdpo": line})
    if record.gold is not None:
        for region in encode_coco_mask(record.gold, skip):
            values["annotations"].append({"id": len(values["annotations"]) + 1, "image_id": number, **region})
    for mask_name, mask in zip(record.mask_names, record.masks, strict=True):
        for region in encode_coco_mask(mask, skip):
            identity = {"id": len(values["candidates"]) + 1, "image_id": number, "mask": mask_name}
            values["candidates"].append({**identity, **region})


def _category_list(names: tuple[str, ...], skip: int | None) -> list[dict[str, Any]]:
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

"""Data sets as COCO JSON: any COCO file as gold, and ours with candidates, pairs and groups as well.

In a file of ours, `annotations` are the gold masks, so that other tools read the truth and nothing else; `candidates`
are written alike, each with the name of its `mask`; an image's key `segdpo` is its line of the manifest, and
`info.segdpo` names the classes. Category ids are class ids there; 255 is ignore, marked iscrowd.
"""

import json
from collections import Counter
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np

from segdpo.data.coco_masks import IGNORE, code_area, decode_code, region_code
from segdpo.data.coco_writer import write_coco
from segdpo.data.errors import DataError
from segdpo.data.files import MAX_TEXT_BYTES, read_file
from segdpo.data.folder_description import check_version, parse_object
from segdpo.data.image_files import ImageFile, decode_image
from segdpo.data.manifest import Entry, check_entry, parse_line
from segdpo.data.names import check_classes
from segdpo.data.record_source import RecordInfo
from segdpo.pairs.record import Mask, Pair, Record

__all__ = ["CocoDataset", "write_coco"]
VERSION = 1


class CocoDataset:
    """The records of a COCO file; `images` is the images' folder (None: images/ beside the file).

    A foreign file gives gold alone: class 0 is what no annotation covers, the categories follow by their ids (one
    called "background" is class 0), larger regions are painted first, and iscrowd regions are 255 (`crowd="ignore"`)
    or their class.
    """

    def __init__(
        self,
        annotations: str | Path,
        images: str | Path | None = None,
        crowd: Literal["ignore", "class"] = "ignore",
        channels: int | None = 3,
    ):
        self.path, self.channels = Path(annotations), channels
        if crowd not in ("ignore", "class"):
            raise DataError(f"Expected crowd 'ignore' or 'class' but got {crowd!r}.", "class")
        self.images = self.path.parent / "images" if images is None else Path(images)
        self._crowd = crowd
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
        image = decode_image(self.image_file(index).data, str(self._image_path(index)), self.channels)
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
        return RecordInfo(entry.id, entry.group, entry.split, len(entry.pairs), len(entry.ranking))

    def image_file(self, index: int) -> ImageFile:
        """Return the image's file as it lies on disk."""
        path = self._image_path(index)
        return ImageFile(path.suffix, read_file(path))

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
        mask = np.zeros(size, np.uint8)
        # Codes are short; all regions of an image decoded at once need not fit into memory.
        codes = [(region_code(region.get("segmentation"), size, where), region) for region in regions]
        # What lies on top of something else is smaller than it; the order of the file breaks ties.
        for code, region in sorted(codes, key=lambda item: -code_area(item[0])):
            ignored = region.get("iscrowd") and self._crowd == "ignore"
            mask[decode_code(code)] = IGNORE if ignored else self._class_of[region["category_id"]]
        return mask


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

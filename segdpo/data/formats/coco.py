"""COCO files: any are read; those that segdpo writes hold all masks and preferences too."""

import json
import logging
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any, Literal, cast

import numpy as np
from pycocotools import mask as rle

from segdpo.checks import IGNORE
from segdpo.data.formats.folder import check_version, entry_of, parse_object
from segdpo.data.formats.manifest import Entry, check_entry, format_line, parse_line
from segdpo.data.images import ImageFile, decode_image, encode_image
from segdpo.data.record import Pair, Record, RecordInfo, RecordSource, check_classes, check_record
from segdpo.data.sources import Progress, records_with_files
from segdpo.files import MAX_TEXT_BYTES, DataError, exists, path_inside, read_file, write_atomically
from segdpo.masks import Mask

log = logging.getLogger(__name__)

VERSION = 1
# How long the polygons of a region may be together, in pixels; pycocotools takes 120 bytes for each.
MAX_OUTLINE = 2**22
# How many bits a run of a compressed code may have.
MAX_RUN_BITS = 40


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
    """

    def __init__(
        self,
        annotations: str | Path,
        images: str | Path | None = None,
        crowd: Literal["ignore", "class"] = "ignore",
        channels: int | None = 3,
        unannotated: Literal["background", "no_gold"] | None = None,
    ):
        self.path, self.channels = Path(annotations), channels
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
        return RecordInfo(entry.id, entry.group, entry.split, len(entry.pairs), len(entry.ranking), bool(entry.gold))

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
        mask = np.zeros(size, np.uint8)
        # Codes are short; all regions of an image decoded at once need not fit into memory.
        codes = [(_region_code(region.get("segmentation"), size, where), region) for region in regions]
        # What lies on top of something else is smaller than it; the order of the file breaks ties.
        for code, region in sorted(codes, key=lambda item: -int(rle.area(item[0]))):
            ignored = region.get("iscrowd") and self._crowd == "ignore"
            mask[_decode(code)] = IGNORE if ignored else self._class_of[region["category_id"]]
        return mask


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
    annotations = []
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


def decode_region(segmentation: Any, size: tuple[int, int], where: str) -> np.ndarray:
    """Return bool [H, W] of a segmentation: polygons, or a run-length code, compressed or not."""
    return _decode(_region_code(segmentation, size, where))


def _region_code(segmentation: Any, size: tuple[int, int], where: str) -> dict[str, Any]:
    """Return the run-length code of a segmentation, checked: pycocotools crashes on a wrong one."""
    height, width = size
    try:
        if isinstance(segmentation, dict) and list(segmentation.get("size", ())) != [height, width]:
            raise DataError(
                f"{where}Expected a mask of {height}×{width} (height × width) but got {segmentation.get('size')}.",
                "size",
            )
        if isinstance(segmentation, list):
            return cast(dict[str, Any], rle.merge(rle.frPyObjects(_polygons(segmentation, size), height, width)))
        if isinstance(segmentation["counts"], list):
            counted = _counted(segmentation, height * width)
            return cast(dict[str, Any], rle.frPyObjects(counted, height, width))
        return {"size": [height, width], "counts": _code(segmentation["counts"], height * width)}
    except DataError:
        raise
    except (TypeError, KeyError, ValueError, IndexError, AttributeError, OverflowError, MemoryError) as error:
        raise DataError(f"{where}Expected polygons or a run-length code but got neither ({error}).") from None


def _decode(code: dict[str, Any]) -> np.ndarray:
    return np.asarray(rle.decode(code), bool)


def _polygons(segmentation: list[Any], size: tuple[int, int]) -> list[list[float]]:
    polygons = [[float(number) for number in polygon] for polygon in segmentation]
    if not polygons or any(len(polygon) < 6 or len(polygon) % 2 for polygon in polygons):
        raise ValueError("a polygon needs x and y of at least three points")
    edge = (size[1], size[0])
    outline = 0.0
    for polygon in polygons:
        points = np.array(polygon).reshape(-1, 2)
        # NaN is not inside, either. Outlines may leave their image a little, at its border.
        if not ((points >= np.negative(edge)) & (points <= np.multiply(2, edge))).all():
            raise ValueError(f"a polygon's point lies far outside of the image: {_farthest(points, edge)}")
        outline += float(np.abs(points - np.roll(points, 1, axis=0)).max(axis=1).sum()) + len(points)
    if outline > MAX_OUTLINE:
        raise ValueError(f"its polygons are {outline:.0f} pixels long, more than {MAX_OUTLINE}")
    return polygons


def _farthest(points: np.ndarray, edge: tuple[int, int]) -> list[float]:
    outside = ~((points >= np.negative(edge)) & (points <= np.multiply(2, edge))).all(axis=1)
    return [float(number) for number in points[np.argmax(outside)]]


def _counted(segmentation: dict[str, Any], pixels: int) -> dict[str, Any]:
    counts = [int(count) for count in segmentation["counts"]]
    if sum(counts) != pixels or min(counts) < 0:
        raise ValueError(f"its runs cover {sum(counts)} of {pixels} pixels")
    return {"size": segmentation["size"], "counts": counts}


def _code(text: Any, pixels: int) -> bytes:
    """Return a compressed code whose runs cover the mask: pycocotools writes past its array otherwise."""
    data = text.encode("ascii")
    runs: list[int] = []
    value = shift = 0
    for byte in data:
        part = byte - 48
        if not 0 <= part < 64:
            raise ValueError(f"the character {chr(byte)!r} is not part of a code")
        value |= (part & 0x1F) << shift
        shift += 5
        if shift > MAX_RUN_BITS:
            raise ValueError("a run is longer than any image")
        if not part & 0x20:
            if part & 0x10:
                value -= 1 << shift
            # From the fourth run on, a code holds the difference to the run before the last.
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = shift = 0
    if shift or sum(runs) != pixels or min(runs, default=0) < 0:
        raise ValueError(f"its runs cover {sum(runs)} of {pixels} pixels")
    return bytes(data)


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

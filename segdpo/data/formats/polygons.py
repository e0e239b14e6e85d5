"""Regions of one image in a text file of YOLO, and in JSON with COCO's polygons and run-length codes."""

import json
from typing import Any

from segdpo.data.formats.regions import Region, region_code
from segdpo.files import MAX_TEXT_BYTES, DataError, decode_text

Size = tuple[int, int]


def yolo_regions(data: bytes, name: str, size: Size) -> list[Region]:
    """Return the polygons of a text file of YOLO segmentation, labelled with its numbers.

    Each line is a class and the points of one polygon, x y x y …, as parts of the image's width and height. A file
    without lines has no objects. Lines of boxes (class, x, y, width, height) are an error.
    """
    regions = []
    for number, line in enumerate(decode_text(data, name).splitlines(), 1):
        where = f"{name}, line {number}: "
        if not (words := line.split()):
            continue
        try:
            label, points = int(words[0]), [float(word) for word in words[1:]]
        except ValueError as error:
            raise DataError(
                f"{where}Expected a class and the points of a polygon but got {error}.", "manifest"
            ) from None
        if len(points) < 6 or len(points) % 2:
            raise DataError(
                f"{where}Expected a class and x y of at least three points but got {len(points)} numbers; "
                "boxes are no masks.",
                "manifest",
            )
        if not all(-0.01 <= point <= 1.01 for point in points):
            raise DataError(f"{where}Expected points from 0 to 1, parts of the image, but got {max(points)}.", "size")
        scaled = [point * size[1 - k % 2] for k, point in enumerate(points)]
        regions.append(Region(region_code([scaled], size, where), label))
    return regions


def coco_regions(data: bytes, name: str, size: Size) -> list[Region]:
    """Return the regions of one image in JSON, labelled with `category_id`, or with None where there is none.

    The JSON is a segmentation of COCO (a run-length code, compressed or not, or a list of polygons), an annotation that
    has one under `segmentation`, a list of either, or an object with such a list under `annotations`.
    """
    values = parse_json(data, name)
    items = values.get("annotations", [values]) if isinstance(values, dict) else values
    if not isinstance(items, list):
        raise DataError(f"{name}: Expected a run-length code or a list of annotations but got {items!r:.60}.")
    if items and all(isinstance(item, list) for item in items):
        items = [items]  # the polygons of one region
    return [_coco_region(item, size, f"{name}, annotation {number}: ") for number, item in enumerate(items, 1)]


def _coco_region(item: Any, size: Size, where: str) -> Region:
    annotation = item if isinstance(item, dict) and "segmentation" in item else {"segmentation": item}
    label = annotation.get("category_id")
    if label is not None and type(label) is not int:
        raise DataError(f"{where}Expected category_id as a whole number but got {label!r:.60}.", "class")
    return Region(region_code(annotation["segmentation"], size, where), label)


def parse_json(data: bytes, name: str) -> Any:
    """Return the value of a JSON text of at most MAX_TEXT_BYTES."""
    if len(data) > MAX_TEXT_BYTES:
        raise DataError(f"{name}: Expected at most {MAX_TEXT_BYTES} bytes but got {len(data)}; split the file.", "size")
    text = decode_text(data, name)
    try:
        return json.loads(text)
    except (ValueError, RecursionError, MemoryError) as error:
        reason = str(error) or type(error).__name__
        raise DataError(f"{name}: Expected JSON but got {reason}; correct the file.", "manifest") from None

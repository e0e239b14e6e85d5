"""Regions of an image as polygons and run-length codes, of COCO and YOLO, and the masks that several of them make.

A code is that of COCO: runs of 0 and 1 in turn, down the columns, compressed or not.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, TypeAlias, cast

import numpy as np

from segdpo.extras import extra_named
from segdpo.files import DataError, decode_text, parse_json
from segdpo.masks import Mask

Size: TypeAlias = tuple[int, int]
Code: TypeAlias = dict[str, Any]
"""{"size": [height, width], "counts": bytes}, as pycocotools has it; much shorter than a mask."""
# How long the polygons of a region may be together, in pixels; pycocotools takes 120 bytes for each.
MAX_OUTLINE = 2**22
# How many bits a run of a compressed code may have.
MAX_RUN_BITS = 40


@dataclass(frozen=True)
class Region:
    """A region and what it is labelled as: a name, a number of the file's own, or None."""

    code: Code
    label: str | int | None = None


def coco_codes() -> Any:
    """Return the module of pycocotools that encodes and decodes; the extra `coco` has it."""
    with extra_named():
        from pycocotools import mask
    return mask


def paint(regions: Iterable[tuple[Code, int]], size: tuple[int, int]) -> Mask:
    """Return the mask of regions with their class ids; 0 where none is.

    Larger regions are painted first: what lies on top of something else is smaller than it. Of two equally large ones
    the later lies on top.
    """
    mask, rle = np.zeros(size, np.uint8), coco_codes()
    # Codes are short; all regions of an image decoded at once need not fit into memory.
    for code, value in sorted(regions, key=lambda region: -int(rle.area(region[0]))):
        mask[decode_code(code)] = value
    return mask


def decode_region(segmentation: Any, size: tuple[int, int], where: str) -> np.ndarray:
    """Return bool [H, W] of a segmentation: polygons, or a run-length code, compressed or not."""
    return decode_code(region_code(segmentation, size, where))


def region_code(segmentation: Any, size: tuple[int, int], where: str) -> Code:
    """Return the run-length code of a segmentation, checked: pycocotools crashes on a wrong one."""
    (height, width), rle = size, coco_codes()
    try:
        if isinstance(segmentation, dict) and list(segmentation.get("size", ())) != [height, width]:
            raise DataError(
                f"{where}Expected a mask of {height}×{width} (height × width) but got {segmentation.get('size')}.",
                "size",
            )
        if isinstance(segmentation, list):
            return cast(Code, rle.merge(rle.frPyObjects(_polygons(segmentation, size), height, width)))
        if isinstance(segmentation["counts"], list):
            counted = _counted(segmentation, height * width)
            return cast(Code, rle.frPyObjects(counted, height, width))
        return {"size": [height, width], "counts": _code(segmentation["counts"], height * width)}
    except DataError:
        raise
    except (TypeError, KeyError, ValueError, IndexError, AttributeError, OverflowError, MemoryError) as error:
        raise DataError(f"{where}Expected polygons or a run-length code but got neither ({error}).") from None


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


def encode_code(mask: np.ndarray) -> Code:
    """Return the code of bool [H, W]."""
    return cast(Code, coco_codes().encode(np.asfortranarray(mask, np.uint8)))


def decode_code(code: Code) -> np.ndarray:
    """Return bool [H, W] of a checked code."""
    return np.asarray(coco_codes().decode(code), bool)


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

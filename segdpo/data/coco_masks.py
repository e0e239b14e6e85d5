"""Masks as COCO writes them: one run-length code for each class of a mask; for exchange, since decoding is slow."""

from typing import Any, cast

import numpy as np
from pycocotools import mask as rle

from segdpo.data.errors import DataError
from segdpo.pairs.record import Mask

IGNORE = 255
# How long the polygons of a region may be together, in pixels; pycocotools takes 120 bytes for each.
MAX_OUTLINE = 2**22
MOST_BITS = 40


def encode_mask(mask: Mask, skip: int | None) -> list[dict[str, Any]]:
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
    return decode_code(region_code(segmentation, size, where))


def decode_code(code: dict[str, Any]) -> np.ndarray:
    """Return bool [H, W] of a code that `region_code` gave."""
    return np.asarray(rle.decode(code), bool)


def code_area(code: dict[str, Any]) -> int:
    """Return how many pixels a code that `region_code` gave sets."""
    return int(rle.area(code))


def region_code(segmentation: Any, size: tuple[int, int], where: str) -> dict[str, Any]:
    """Return the run-length code of a segmentation, checked: pycocotools believes what it is given, and crashes."""
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
    """Return a compressed code whose runs were counted first: pycocotools trusts them, and writes past its array."""
    data = text.encode("ascii")
    runs: list[int] = []
    value = shift = 0
    for byte in data:
        part = byte - 48
        if not 0 <= part < 64:
            raise ValueError(f"the character {chr(byte)!r} is not part of a code")
        value |= (part & 0x1F) << shift
        shift += 5
        if shift > MOST_BITS:
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

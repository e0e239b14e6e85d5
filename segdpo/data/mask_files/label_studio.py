"""JSON of Label Studio: tasks, and the regions of their annotations: brush strokes, polygons and rectangles."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np

from segdpo.data.mask_files.regions import Code, Region, Size, encode_code, region_code
from segdpo.files import DataError, parse_json

Results = Sequence[Mapping[str, Any]]
# The keys under which a result of a control tag names its label.
LABELS = ("brushlabels", "polygonlabels", "rectanglelabels", "labels")
OPAQUE = 128  # the least alpha of a pixel that a brush stroke covers


@dataclass(frozen=True)
class Task:
    """An image and its annotations.

    Args:
        image: the name of the image's file, without the folder, host and query of its address.
        annotations: the results of each, by who made it ("annotator 3", "prediction 1").
    """

    image: str
    annotations: Mapping[str, Results]


def label_studio_tasks(data: bytes, name: str) -> list[Task]:
    """Return the tasks of an export as JSON; annotations that were cancelled are left out."""
    values = parse_json(data, name)
    items = values if isinstance(values, list) else [values]
    return [_task(item, f"{name}, task {number}: ") for number, item in enumerate(items, 1)]


def label_studio_regions(data: bytes, name: str, size: Size) -> list[Region]:
    """Return the regions of JSON of one task, of one annotation, or of its list of results.

    Raises:
        DataError: it is none of these, or the task has no annotation or several.
    """
    values = parse_json(data, name)
    if isinstance(values, list) and len(values) == 1 and isinstance(values[0], dict) and "data" in values[0]:
        values = values[0]
    if isinstance(values, list):
        return regions_of(values, size, f"{name}: ")
    if isinstance(values, dict) and isinstance(values.get("result"), list):
        return regions_of(values["result"], size, f"{name}: ")
    annotations = _task(values, f"{name}: ").annotations
    if len(annotations) != 1:
        raise DataError(f"{name}: Expected one annotation but got {len(annotations)}: {', '.join(annotations)}.")
    return regions_of(next(iter(annotations.values())), size, f"{name}: ")


def regions_of(results: Results, size: Size, where: str) -> list[Region]:
    """Return the regions of an annotation, labelled with the names of their classes.

    Args:
        results: the annotation's list `result`.
        size: height and width of the image.
        where: begins error messages.
    """
    labels: dict[str, str] = {}
    shapes: dict[str, Mapping[str, Any]] = {}
    for number, result in enumerate(results):
        value = result.get("value") if isinstance(result, dict) else None
        if not isinstance(value, dict):
            raise DataError(f"{where}Expected results with a `value` but got {result!r:.60}.", "manifest")
        # With <Brush> and <Labels>, shape and label are two results of one id.
        key = str(result.get("id", number))
        for found in (value[kind] for kind in LABELS if isinstance(value.get(kind), list) and value[kind]):
            labels[key] = str(found[0])
        if value.keys() & {"rle", "points", "width"}:
            _check_result(result, size, where)
            shapes[key] = value
    return [Region(_code(value, size, where), labels.get(key)) for key, value in shapes.items()]


def decode_brush(numbers: Sequence[int], size: Size, where: str) -> np.ndarray:
    """Return bool [H, W] of a brush stroke: the pixels whose alpha is at least 128.

    The code is the run-length code of the package rle-pack: a stream of bits, the most significant first. 32 bits: how
    many words follow; 5: the bits of a word, less 1; four times 4: sizes, less 1. Then runs. A run begins with one bit
    that says whether it repeats one word, two bits that choose a size, and as many bits as that size, which hold the
    run's length, less 1. The word follows, or as many words as the run is long. The words are the RGBA values of the
    image, row by row.

    Raises:
        DataError: the code is cut short, or is not one of H · W · 4 words of 8 bits.
    """
    try:
        if not isinstance(numbers, list):
            raise TypeError(type(numbers).__name__)
        words = _unpack(bytes(numbers), 4 * size[0] * size[1])
    except (TypeError, ValueError) as error:
        raise DataError(f"{where}Expected a brush stroke as `rle` but got {error}.") from None
    return words.reshape(*size, 4)[..., 3] >= OPAQUE


def _unpack(data: bytes, expected: int) -> np.ndarray:
    bits = np.unpackbits(np.frombuffer(data, np.uint8))

    def read(start: int, length: int) -> int:
        if start + length > len(bits):
            raise ValueError(f"a code that ends after {len(data)} bytes")
        first, last = start // 8, (start + length + 7) // 8
        whole = int.from_bytes(data[first:last], "big")
        return whole >> 8 * last - start - length & (1 << length) - 1

    count, word = read(0, 32), read(32, 5) + 1
    if count != expected or word != 8:
        raise ValueError(f"{count} words of {word} bits instead of {expected} of 8")
    sizes = [read(37 + 4 * k, 4) + 1 for k in range(4)]
    words, done, at = np.empty(count, np.uint8), 0, 53
    while done < count:
        repeated, size = read(at, 1), sizes[read(at + 1, 2)]
        length, at = read(at + 3, size) + 1, at + 3 + size
        if done + length > count:
            raise ValueError(f"runs of more than {count} words")
        if repeated:
            words[done : done + length], at = read(at, 8), at + 8
        elif at + 8 * length > len(bits):
            raise ValueError(f"a code that ends after {len(data)} bytes")
        else:
            words[done : done + length], at = np.packbits(bits[at : at + 8 * length]), at + 8 * length
        done += length
    return words


def _task(item: Any, where: str) -> Task:
    try:
        image = next(file for value in item["data"].values() if (file := _file_named(value)))
        made = [one for one in item.get("annotations", item.get("completions", [])) if not one.get("was_cancelled")]
        makers = [_maker(one, number) for number, one in enumerate(made, 1)]
        annotations = {
            maker if makers.count(maker) == 1 else f"{maker}, {number}": list(one["result"])
            for number, (maker, one) in enumerate(zip(makers, made, strict=True), 1)
        }
        for number, one in enumerate(item.get("predictions", []), 1):
            annotations[f"prediction {number}"] = list(one["result"])
    except (TypeError, KeyError, AttributeError, ValueError, StopIteration) as error:
        raise DataError(
            f"{where}Expected a task of Label Studio but got {item!r:.60} ({error!r}); export it as JSON.", "manifest"
        ) from None
    return Task(image, annotations)


def _file_named(value: Any) -> str:
    """Return the file's name in an address; "" if there is none. Files of the server's disk are in the query."""
    if not isinstance(value, str):
        return ""
    address = urlsplit(value)
    path = PurePosixPath(parse_qs(address.query).get("d", [unquote(address.path)])[0])
    return path.name if path.suffix else ""


def _maker(annotation: dict[str, Any], number: int) -> str:
    made_by = annotation.get("completed_by")
    made_by = made_by.get("id") if isinstance(made_by, dict) else made_by
    return f"annotation {number}" if made_by is None else f"annotator {made_by}"


def _check_result(result: Mapping[str, Any], size: Size, where: str) -> None:
    if result.get("image_rotation"):
        raise DataError(f"{where}Expected an image that was not rotated but got {result['image_rotation']!r} degrees.")
    found = (result.get("original_height") or size[0], result.get("original_width") or size[1])
    if found != size:
        raise DataError(f"{where}Expected regions of an image {size} (height, width) but got {found}.", "size")


def _code(value: Mapping[str, Any], size: Size, where: str) -> Code:
    if "rle" in value:
        return encode_code(decode_brush(value["rle"], size, where))
    try:
        corners = value["points"] if "points" in value else _rectangle(value)
        # Percent of width and height.
        points = [float(part) / 100 * size[1 - k] for point in corners for k, part in enumerate(point)]
    except (TypeError, KeyError, ValueError, IndexError) as error:
        raise DataError(f"{where}Expected points of a polygon but got {value!r:.60} ({error!r}).") from None
    return region_code([points], size, where)


def _rectangle(value: Mapping[str, Any]) -> list[tuple[float, float]]:
    if value.get("rotation") or not {"x", "y", "height"} <= value.keys():
        raise ValueError("a rotated rectangle, or another shape")
    left, top, width, height = (float(value[key]) for key in ("x", "y", "width", "height"))
    return [(left, top), (left + width, top), (left + width, top + height), (left, top + height)]

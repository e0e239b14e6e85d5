"""Files that name classes, their numbers and their colours: labelmap.txt, classes.txt, data.yaml and others."""

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import yaml  # type: ignore[import-untyped]

from segdpo.checks import IGNORE
from segdpo.data.record import check_classes, is_text
from segdpo.files import DataError, decode_text

BACKGROUND = ("background", "_background_", "__background__", "bg")
IGNORED = ("ignore", "__ignore__")
MAX_BYTES = 2**20
COLOUR = r"(?P<red>\d{1,3})[,;\s]+(?P<green>\d{1,3})[,;\s]+(?P<blue>\d{1,3})"
# How a line may name a class; the first that fits a line is taken.
LINES = tuple(
    re.compile(pattern)
    for pattern in (
        rf"(?P<name>[^:]+):{COLOUR}:.*",  # labelmap.txt of CVAT: name:r,g,b:parts:actions
        rf"{COLOUR}[,;:\s]+(?P<name>\D.*)",  # label_colors.txt of CamVid: r g b name
        rf"(?P<number>\d{{1,5}})[,;:\s]+(?P<name>\D.*?)[,;:\s]+{COLOUR}",  # number name r g b
        rf"(?P<name>.*?\S)[,;:\s]+{COLOUR}",  # class_dict.csv: name,r,g,b
        r"(?P<number>\d{1,5})[,;:\s]+(?P<name>\D.*)",  # number name
        r"(?P<name>.*?\S)[,;:]\s*(?P<number>\d{1,5})",  # name,number
        r"(?P<name>.*\S)",  # classes.txt: name
    )
)
HEADER = re.compile(r"(name|class|label|id|number)s?[,;\s]+(r|red|name|class|label|id|number|color|colour)\b.*", re.I)


@dataclass(frozen=True)
class ClassFile:
    """The names of classes in a file's order, with what it says of them.

    Args:
        names: as in the file.
        numbers: the number of each name; from 0 on where the file has none.
        colors: the colour of each name that has one.

    >>> found = ClassFile(("cell", "background"), {"cell": 7, "background": 0}, {})
    >>> found.classes, found.values
    (('background', 'cell'), {7: 1, 0: 0})
    """

    names: tuple[str, ...]
    numbers: Mapping[str, int]
    colors: Mapping[str, tuple[int, ...]]

    @property
    def background(self) -> str | None:
        """The name of the background, if the file has it."""
        return next((name for name in self.names if name.lower() in BACKGROUND), None)

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes with the background first, whether the file names it or not; "ignore" is none."""
        objects = (name for name in self.names if name != self.background and name.lower() not in IGNORED)
        return (self.background or "background", *objects)

    @property
    def values(self) -> dict[int, int]:
        """Which class id the file's numbers stand for; `values` of a MaskFormat."""
        classes = self.classes
        return {number: classes.index(name) if name in classes else IGNORE for name, number in self.numbers.items()}


def read_classes(data: bytes, name: str) -> ClassFile:
    """Return the classes that a file names.

    Read are text files with one class a line (labelmap.txt of CVAT `name:r,g,b::`, label_colors.txt of CamVid
    `r g b name`, class_dict.csv `name,r,g,b`, `number name` and classes.txt with names alone), where lines that begin
    with # are skipped; data.yaml of YOLO with `names` as a list or by number; and JSON with a list of names, or of
    objects with `name`, `id` and `color`, also under `categories`, as notes.json of Label Studio has it.

    Raises:
        DataError: no class is named, one is named twice, or a number or colour is used twice.
    """
    if len(data) > MAX_BYTES:
        raise DataError(f"{name}: Expected at most {MAX_BYTES} bytes but got {len(data)}.", "size")
    text = decode_text(data, name).removeprefix("\ufeff")
    if name.endswith((".yaml", ".yml")):
        rows = _yaml_rows(text, name)
    elif name.endswith(".json"):
        rows = _json_rows(text, name)
    else:
        lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
        rows = [_parse(line) for line in lines[1 if lines and HEADER.fullmatch(lines[0]) else 0 :]]
    return _class_file(rows, name)


def voc_colors(count: int) -> tuple[tuple[int, int, int], ...]:
    """Return the first colours of the colour map of PASCAL VOC, which many tools use for palettes.

    Of class k, the bits 0, 3, 6, … are the high bits of red, 1, 4, … those of green, 2, 5, … those of blue.

    >>> voc_colors(4)
    ((0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0))
    """

    def part(number: int, first: int) -> int:
        return sum((number >> first + 3 * bit & 1) << 7 - bit for bit in range(8))

    return tuple((part(number, 0), part(number, 1), part(number, 2)) for number in range(count))


_Row = tuple[str, int | None, tuple[int, ...] | None]


def _parse(line: str) -> _Row:
    match = next(match for pattern in LINES if (match := pattern.fullmatch(line)))
    named = match.groupdict()
    number = named.get("number")
    colour = tuple(int(named[part]) for part in ("red", "green", "blue")) if "red" in named else None
    return named["name"].strip(), int(number) if number else None, colour


def _yaml_rows(text: str, name: str) -> list[_Row]:
    try:
        # With the base loader a class called "no" is not False.
        values = yaml.load(text, Loader=yaml.BaseLoader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise DataError(f"{name}: Expected yaml but got {error!s:.200}; correct the file.", "manifest") from None
    names = values.get("names") if isinstance(values, dict) else None
    if isinstance(names, dict):
        return [(_text(label, name), _number(number, name), None) for number, label in names.items()]
    if isinstance(names, list):
        return [(_text(label, name), number, None) for number, label in enumerate(names)]
    raise DataError(f"{name}: Expected the names of classes under `names` but got none.", "manifest")


def _json_rows(text: str, name: str) -> list[_Row]:
    try:
        values = json.loads(text)
        items = values["categories"] if isinstance(values, dict) else values
        return [_json_row(item, name) for item in items]
    except DataError:
        raise
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise DataError(f"{name}: Expected a list of classes but got none ({error!r:.200}).", "manifest") from None


def _json_row(item: Any, name: str) -> _Row:
    if not isinstance(item, dict):
        return _text(item, name), None, None
    colour = item.get("color")
    return (
        _text(item["name"], name),
        _number(item["id"], name) if "id" in item else None,
        tuple(_number(part, name) for part in colour) if isinstance(colour, list) else None,
    )


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise DataError(f"{name}: Expected names of classes but got {value!r:.60}.", "manifest")
    return value.strip()


def _number(value: Any, name: str) -> int:
    if (isinstance(value, str) and value.isdecimal() and len(value) < 10) or type(value) is int:
        return int(value)
    raise DataError(f"{name}: Expected whole numbers of classes but got {value!r:.60}.", "manifest")


def _class_file(rows: Iterable[_Row], name: str) -> ClassFile:
    rows = list(rows)
    names = tuple(label for label, _, _ in rows)
    numbers = {label: k if number is None else number for k, (label, number, _) in enumerate(rows)}
    colours = {label: colour for label, _, colour in rows if colour is not None}
    if any(part > 255 for colour in colours.values() for part in colour):
        raise DataError(f"{name}: Expected colours from 0 to 255 but got {colours}.", "class")
    for what, found in (("number", numbers.values()), ("colour", colours.values())):
        if twice := [one for one, times in Counter[Any](found).items() if times > 1]:
            raise DataError(f"{name}: Expected a different {what} for each class but got {twice[0]} twice.", "class")
    if len(set(names)) < len(names) or not all(label and is_text(label) for label in names):
        raise DataError(f"{name}: Expected each class once but got {list(names)!r:.300}; correct the names.", "class")
    found_file = ClassFile(names, numbers, colours)
    check_classes(found_file.classes, f"{name}: ")
    return found_file

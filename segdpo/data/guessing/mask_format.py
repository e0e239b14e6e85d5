"""How the masks of a folder store classes, told from a sample of them; what could be wrong is asked.

Told without a question, since nothing else makes sense, and since any other number in a mask that was not sampled is an
error when it is read:

- 0 and 1, or 1 bit: class ids of background and object.
- 0 and 255 (or 65535) alone: background and object. If 255 were "ignore", no sampled mask would have an object.
- 0 … n without a gap, with or without 255 in masks that have other numbers too: class ids, and 255 is ignored.
- black and one colour (white, in a palette): background and object. Colours that a file of the folder names.
- numbers above 255: objects, since there are at most 255 classes.
- probabilities of a model: candidates by their levels.

Asked: palettes that differ; 255 in masks without 1 where other masks have 1 without 255; one number that is neither 1
nor 255; gaps; numbers that may count objects; several colours without names; probabilities as gold; masks without any
object.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from PIL import Image as Pillow
from scipy import ndimage

from segdpo.checks import IGNORE
from segdpo.data.mask_files.decode import MaskFormat
from segdpo.data.mask_files.facts import MaskFacts, describe_mask
from segdpo.data.mask_files.numbers import class_numbers
from segdpo.data.mask_files.regions import yolo_regions
from segdpo.data.pixels import open_pixels
from segdpo.files import DataError

BINARY = ("background", "object")
MANY = 30  # numbers that are more likely to count objects, or to be levels of grey, than to be classes
SAME = 5  # masks that all have the numbers 0 … n: classes
BLACK, WHITE = (0, 0, 0), (255, 255, 255)


@dataclass(frozen=True)
class Names:
    """Names of classes, class 0 first, and their colours if a file has them.

    Args:
        classes: the names.
        colors: colour of each, and perhaps of "ignore".
        values: which class ids the file's numbers stand for; none: the numbers are class ids.
        adds_background: the file does not name class 0, the background.
        source: what has them, for messages.
    """

    classes: tuple[str, ...] = ()
    colors: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    values: Mapping[int, int] = field(default_factory=dict)
    adds_background: bool = False
    source: str = "data.classes"


@dataclass(frozen=True)
class FormatGuess:
    """How masks become class ids.

    Args:
        format: the options.
        classes: the names, or those made up for the numbers that were found.
        text: the guess in words, such as "0/255".
    """

    format: MaskFormat
    classes: tuple[str, ...]
    text: str


@dataclass(frozen=True)
class Asked:
    """The words of a question about the format of some masks.

    Args:
        where: the masks.
        option: what answers it.
        predicted: the masks are predictions, so that levels of grey are probabilities.
    """

    where: str
    option: Literal["data.mask_format", "data.candidates_format"]
    predicted: bool = False

    def question(self, expected: str, *answers: tuple[str, str]) -> DataError:
        """Return the error that asks: what was expected and found, and values of the option with what they mean."""
        text = ", or ".join(f"'{self.option}={value}' if {meaning}" for value, meaning in answers)
        return question(f"{self.where}: Expected {expected}{'; set ' if text else ''}{text}.")


def question(message: str) -> DataError:
    """Return the error that asks for an option."""
    return DataError(message, "question")


def guess_format(samples: Mapping[str, bytes], names: Names, asked: Asked) -> FormatGuess:
    """Return how masks become class ids.

    Args:
        samples: some of the masks, by their names.
        names: the classes, if they are known.
        asked: the words of a question.

    Raises:
        DataError: it is not clear; the message has the option to set.
    """
    if all(name.lower().endswith(".txt") for name in samples):
        return _polygons(samples, names)
    facts = _described(samples)
    if lossy := [name for name, one in facts.items() if one.lossy]:
        raise asked.question(
            f"masks that store numbers but {lossy[0]} is a JPEG, which changes them",
            ("{kind:probabilities}", "at least half of white is the object; better save masks as PNG"),
        )
    if any(not one.whole or (one.dtype.startswith("float") and len(one.shape) > 2) for one in facts.values()):
        return _probabilities(asked)
    known = {tuple(colour) for colour in names.colors.values()}
    if any(one.values is None and one.colors != {} and not one.grey for one in facts.values()) or (
        known and all(one.colors is not None and _colours_of(one) <= known for one in facts.values())
    ):
        return _colours(facts, names, asked)
    palettes = [one for one in facts.values() if one.mode == "P"]
    if palettes and len(names.classes) in (0, 2) and all(_colours_of(one) <= {BLACK, WHITE} for one in palettes):
        # The index of white may be 0, and another one in each file.
        classes = names.classes or BINARY
        colors = dict(zip(classes, (BLACK, WHITE), strict=True))
        return FormatGuess(MaskFormat("colors", colors=colors), classes, "black/white")
    if palettes:
        _check_palettes({name: samples[name] for name, one in facts.items() if one.mode == "P"}, facts, asked)
    return _numbers(facts, samples, names, asked)


def _check_palettes(samples: Mapping[str, bytes], facts: Mapping[str, MaskFacts], asked: Asked) -> None:
    """Ask what counts where an index has another colour in another mask, or black is not the first index."""
    seen: dict[int, tuple[int, ...]] = {}
    for name, data in samples.items():
        image = open_pixels(data, name)
        parts = image.getpalette("RGB") if isinstance(image, Pillow.Image) else None
        for number in sorted(_numbers_of(facts[name])):
            colour = tuple((parts or [])[3 * number : 3 * number + 3])
            if seen.setdefault(number, colour) != colour:
                raise _about_palettes([facts[one] for one in samples], asked)
    if BLACK in seen.values() and seen.get(0, BLACK) != BLACK:
        raise _about_palettes([facts[one] for one in samples], asked)


def _about_palettes(palettes: Sequence[MaskFacts], asked: Asked) -> DataError:
    colours = sorted(set().union(*(_colours_of(one) for one in palettes)))
    example = ",".join(f"class_{k}:{list(colour)}" for k, colour in enumerate(colours)).replace(" ", "")
    numbers = sorted(set().union(*(_numbers_of(one) for one in palettes)))
    return asked.question(
        "palettes with the same colours in the same order but got others, so that an index is not a class",
        (f"{{kind:colors,colors:{{{example}}}}}", "these are their names; write yours in place of class_0 …"),
        (_values({number: number for number in numbers}), "the indices count all the same"),
    )


def _described(samples: Mapping[str, bytes]) -> dict[str, MaskFacts]:
    """Return what the masks hold that can be decoded; the check of the whole folder names the others."""
    facts, errors = {}, []
    for name, data in samples.items():
        try:
            facts[name] = describe_mask(data, name)
        except DataError as error:
            errors.append(error)
    if not facts:
        raise errors[0]
    return facts


def _polygons(samples: Mapping[str, bytes], names: Names) -> FormatGuess:
    """Text files of YOLO: they count classes from 0, and class 0 of ours is what no polygon covers."""
    labels = {region.label for name, data in samples.items() for region in yolo_regions(data, name, (1, 1))}
    top = max((label for label in labels if isinstance(label, int)), default=0)
    made_up = ("background", *(f"class_{number}" for number in range(top + 1)))
    classes = names.classes or made_up
    if names.values.get(top, top + 1) >= len(classes):
        raise question(
            f"{next(iter(samples))}: Expected polygons of {len(classes) - 1} classes ({names.source}: "
            f"{', '.join(classes)}) but got number {top}; name all with data.classes=[background,…]."
        )
    return FormatGuess(MaskFormat("yolo", values=names.values), classes, "polygons")


def _probabilities(asked: Asked) -> FormatGuess:
    if asked.predicted:
        return FormatGuess(MaskFormat("probabilities"), (), "probabilities")
    raise asked.question(
        "class ids but got probabilities", ("{kind:probabilities}", "what has at least .5 is the object")
    )


def _colours_of(facts: MaskFacts) -> set[tuple[int, ...]]:
    """Return the colours; opaque ones as three numbers."""
    found = set(facts.colors or ())
    return {colour[:3] for colour in found} if all(colour[3:] in ((), (255,)) for colour in found) else found


def _colours(facts: Mapping[str, MaskFacts], names: Names, asked: Asked) -> FormatGuess:
    found = sorted(set().union(*(_colours_of(one) for one in facts.values())))
    many = [name for name, one in facts.items() if one.colors is None] if len(found) <= MANY else list(facts)
    if many:
        raise asked.question(
            f"a colour a class but {many[0]} has more than {MANY}; save masks without smoothed edges",
            ("{kind:instances}", "each object has a colour"),
        )
    if names.colors:
        known = set(names.colors.values())
        for name, one in facts.items():
            if unknown := sorted(_colours_of(one) - known):
                raise asked.question(
                    f"the colours of {names.source} but {name} has {list(unknown[0])} too; add it there, "
                    "under the name ignore if it does not count"
                )
        return FormatGuess(MaskFormat("colors", colors=names.colors), names.classes, f"colours of {names.source}")
    dark = [colour for colour in found if colour[:3] == BLACK]
    if len(found) == 2 and len(dark) == 1 and len(names.classes) in (0, 2):
        classes = names.classes or BINARY
        colors = dict(zip(classes, sorted(found, key=lambda colour: colour[:3] != BLACK), strict=True))
        return FormatGuess(MaskFormat("colors", colors=colors), classes, "black/" + _hex(colors[classes[1]]))
    labels = names.classes if len(names.classes) == len(found) else [f"class_{k}" for k in range(len(found))]
    example = ",".join(f"{label}:{list(colour)}" for label, colour in zip(labels, found, strict=True)).replace(" ", "")
    raise asked.question(
        f"to know which colour is which class but got {len(found)} colours, and no file that names them",
        (f"{{kind:colors,colors:{{{example}}}}}", "these are their names; write yours in place of class_0 …"),
    )


def _numbers(facts: Mapping[str, MaskFacts], samples: Mapping[str, bytes], names: Names, asked: Asked) -> FormatGuess:
    found = sorted(set().union(*(_numbers_of(one) for one in facts.values())))
    ids = [number for number in found if number not in (0, IGNORE)]
    if found[0] < 0:
        values = {number: max(number, 0) for number in found} | {found[0]: IGNORE}
        raise asked.question(f"numbers from 0 on but got {found[0]}", (_values(values), "it means ignore"))
    if found in ([0], [IGNORE]):
        raise asked.question(
            f"masks with an object but all {len(facts)} that were looked at are {found[0]} all over",
            (_values({0: 0, 1: 1}), "1 is the object"),
            (_values({0: 0, IGNORE: 1}), "255 is the object"),
        )
    if not ids:
        return _black_and_white(names, asked)
    if ids[-1] > IGNORE:
        return _large_numbers(facts, found, names, asked)
    if asked.predicted and len(found) > MANY:
        return _probabilities(asked)
    if IGNORE in found:
        _check_ignore(facts, asked)
    if names.classes:
        return _ids_of_names(found, ids, names, asked)
    _check_gaps(ids, [number for number in found if number == IGNORE], asked)
    if ids[-1] > 1:
        _check_objects(facts, samples, ids, asked)
    return _ids(found, BINARY if ids == [1] else ("background", *(f"class_{number}" for number in ids)))


def _numbers_of(facts: MaskFacts) -> set[int]:
    if facts.values is None:
        return {int(facts.low), int(facts.high)}
    return {int(value) for value in facts.values}


def _ids_of_names(found: list[int], ids: list[int], names: Names, asked: Asked) -> FormatGuess:
    values = {0: 0, **names.values} if 0 not in names.values else names.values
    if names.values and not (names.adds_background and 0 in names.values):
        if set(ids) <= values.keys():
            ignore = {IGNORE: IGNORE} if IGNORE in found else {}
            return _strict({**values, **ignore}, names.classes, f"numbers of {names.source}")
    elif names.adds_background and ids[-1] < len(names.classes) - 1:
        whole, short = ",".join(names.classes), ",".join(names.classes[1:])
        raise question(
            f"{asked.where}: Expected to know whether 0 is background or {names.classes[1]!r}, the first class of "
            f"{names.source}, but got numbers up to {ids[-1]}; set 'data.classes=[{whole}]' or "
            f"'data.classes=[{short}]'."
        )
    elif ids[-1] < len(names.classes):
        return _ids(found, names.classes)
    raise asked.question(
        f"numbers of {len(names.classes)} classes ({', '.join(names.classes)}, {names.source}) but got {ids[-1]}",
        (
            _values({number: min(k, len(names.classes) - 1) for k, number in enumerate([0, *ids])}),
            "these are their ids",
        ),
    )


def _black_and_white(names: Names, asked: Asked) -> FormatGuess:
    if len(names.classes) > 2:
        raise asked.question(
            f"class ids of {len(names.classes)} classes ({', '.join(names.classes)}) but got 0 and 255 alone",
            (_values({0: 0, IGNORE: 1}), f"255 is {names.classes[1]}"),
            (_values({0: 0, IGNORE: IGNORE}), "255 means ignore"),
        )
    return _strict({0: 0, IGNORE: 1}, names.classes or BINARY, "0/255")


def _large_numbers(facts: Mapping[str, MaskFacts], found: list[int], names: Names, asked: Asked) -> FormatGuess:
    """Numbers above 255 are no class ids; if there are few gaps, they count objects."""
    if found == [0, 65535] and len(names.classes) in (0, 2):
        return _strict({0: 0, 65535: 1}, names.classes or BINARY, "0/65535")
    dense = all(one.values is not None and 2 * len(one.values) >= one.high for one in facts.values())
    if not dense or len(names.classes) > 2:
        raise asked.question(
            f"class ids up to 255 but got numbers up to {found[-1]}",
            ("{kind:instances}", "they number objects"),
            ("{kind:probabilities}", "they are probabilities, 65535 for 1"),
        )
    return FormatGuess(MaskFormat("instances"), names.classes or BINARY, "numbers of objects")


def _check_ignore(facts: Mapping[str, MaskFacts], asked: Asked) -> None:
    """Ask what 255 is where no mask has it together with another number above 0."""
    found = {name: _numbers_of(one) for name, one in facts.items()}
    if any(IGNORE in numbers and numbers - {0, IGNORE} for numbers in found.values()):
        return
    white = next(name for name, numbers in found.items() if IGNORE in numbers)
    others = {number for numbers in found.values() for number in numbers} - {0, IGNORE}
    same = {number: number for number in (0, *sorted(others))}
    raise asked.question(
        f"to know what 255 is but {white} has 0 and 255, and other masks have {_shown(sorted(others))} without 255",
        (_values({**same, IGNORE: IGNORE}), "255 means ignore"),
        (_values({**same, IGNORE: 1}), "255 is the object"),
    )


def _check_gaps(ids: list[int], white: list[int], asked: Asked) -> None:
    """Ask what the numbers are where some are left out; `white` has 255 if it is among them."""
    if ids == list(range(1, ids[-1] + 1)):
        return
    if len(ids) == 1 and white:
        raise asked.question(
            f"to know what 255 is but got {_shown([0, *ids, *white])}",
            (_values({0: 0, ids[0]: 1, IGNORE: 2}), "each number is a class"),
            (_values({0: 0, ids[0]: 1, IGNORE: IGNORE}), "255 means ignore"),
            (_values({0: 0, ids[0]: IGNORE, IGNORE: 1}), f"255 is the object and {ids[0]} means ignore"),
        )
    if len(ids) == 1:
        raise asked.question(
            f"1 or 255 as the number of the object but got 0 and {ids[0]}",
            (_values({0: 0, ids[0]: 1}), "it is the object"),
        )
    classes = "{kind:probabilities}", "they are probabilities"
    if len(ids) <= MANY:
        classes = _values({number: k for k, number in enumerate([0, *ids, *white])}), "each number is a class"
    raise asked.question(
        f"class ids without a gap but got {_shown([0, *ids, *white])}",
        classes,
        ("{kind:instances}", "they number objects"),
    )


def _check_objects(facts: Mapping[str, MaskFacts], samples: Mapping[str, bytes], ids: list[int], asked: Asked) -> None:
    """Ask whether the numbers are classes where they could as well count the objects of each image."""
    tops = {max(_numbers_of(one) - {IGNORE}) for one in facts.values()}
    if ids[-1] < MANY and len(tops) == 1 and len(facts) >= SAME:
        return
    pieces = [count for name, data in samples.items() for count in _pieces(data, name)]
    whole = sum(count == 1 for count in pieces)
    if ids[-1] < MANY and whole < len(pieces) / 2:
        return
    classes = [(_values({number: number for number in (0, *ids)}), "they are classes")] if len(ids) <= MANY else []
    raise asked.question(
        f"to know whether 1 … {ids[-1]} are classes{'' if classes else ', all named in data.classes,'} or number the "
        f"objects of each image ({whole} of {len(pieces)} are one piece)",
        ("{kind:instances}", "they number objects"),
        *classes,
    )


def _pieces(data: bytes, name: str) -> list[int]:
    """Return how many connected regions each number of a mask has."""
    numbers = class_numbers(data, name)
    found = [number for number in np.unique(numbers).tolist() if number not in (0, IGNORE)][:MANY]
    return [int(ndimage.label(numbers == number, np.ones((3, 3)))[1]) for number in found]


def _ids(found: Sequence[int], classes: tuple[str, ...]) -> FormatGuess:
    ids = range(len(classes))
    ignore = {IGNORE: IGNORE} if IGNORE in found else {}
    text = f"0…{ids[-1]}" if len(ids) > 2 else "0/1"
    return _strict(
        {**{number: number for number in ids}, **ignore}, classes, text + (" and 255 for ignore" if ignore else "")
    )


def _strict(values: Mapping[int, int], classes: tuple[str, ...], text: str) -> FormatGuess:
    return FormatGuess(MaskFormat("ids", values=values, only_values=True), classes, text)


def _values(values: Mapping[int, int]) -> str:
    return "{kind:ids,values:{" + ",".join(f"{number}:{class_id}" for number, class_id in values.items()) + "}}"


def _shown(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers[:8])) + (" …" if len(numbers) > 8 else "")


def _hex(colour: Sequence[int]) -> str:
    return "#" + "".join(f"{part:02x}" for part in colour[:3])

"""Mask files of any kind: how what they store becomes class ids uint8 [H, W], with 255 = ignore."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

import cv2
import numpy as np

from segdpo.checks import IGNORE
from segdpo.data.mask_files.label_studio import label_studio_regions
from segdpo.data.mask_files.numbers import (
    WRONG,
    Size,
    chances_of,
    class_numbers,
    colour_codes,
    distinct,
    instance_numbers,
    mask_colours,
)
from segdpo.data.mask_files.regions import Region, coco_regions, decode_code, paint, yolo_regions
from segdpo.data.pixels import Numbers
from segdpo.data.record import Candidates, check_mask
from segdpo.files import DataError
from segdpo.masks import Mask, count_values

Kind = Literal["ids", "colors", "instances", "probabilities", "yolo", "label_studio", "coco_rle"]
Colour = tuple[int, ...]
Classes = tuple[str, ...]


@dataclass(frozen=True)
class MaskFormat:
    """How a mask file becomes class ids.

    Args:
        kind: what the file stores.
            "ids": a class id a pixel: 8-bit grey, palette (the index), 1-bit, 16-bit, .npy, .npz. Grey that is stored
            as RGB is read as grey.
            "colors": a colour a pixel, of RGB, RGBA or a palette.
            "instances": the number of an object a pixel, 0 for none; of RGB, r + 256 g + 65536 b.
            "probabilities": 8- or 16-bit grey from 0 to its largest number, or .npy or .npz from 0 to 1: of the
            foreground [H, W], or of every class [C, H, W] or [H, W, C].
            "yolo": text with one polygon a line: class x y x y …, as parts of width and height.
            "label_studio": JSON of one task: brush strokes, polygons and rectangles.
            "coco_rle": JSON of one run-length code or polygon list, or of a list of annotations.
        values: which class ids the file's numbers stand for, such as {255: 1} for masks of 0 and 255. "ids": others
            are class ids. "instances": others above 0 are `foreground`. "yolo": others are one more (class 0 is what
            no polygon covers). "coco_rle": numbers of categories; others are class ids.
        only_values: of "ids": a number that is not in `values` is an error, also 255.
        colors: the colour of each class, (r, g, b) or (r, g, b, a); that of "ignore" becomes 255.
        foreground: the class of objects and probabilities that name none.
        threshold: of probabilities of the foreground; it belongs to it.
        levels: of probabilities, for `decode_levels`.

    >>> MaskFormat("ids", values={255: 1}).values
    {255: 1}
    >>> MaskFormat("colors", colors={"background": [0, 0, 0], "cell": [255, 0, 0]}).colors
    {'background': (0, 0, 0), 'cell': (255, 0, 0)}
    """

    kind: Kind = "ids"
    values: Mapping[int, int] = field(default_factory=dict)
    only_values: bool = False
    colors: Mapping[str, Colour] = field(default_factory=dict)
    foreground: int = 1
    threshold: float = 0.5
    levels: tuple[float, ...] = (0.2, 0.4, 0.6, 0.8)

    def __post_init__(self) -> None:
        """Check the fields, and make plain numbers of what a yaml holds."""
        if self.kind not in get_args(Kind):
            raise DataError(f"Expected kind to be one of {', '.join(get_args(Kind))} but got {self.kind!r}.", WRONG)
        values = {int(value): int(class_id) for value, class_id in self.values.items()}
        colors = {str(name): tuple(int(part) for part in colour) for name, colour in self.colors.items()}
        levels = tuple(float(level) for level in self.levels)
        for name, found in (("values", values), ("colors", colors), ("levels", levels)):
            object.__setattr__(self, name, found)
        if not all(0 <= class_id <= IGNORE for class_id in (*values.values(), self.foreground)):
            raise DataError(f"Expected class ids from 0 to 255 but got values={values}.", "class")
        if not all(0 < level < 1 for level in (*levels, self.threshold)) or sorted(set(levels)) != list(levels):
            raise DataError(f"Expected levels between 0 and 1 in ascending order but got {levels}, {self.threshold}.")
        _check_colors(colors, required=self.kind == "colors")


def decode_mask(
    data: bytes,
    name: str,
    mask_format: MaskFormat | None = None,
    size: Size | None = None,
    classes: Classes = (),
) -> Mask:
    """Return the class ids in a file's bytes, uint8 [H, W].

    Args:
        data: the file.
        name: what error messages call it.
        mask_format: how to read it; None: class ids as they are stored.
        size: height and width of its image, which the mask must have; polygons need it.
        classes: names of the classes: ids must be below their number, or 255. Colours and labels are named by them.
            (): not checked.

    Raises:
        DataError: if it is damaged, too large, of another size or kind; or has a number, colour or label that is no
            class.

    >>> from segdpo.data.images import encode_mask
    >>> png = encode_mask(np.array([[0, 255], [255, 0]], np.uint8))
    >>> decode_mask(png, "x.png", MaskFormat(values={255: 1}), (2, 2), ("background", "cell")).tolist()
    [[0, 1], [1, 0]]
    """
    mask_format = mask_format or MaskFormat()
    return _checked(_DECODERS[mask_format.kind](data, name, mask_format, size, classes), size, classes, name)


def decode_levels(
    data: bytes, name: str, mask_format: MaskFormat, size: Size | None = None, classes: Classes = ()
) -> Candidates:
    """Return one mask for each level of a probability map; each mask's foreground lies in that of the one before.

    A pixel is foreground at level t where its probability is at least t; of several classes, where all but class 0
    have at least t together, and then of the most probable of them.

    Args:
        data: the file.
        name: what error messages call it.
        mask_format: its `levels`; kind "probabilities".
        size: height and width of its image, which the masks must have.
        classes: names of the classes; of several, the file has a plane for each.

    Returns:
        Masks [K, H, W] in ascending order of levels, named "level-0.2" and so on.
    """
    chances = chances_of(data, name, size, classes)
    if chances.ndim == 2:
        inside, best = chances, np.uint8(mask_format.foreground)
    else:
        inside, best = 1 - chances[0], (1 + chances[1:].argmax(0)).astype(np.uint8)
    masks = np.stack([np.where(inside >= level, best, np.uint8(0)) for level in mask_format.levels])
    for mask in masks:
        _checked(mask, size, classes, name)
    return Candidates(masks, tuple(f"level-{level:g}" for level in mask_format.levels))


def decode_objects(
    data: bytes, name: str, mask_format: MaskFormat, size: Size | None = None, classes: Classes = ()
) -> Iterator[tuple[int, Mask]]:
    """Yield the number and the mask of each object, uint8 [H, W] with its class id and 0 elsewhere.

    Objects of "instances" have the numbers of the file; those of polygons and run-length codes count from 1.

    Raises:
        DataError: the file is not of a kind that has objects, or cannot be decoded.
    """
    if mask_format.kind == "instances":
        numbers = instance_numbers(data, name)
        for number in distinct(numbers, name).tolist():
            class_id = mask_format.values.get(number, mask_format.foreground if number else 0)
            if class_id not in (0, IGNORE):
                yield number, _checked((numbers == number) * np.uint8(class_id), size, classes, name)
    elif mask_format.kind in _REGIONS:
        for number, region in enumerate(_REGIONS[mask_format.kind](data, name, _given(size, name)), 1):
            class_id = _class_of(region, mask_format, classes, name)
            yield number, _checked(decode_code(region.code) * np.uint8(class_id), size, classes, name)
    else:
        found = f"{name}: Expected kind=instances, or polygons, but got kind={mask_format.kind}"
        raise DataError(f"{found}; other files hold no objects.", WRONG)


def _decode_ids(data: bytes, name: str, how: MaskFormat, size: Size | None, classes: Classes) -> Mask:
    numbers = class_numbers(data, name)
    if how.only_values:
        _check_listed(numbers, how.values, name)
    if numbers.dtype == np.uint8 and not how.values:
        return numbers
    if numbers.dtype == np.uint8:
        table = np.arange(256, dtype=np.uint8)
        table[[value for value in how.values if 0 <= value < 256]] = [
            class_id for value, class_id in how.values.items() if 0 <= value < 256
        ]
        return np.asarray(cv2.LUT(numbers, table), np.uint8)
    found = distinct(numbers, name)
    ids = np.array([how.values.get(number, number) for number in found.tolist()])
    if wrong := found[(ids < 0) | (ids > IGNORE)].tolist():
        raise DataError(
            f"{name}: Expected class ids from 0 to 255 but got {numbers.dtype} with {', '.join(map(str, wrong[:5]))} "
            f"({len(wrong)} such numbers); map them with `values`, or set kind=instances if they number objects.",
            "class",
        )
    return ids.astype(np.uint8)[np.searchsorted(found, numbers)]


def _check_listed(numbers: Numbers, values: Mapping[int, int], name: str) -> None:
    listed = np.array(list(values))
    if numbers.dtype == np.uint8 and np.isin(np.flatnonzero(count_values(numbers)), listed).all():
        return
    known = np.isin(numbers, listed)
    if not known.all():
        unknown = ", ".join(f"{number:g}" for number in np.unique(numbers[~known])[:5])
        raise DataError(
            f"{name}: Expected {', '.join(map(str, values))}, the `values`, but {int((~known).sum())} pixels "
            f"have {unknown}; say in `values` which class that is (255 for ignore), or correct the mask.",
            "class",
        )


def _decode_colors(data: bytes, name: str, how: MaskFormat, size: Size | None, classes: Classes) -> Mask:
    colours = mask_colours(data, name)
    length = len(next(iter(how.colors.values())))
    if length == 3 and colours.shape[2] == 4 and colours[..., 3].min() < 255:
        raise DataError(
            f"{name}: Expected opaque colours but some are transparent; give `colors` as [red, green, blue, alpha].",
            WRONG,
        )
    if length == 4 and colours.shape[2] == 3:
        colours = np.concatenate([colours, np.full_like(colours[..., :1], 255)], 2)
    names = classes or tuple(name for name in how.colors if name != "ignore")
    codes = colour_codes(colours[..., :length])
    mask, known = np.zeros(codes.shape, np.uint8), np.zeros(codes.shape, bool)
    for label, colour in how.colors.items():
        found = codes == colour_codes(np.array(colour))
        mask[found] = class_named(label, names, name)
        known |= found
    if not known.all():
        unknown, counts = np.unique(codes[~known], return_counts=True)
        first = int(counts.argmax())
        parts = [int(unknown[first]) >> 8 * k & 255 for k in range(length)]
        raise DataError(
            f"{name}: Expected the colours of `colors` but {int((~known).sum())} pixels have {len(unknown)} other "
            f"colours, {int(counts[first])} of them {parts}; add it to `colors`, "
            "under the name ignore if it does not count.",
            "class",
        )
    return mask


def class_named(label: str, classes: Classes, name: str) -> int:
    """Return the id of a class; 255 of "ignore" where no class is called so."""
    if label in classes:
        return classes.index(label)
    if label == "ignore":
        return IGNORE
    raise DataError(f"{name}: Expected a label of {list(classes)} but got {label!r}; add it to `classes`.", "class")


def _decode_instances(data: bytes, name: str, how: MaskFormat, size: Size | None, classes: Classes) -> Mask:
    numbers = instance_numbers(data, name)
    mask = np.where(numbers > 0, np.uint8(how.foreground), np.uint8(0))
    for number, class_id in how.values.items():
        mask[numbers == number] = class_id
    return mask


def _decode_probabilities(data: bytes, name: str, how: MaskFormat, size: Size | None, classes: Classes) -> Mask:
    chances = chances_of(data, name, size, classes)
    if chances.ndim == 3:
        return np.asarray(chances.argmax(0), np.uint8)
    return np.where(chances >= how.threshold, np.uint8(how.foreground), np.uint8(0))


def _decode_regions(data: bytes, name: str, how: MaskFormat, size: Size | None, classes: Classes) -> Mask:
    size = _given(size, name)
    regions = _REGIONS[how.kind](data, name, size)
    return paint([(region.code, _class_of(region, how, classes, name)) for region in regions], size)


def _given(size: Size | None, name: str) -> Size:
    if size is None:
        raise DataError(f"{name}: Expected the size of the image, which polygons are drawn into, but got none.", "size")
    return size


def _class_of(region: Region, mask_format: MaskFormat, classes: Classes, name: str) -> int:
    label = region.label
    if label is None:
        return mask_format.foreground
    if isinstance(label, str):
        return class_named(label, classes, name)
    found = mask_format.values.get(label, label + 1 if mask_format.kind == "yolo" else label)
    if (label < 0 and label not in mask_format.values) or not 0 <= found <= IGNORE:
        raise DataError(f"{name}: Expected a class from 0 to 255 but got {label}; map it with `values`.", "class")
    return found


def _checked(mask: Mask, size: Size | None, classes: Classes, name: str) -> Mask:
    return check_mask(mask, size or mask.shape, classes or ("",) * IGNORE, f"{name}: ")


def _check_colors(colors: Mapping[str, Colour], required: bool) -> None:
    lengths = {len(colour) for colour in colors.values()}
    proper = all(0 <= part <= 255 for colour in colors.values() for part in colour)
    if colors and not (proper and lengths in ({3}, {4})):
        raise DataError(f"Expected colors as [red, green, blue] from 0 to 255 but got {dict(colors)}.", "class")
    if len(set(colors.values())) < len(colors) or (required and not colors):
        raise DataError(f"Expected a different colour for each class but got {dict(colors)}.", "class")


_Decoder = Callable[[bytes, str, MaskFormat, Size | None, Classes], Mask]
_REGIONS: dict[str, Callable[[bytes, str, Size], list[Region]]] = {
    "yolo": yolo_regions,
    "label_studio": label_studio_regions,
    "coco_rle": coco_regions,
}
_DECODERS: dict[str, _Decoder] = {
    "ids": _decode_ids,
    "colors": _decode_colors,
    "instances": _decode_instances,
    "probabilities": _decode_probabilities,
    **dict.fromkeys(_REGIONS, _decode_regions),
}

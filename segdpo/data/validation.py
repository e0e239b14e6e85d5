"""What ids, names, masks and records may hold."""

import math
import unicodedata

import numpy as np

from segdpo.checks import IGNORE
from segdpo.data.record import Record
from segdpo.files import DataError
from segdpo.masks import Mask

SPLITS = ("train", "val", "test", "")


def check_id(value: str, where: str = "") -> str:
    """Return `value` if it can be a record's id.

    Spaces, unicode and `a/b` (a folder inside the folder) are fine; what is empty, absolute, leaves the folder or
    holds control characters is not. `where` opens the message: "manifest.jsonl, line 3: ".
    """
    parts = value.split("/")
    if "\\" in value or any(part in ("", ".", "..") for part in parts) or not _printable(value):
        raise DataError(
            f"{where}Expected an id that stays inside its folder but got {value!r}; "
            "use letters, digits, spaces and single '/', without '..', '\\', a leading '/' or control characters.",
            "id",
        )
    return value


def check_mask_name(value: str, where: str = "") -> str:
    """Return `value` if it can name a mask: one folder name, without the signs that the CSV manifest separates by."""
    if not value or value.startswith(".") or any(sign in value for sign in "/\\|>") or not _printable(value):
        raise DataError(
            f"{where}Expected a mask name that can be a folder's name but got {value!r}; "
            "leave out '/', '\\', '|', '>', a leading '.' and control characters.",
            "id",
        )
    return value


def check_split(value: str, where: str = "") -> str:
    """Return `value` if it is a split's name or "" (not yet split)."""
    if value not in SPLITS:
        raise DataError(f"{where}Expected split 'train', 'val', 'test' or '' but got {value!r}.", "manifest")
    return value


def check_classes(classes: tuple[str, ...] | list[str], where: str = "") -> tuple[str, ...]:
    """Return the class names as a tuple: 2 to 255 different, non-empty names, since 255 itself is ignore."""
    names = tuple(classes)
    proper = all(isinstance(name, str) and name and is_text(name) for name in names)
    if not (proper and 2 <= len(names) <= 255 and len(set(names)) == len(names)):
        raise DataError(f"{where}Expected 2 to 255 different class names but got {list(names)!r}.", "class")
    return names


def is_text(value: str) -> bool:
    """Tell whether a string can be written as UTF-8; JSON may name halves of characters (lone surrogates)."""
    try:
        # One look at a flag of the string in most cases.
        return value.isascii() or bool(value.encode())
    except UnicodeEncodeError:
        return False


def _printable(value: str) -> bool:
    """Tell whether all characters can be in a file name: no control characters (Cc), no lone surrogates (Cs)."""
    # isprintable() is stricter and fast; what it refuses is looked at by category.
    return value.isprintable() or not any(unicodedata.category(character) in ("Cc", "Cs") for character in value)


def check_record(record: Record, classes: tuple[str, ...]) -> Record:
    """Return the record if id, sizes, class ids and preferences fit together; else raise a DataError that names it."""
    where = f"{check_id(record.id)}: "
    _check_image(record, where)
    _check_masks(record, classes, where)
    check_preferences(record, where)
    check_split(record.split, where)
    texts = (record.group, *(text for item in record.meta.items() for text in item))
    if not all(isinstance(text, str) and is_text(text) for text in texts):
        raise DataError(
            f"{where}Expected group and meta as text but got {record.group!r} and {record.meta!r}.", "manifest"
        )
    return record


def check_mask(mask: Mask, size: tuple[int, ...], classes: tuple[str, ...], where: str) -> Mask:
    """Return the mask if it has the image's size and holds only class ids and 255."""
    if mask.shape != size:
        raise DataError(
            f"{where}Expected a mask of the image's size {'×'.join(map(str, size))} (height × width) but got "
            f"{'×'.join(map(str, mask.shape))}; draw it on the image it belongs to.",
            "size",
        )
    strange = (mask >= len(classes)) & (mask != IGNORE)
    if strange.any():
        found = ", ".join(map(str, np.unique(mask[strange])[:5]))
        raise DataError(
            f"{where}Expected class ids below {len(classes)} or 255 (ignore) but got {found}; "
            "add the class to `classes`, or map the value with `values`.",
            "class",
        )
    return mask


def check_preferences(record: Record, where: str) -> None:
    """Raise if a pair or the ranking names a mask that is not there, or prefers a mask to itself."""
    count = len(record.mask_names)
    for pair in record.pairs:
        if not (0 <= pair.chosen < count and 0 <= pair.rejected < count) or pair.chosen == pair.rejected:
            raise DataError(
                f"{where}Expected two different masks of {count} but got chosen {pair.chosen}, "
                f"rejected {pair.rejected}.",
                "preference",
            )
        if not (math.isfinite(pair.weight) and pair.weight >= 0):
            raise DataError(f"{where}Expected a finite weight of at least 0 but got {pair.weight}.", "preference")
    ranking = record.ranking
    if len(set(ranking)) != len(ranking) or len(ranking) == 1 or not all(0 <= k < count for k in ranking):
        raise DataError(
            f"{where}Expected a ranking of two or more different masks of {count} but got {list(ranking)}.",
            "preference",
        )


def _check_image(record: Record, where: str) -> None:
    image = record.image
    if image.dtype != np.uint8 or image.ndim != 3 or 0 in image.shape:
        raise DataError(f"{where}Expected an image uint8 [H, W, C] but got {image.dtype} {list(image.shape)}.", "size")


def _check_masks(record: Record, classes: tuple[str, ...], where: str) -> None:
    masks, names, size = record.masks, record.mask_names, record.image.shape[:2]
    if masks.dtype != np.uint8 or masks.ndim != 3 or len(masks) != len(names) or len(masks) > 255:
        raise DataError(
            f"{where}Expected uint8 [K, H, W] with K = {len(names)} (the mask names; at most 255) but got "
            f"{masks.dtype} {list(masks.shape)}.",
            "size",
        )
    if len(set(names)) != len(names):
        raise DataError(f"{where}Expected a different name for each mask but got {list(names)}.", "id")
    for name, mask in zip(names, masks, strict=True):
        check_mask(mask, size, classes, f"{where}mask {check_mask_name(name, where)!r}: ")
    if record.gold is not None:
        if record.gold.dtype != np.uint8:
            raise DataError(f"{where}Expected gold uint8 but got {record.gold.dtype}.", "size")
        check_mask(record.gold, size, classes, f"{where}gold: ")

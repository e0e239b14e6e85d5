"""Ids and mask names become file names: what they may not hold, so that no file lands outside its folder."""

import unicodedata

from segdpo.data.errors import DataError

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

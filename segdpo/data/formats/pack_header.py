"""The header of a packed record, checked each time it is read: nothing in it is believed, whatever its checksum says.

A record is read for every training item, so the checks are plain comparisons; what is wrong is said by key.
"""

import json
import sys
from functools import lru_cache
from typing import Any

from segdpo.data.images import MAX_PIXELS, SUFFIXES
from segdpo.data.record import SPLITS, check_id, check_mask_name, is_text
from segdpo.files import DataError

# How many bytes the pixels of an image, or all masks of a record, may take once they are decompressed.
MAX_BYTES = 2**30
FIX = "write the pack again from a source that you trust."
KEYS = frozenset(
    ("id", "suffix", "image_bytes", "shape", "masks", "gold", "pairs", "ranking", "group", "split", "meta")
)
ENDINGS = frozenset((*SUFFIXES, ""))
LARGEST = sys.float_info.max


def parse_json(data: bytes, where: str) -> Any:
    """Return the JSON in `data`; strings that no file could hold (lone surrogates) are refused."""
    try:
        text = str(data, "utf-8")
        values = json.loads(text)
        # A lone surrogate can only have been written as \\ud800; what our writer escapes is rare.
        if "\\u" not in text or is_text(json.dumps(values, ensure_ascii=False)):
            return values
        error: Exception = ValueError("half a character")
    except (ValueError, RecursionError, MemoryError) as caught:
        error = caught
    raise DataError(f"{where}: Expected JSON but got {error or type(error).__name__}; {FIX}", "damaged") from None


def check_header(header: Any, where: str) -> dict[str, Any]:
    """Return the header if each value is what `encode_record` may write; else raise a DataError that names the key."""
    if type(header) is not dict or header.keys() != KEYS:
        raise DataError(f"{where}: Expected a header of {sorted(KEYS)} but got {header!r:.200}; {FIX}", "damaged")
    try:
        key = _wrong_key(header)
    except DataError as error:
        raise DataError(f"{where}: {error}", error.kind) from None
    if key:
        raise DataError(f"{where}: Expected a sound {key!r} but got {header[key]!r:.200}; {FIX}", "damaged")
    return header


def _wrong_key(header: dict[str, Any]) -> str:
    """Return the first key whose value is outside of its grammar, "" if none is."""
    if type(header["id"]) is not str:
        return "id"
    check_id(header["id"])
    masks = header["masks"]
    if type(masks) is not list or not all(type(name) is str for name in masks) or not _are_names(tuple(masks)):
        return "masks"
    return (
        _wrong_text(header)
        or _wrong_image(header, len(masks))
        or ("" if _are_pairs(header["pairs"], len(masks)) else "pairs")
        or ("" if _is_ranking(header["ranking"], len(masks)) else "ranking")
    )


# The records of a data set mostly have the same masks.
@lru_cache(maxsize=1024)
def _are_names(names: tuple[str, ...]) -> bool:
    for name in names:
        check_mask_name(name)
    return len(names) <= 255 and len(set(names)) == len(names)


def _wrong_text(header: dict[str, Any]) -> str:
    suffix, split, meta = header["suffix"], header["split"], header["meta"]
    if type(suffix) is not str or suffix.lower() not in ENDINGS:
        return "suffix"
    if type(header["group"]) is not str:
        return "group"
    if type(split) is not str or split not in SPLITS:
        return "split"
    return "" if type(meta) is dict and all(type(text) is str for text in meta.values()) else "meta"


def _wrong_image(header: dict[str, Any], masks: int) -> str:
    shape, gold = header["shape"], header["gold"]
    if type(header["image_bytes"]) is not int or header["image_bytes"] < 1:
        return "image_bytes"
    if type(gold) is not bool:
        return "gold"
    if type(shape) is not list or len(shape) != 3:
        return "shape"
    height, width, channels = shape
    whole = type(height) is type(width) is type(channels) is int and height > 0 and width > 0 and channels > 0
    bounded = whole and height * width <= MAX_PIXELS and height * width * max(channels, masks + gold) <= MAX_BYTES
    return "" if bounded else "shape"


def _are_pairs(pairs: Any, masks: int) -> bool:
    if type(pairs) is not list:
        return False
    try:
        for a, b, weight in pairs:
            if not (type(a) is type(b) is int and 0 <= a < masks and 0 <= b < masks and a != b):
                return False
            # False for NaN, too.
            if not (type(weight) in (float, int) and 0 <= weight <= LARGEST):
                return False
    except (TypeError, ValueError):
        return False
    return True


def _is_ranking(ranking: Any, masks: int) -> bool:
    if type(ranking) is not list or not all(type(k) is int and 0 <= k < masks for k in ranking):
        return False
    return len(ranking) != 1 and len(set(ranking)) == len(ranking)

"""One packed record as bytes: a header, the image, and all masks in one zstd frame.

    4 bytes    length of the header, little-endian
    header     JSON with the keys `KEYS`
    image      the bytes of its file; with the suffix "", its pixels in a zstd frame
    masks      zstd frame of uint8 [K, H, W]; with gold, [K + 1, H, W]

Nothing in a header is trusted, whatever the record's checksum says. It is checked on each read, so the checks are plain
comparisons.
"""

import json
import math
import struct
import sys
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import UInt8
from PIL import Image as Pillow

from segdpo.data.images import SUFFIXES, ImageFile, decode_image, encode_image
from segdpo.data.pixels import MAX_PIXELS
from segdpo.data.record import SPLITS, Image, Pair, Record, check_id, check_mask_name, is_text
from segdpo.files import DataError

# How many bytes the pixels of an image, or all masks of a record, may take once they are decompressed.
MAX_BYTES = 2**30
FIX = "write the pack again from a source that you trust."
KEYS = frozenset(
    ("id", "suffix", "image_bytes", "shape", "masks", "gold", "pairs", "ranking", "group", "split", "meta")
)
LENGTH = struct.Struct("<I")
# Level 3 reads as fast as level 1 and writes nearly so; higher ones save a tenth and write several times slower.
ZSTD = pa.Codec("zstd", compression_level=3)
ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"


def encode_record(record: Record, file: ImageFile | None) -> tuple[bytes, dict[str, Any]]:
    """Return the record's bytes and its header; without the image's file, its pixels are stored."""
    file = file or ImageFile("", encode_pixels(record.image))
    planes = record.masks if record.gold is None else np.concatenate([record.masks, record.gold[None]])
    header = {
        "id": record.id,
        "suffix": file.suffix,
        "image_bytes": len(file.data),
        "shape": list(record.image.shape),
        "masks": list(record.mask_names),
        "gold": record.gold is not None,
        "pairs": [[pair.chosen, pair.rejected, pair.weight] for pair in record.pairs],
        "ranking": list(record.ranking),
        "group": record.group,
        "split": record.split,
        "meta": record.meta,
    }
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":"), default=_plain_number).encode()
    # What a reader would refuse is not written.
    header = check_header(json.loads(text), repr(record.id))
    return LENGTH.pack(len(text)) + text + file.data + compress(planes.tobytes()), header


def decode_record(data: bytes, name: str, channels: int | None) -> Record:
    """Return the record in `data`, which the caller has compared with its checksum."""
    header, start, end = _split(data, name)
    height, width, _ = header["shape"]
    masks = header["masks"]
    count = len(masks) + header["gold"]
    where = f"{name}, record {header['id']!r}"
    # The view spares a copy of all masks.
    planes = decompress(memoryview(data)[end:], count * height * width, where).reshape(count, height, width)
    return Record(
        id=header["id"],
        image=_decode_image(header, data[start:end], where, channels),
        masks=planes[: len(masks)],
        mask_names=tuple(masks),
        pairs=tuple(Pair(*pair) for pair in header["pairs"]),
        ranking=tuple(header["ranking"]),
        gold=planes[-1] if header["gold"] else None,
        group=header["group"],
        split=header["split"],
        meta=header["meta"],
    )


def decode_image_file(data: bytes, name: str) -> ImageFile:
    """Return the image's file in `data` as it was given, or a PNG of its pixels."""
    header, start, end = _split(data, name)
    if header["suffix"]:
        return ImageFile(header["suffix"], data[start:end])
    return encode_image(decode_pixels(data[start:end], header["shape"], f"{name}, record {header['id']!r}"))


def encode_pixels(image: Image) -> bytes:
    """Return the compressed pixels of an image uint8 [H, W, C]."""
    # Differences of uint8 wrap round, and so do the sums that undo them: nothing is lost.
    rows = np.diff(image, axis=0, prepend=np.zeros_like(image[:1]))
    return compress(rows.tobytes())


def decode_pixels(data: bytes, shape: tuple[int, int, int], name: str) -> Image:
    """Return the image uint8 [H, W, C] of `shape` in `data`."""
    rows = decompress(data, math.prod(shape), name).reshape(shape)
    # Row by row this is four times as fast as cumsum.
    for above, row in pairwise(rows):
        row += above
    return rows


def compress(data: bytes) -> bytes:
    """Return a zstd frame of `data`, with its size in the frame's header."""
    return bytes(ZSTD.compress(data, asbytes=True))


def decompress(frame: bytes | memoryview, size: int, name: str) -> UInt8[np.ndarray, "size"]:
    """Return the `size` bytes in a zstd frame, writable; a frame that holds more or fewer is a DataError."""
    try:
        # No more than `size` bytes are reserved, whatever the frame says.
        return np.frombuffer(ZSTD.decompress(frame, size), np.uint8)
    except (pa.ArrowException, OSError, MemoryError) as error:
        raise DataError(
            f"{name}: Expected a frame of {size} bytes but it cannot be decompressed ({error}); restore the file.",
            "damaged",
        ) from None


def frame_size(frame: bytes) -> int:
    """Return how many bytes a zstd frame says that it holds (RFC 8878, section 3.1.1); -1 if it does not say."""
    if len(frame) < 5 or not frame.startswith(ZSTD_MAGIC):
        return -1
    descriptor = frame[4]
    single_segment = descriptor >> 5 & 1
    length = (single_segment, 2, 4, 8)[descriptor >> 6]
    start = 6 - single_segment + (0, 1, 2, 4)[descriptor & 3]
    size = int.from_bytes(frame[start : start + length], "little")
    return -1 if length == 0 else size + 256 * (length == 2)


def parse_packed(data: bytes, where: str) -> Any:
    """Return the JSON in `data`; strings that no file could hold (lone surrogates) are a DataError."""
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
        raise DataError(f"{where}: Expected a valid {key!r} but got {header[key]!r:.200}; {FIX}", "damaged")
    return header


def _wrong_key(header: dict[str, Any]) -> str:
    """Return the first key whose value is not allowed, "" if there is none."""
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
    if type(suffix) is not str or suffix.lower() not in ("", *SUFFIXES):
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
            if not (type(weight) in (float, int) and 0 <= weight <= sys.float_info.max):
                return False
    except (TypeError, ValueError):
        return False
    return True


def _is_ranking(ranking: Any, masks: int) -> bool:
    if type(ranking) is not list or not all(type(k) is int and 0 <= k < masks for k in ranking):
        return False
    return len(ranking) != 1 and len(set(ranking)) == len(ranking)


def _split(data: bytes, name: str) -> tuple[dict[str, Any], int, int]:
    """Return the header, and where the image begins and ends."""
    start = LENGTH.size + (LENGTH.unpack_from(data)[0] if len(data) >= LENGTH.size else len(data))
    if start > len(data):
        raise DataError(f"{name}: Expected a header of {start} bytes but the record has {len(data)}; {FIX}", "damaged")
    header = check_header(parse_packed(data[LENGTH.size : start], name), name)
    end = start + header["image_bytes"]
    if end > len(data):
        raise DataError(
            f"{name}, record {header['id']!r}: Expected {header['image_bytes']} bytes of image after byte {start} but "
            f"the record has {len(data)}; {FIX}",
            "damaged",
        )
    return header, start, end


def _decode_image(header: dict[str, Any], data: bytes, where: str, channels: int | None) -> Image:
    shape = header["shape"]
    if not header["suffix"]:
        return _with_channels(decode_pixels(data, shape, where), channels, where)
    image = decode_image(data, where, channels)
    if image.shape[0] != shape[0] or image.shape[1] != shape[1]:
        raise DataError(f"{where}: Expected an image of {shape} but got {list(image.shape)}; {FIX}", "size")
    return image


def _with_channels(image: Image, channels: int | None, name: str) -> Image:
    """Return the image as RGB for 3 `channels`, grey for 1, as it is for None."""
    found = image.shape[2]
    if channels in (None, found):
        return image
    if found not in (1, 3, 4):
        raise DataError(f"{name}: Expected 1, 3 or 4 channels but got {found}; read it with channels=None.")
    if found == 1:
        return np.repeat(image, 3, axis=2)
    colours = np.ascontiguousarray(image[..., :3])
    return colours if channels == 3 else np.array(Pillow.fromarray(colours).convert("L"))[..., None]


def _plain_number(value: Any) -> Any:
    """Return a NumPy number as Python's: judges and questions count in NumPy."""
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"Expected numbers in pairs and ranking but got {value!r}.")

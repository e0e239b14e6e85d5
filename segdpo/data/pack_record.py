"""One record as bytes: length of the header, header (JSON), the image, all masks and gold in one zstd frame.

The image is its file as it was, or its pixels (pixels.py; then the header's suffix is "").
"""

import json
import struct
from typing import Any

import numpy as np
import zstandard

from segdpo.data.errors import DataError
from segdpo.data.image_files import ImageFile, decode_image, encode_image
from segdpo.data.pack_header import FIX, check_header, parse_json
from segdpo.data.pixels import decode_pixels, decompress, encode_pixels, with_channels
from segdpo.pairs.record import Image, Pair, Record

LENGTH = struct.Struct("<I")
# Level 3 reads as fast as level 1 and writes nearly so; higher ones save a tenth and write several times slower.
LEVEL = 3


def encode_record(record: Record, file: ImageFile | None) -> tuple[bytes, dict[str, Any]]:
    """Return the record's bytes and its header; without the image's file, its pixels are kept."""
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
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":"), default=_plain).encode()
    frame = zstandard.ZstdCompressor(level=LEVEL).compress(np.ascontiguousarray(planes).tobytes())
    # What a reader would refuse is not written.
    return LENGTH.pack(len(text)) + text + file.data + frame, check_header(json.loads(text), repr(record.id))


def decode_record(data: bytes, name: str, channels: int | None) -> Record:
    """Return the record in `data`, which the caller has compared with its checksum."""
    header, start, end = _split(data, name)
    height, width, _ = header["shape"]
    masks = header["masks"]
    count = len(masks) + header["gold"]
    where = f"{name}, record {header['id']!r}"
    # The view spares a copy of all masks.
    pixels = decompress(memoryview(data)[end:], count * height * width, where)
    planes = np.frombuffer(bytearray(pixels), np.uint8).reshape(count, height, width)
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


def _decode_image(header: dict[str, Any], data: bytes, where: str, channels: int | None) -> Image:
    shape = header["shape"]
    if not header["suffix"]:
        return with_channels(decode_pixels(data, shape, where), channels, where)
    image = decode_image(data, where, channels)
    if image.shape[0] != shape[0] or image.shape[1] != shape[1]:
        raise DataError(f"{where}: Expected an image of {shape} but got {list(image.shape)}; {FIX}", "size")
    return image


def _split(data: bytes, name: str) -> tuple[dict[str, Any], int, int]:
    """Return the header, and where the image begins and ends."""
    start = LENGTH.size + (LENGTH.unpack_from(data)[0] if len(data) >= LENGTH.size else len(data))
    if start > len(data):
        raise DataError(f"{name}: Expected a header of {start} bytes but the record has {len(data)}; {FIX}", "damaged")
    header = check_header(parse_json(data[LENGTH.size : start], name), name)
    end = start + header["image_bytes"]
    if end > len(data):
        raise DataError(
            f"{name}, record {header['id']!r}: Expected {header['image_bytes']} bytes of image after byte {start} but "
            f"the record has {len(data)}; {FIX}",
            "damaged",
        )
    return header, start, end


def _plain(value: Any) -> Any:
    """Return a numpy number as Python's: judges and rules count in numpy."""
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"Expected numbers in pairs and ranking but got {value!r}.")

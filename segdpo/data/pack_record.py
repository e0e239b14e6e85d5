"""One record as bytes: length of the header, header (JSON), the image, all masks and gold in one zstd frame.

The image is its file as it was, or its pixels (pixels.py; then the header's suffix is "").
"""

import json
import struct
from typing import Any

import numpy as np
import zstandard

from segdpo.data.image_files import ImageFile, decode_image, encode_image
from segdpo.data.pixels import decode_pixels, encode_pixels, with_channels
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
    return LENGTH.pack(len(text)) + text + file.data + frame, json.loads(text)


def decode_record(data: bytes, name: str, channels: int | None) -> Record:
    """Return the record in `data`, which the caller has compared with its checksum."""
    header, file, start = _split(data)
    height, width, _ = header["shape"]
    count = len(header["masks"]) + header["gold"]
    pixels = zstandard.ZstdDecompressor().decompress(data[start:], max_output_size=count * height * width)
    planes = np.frombuffer(bytearray(pixels), np.uint8).reshape(count, height, width)
    return Record(
        id=header["id"],
        image=_decode_image(header, file, name, channels),
        masks=planes[: len(header["masks"])],
        mask_names=tuple(header["masks"]),
        pairs=tuple(Pair(*pair) for pair in header["pairs"]),
        ranking=tuple(header["ranking"]),
        gold=planes[-1] if header["gold"] else None,
        group=header["group"],
        split=header["split"],
        meta=header["meta"],
    )


def decode_image_file(data: bytes) -> ImageFile:
    """Return the image's file in `data` as it was given, or a PNG of its pixels."""
    header, file, _ = _split(data)
    return file if file.suffix else encode_image(decode_pixels(file.data, header["shape"]))


def _decode_image(header: dict[str, Any], file: ImageFile, name: str, channels: int | None) -> Image:
    where = f"{name}, image of {header['id']!r}"
    if file.suffix:
        return decode_image(file.data, where, channels)
    return with_channels(decode_pixels(file.data, header["shape"]), channels, where)


def _split(data: bytes) -> tuple[dict[str, Any], ImageFile, int]:
    start = LENGTH.size + LENGTH.unpack_from(data)[0]
    header = json.loads(data[LENGTH.size : start])
    end = start + header["image_bytes"]
    return header, ImageFile(header["suffix"], data[start:end]), end


def _plain(value: Any) -> Any:
    """Return a numpy number as Python's: judges and rules count in numpy."""
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"Expected numbers in pairs and ranking but got {value!r}.")

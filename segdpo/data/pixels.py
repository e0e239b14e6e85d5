"""The numbers that image files and arrays store: what images and masks are decoded from.

All image files are opened here, so that a damaged one is an error: the checksums of a PNG's chunks are compared, which
its usual readers do not do. Pillow reads what has at most 8 bits a channel. It drops the lower half of 16-bit colours
and reads no 64-bit or coloured floats; OpenCV reads those.
"""

import io
import re
import zlib
from dataclasses import dataclass
from typing import Any, TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow
from PIL import ImageMode, UnidentifiedImageError
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from segdpo.files import NPY_SIGNATURE, DataError, decode_arrays
from segdpo.masks import bands

# Pillow opens many more by their first bytes, whatever the suffix, and runs another program for PostScript.
FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP", "GIF")
# How many pixels an image may have, read from its header before anything is decoded. Pillow refuses more than twice its
# own MAX_IMAGE_PIXELS (179 million), which is this number: to read larger images, raise both.
MAX_PIXELS = 178_956_970
MAX_BYTES = 4 * MAX_PIXELS  # of the numbers of one file: RGBA of 8 bits, or one 32-bit number a pixel
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
PNG_DEPTH = 24  # where a PNG names its bits a channel
ARRAY_SIGNATURES = (NPY_SIGNATURE, b"PK\x03\x04")
TIFF_SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
# Tags of TIFF.
WIDTH, LENGTH, BITS, COMPRESSION, PHOTOMETRIC, DESCRIPTION, CHANNELS, PLANES = 256, 257, 258, 259, 262, 270, 277, 284
STRIPS, STRIP_ROWS, STRIP_BYTES, TILE_WIDTH, TILE_LENGTH, TILES, SAMPLE_FORMAT = 273, 278, 279, 322, 323, 324, 339
NUMBERS = {WIDTH: 0, LENGTH: 0, COMPRESSION: 1, CHANNELS: 1, STRIP_ROWS: 2**32, TILE_WIDTH: 1, TILE_LENGTH: 1}
TAGS = (*NUMBERS, BITS, PHOTOMETRIC, DESCRIPTION, PLANES, STRIPS, STRIP_BYTES, TILES, SAMPLE_FORMAT)
IMAGEJ = re.compile(r"ImageJ=.*?^images=(\d{1,9})\s*$", re.DOTALL | re.MULTILINE)
# Sample format and bits of TIFFs that are read as numbers.
DEEP = {
    (1, 16): "uint",
    (1, 32): "uint",
    (2, 8): "int",
    (2, 16): "int",
    (2, 32): "int",
    (3, 32): "float",
    (3, 64): "float",
}

Numbers: TypeAlias = NDArray[Any]
"""Of any type of bool, integers and floats: [H, W], [H, W, C], or whatever shape an array file has."""


def open_pixels(data: bytes, name: str) -> "Pillow.Image | Numbers":
    """Return the image in a file's bytes: opened if it has at most 8 bits a channel, else its numbers.

    Args:
        data: the bytes of a file of one of the FORMATS, of a .npy file, or of a .npz file with one array.
        name: what error messages call it.

    Returns:
        An image of Pillow; or the numbers [H, W] or [H, W, C] of 16-bit, signed and float files, and arrays.

    Raises:
        DataError: if it is damaged, too large, or has several pages.
    """
    if data.startswith(ARRAY_SIGNATURES):
        return _only_array(data, name)
    header = _read_header(data, name)
    return _open(data, name) if header is None else _decode_deep(data, name, header)


def stores_numbers(data: bytes, name: str) -> bool:
    """Return whether `open_pixels` gives numbers, without decoding any."""
    return data.startswith(ARRAY_SIGNATURES) or _read_header(data, name) is not None


@dataclass(frozen=True)
class _Header:
    """What a file of more than 8 bits a channel says of itself."""

    dtype: "np.dtype[Any]"
    size: tuple[int, int]  # height, width
    channels: int


def _read_header(data: bytes, name: str) -> _Header | None:
    """Return the header of a PNG or TIFF of more than 8 bits a channel, checked; None for other files."""
    if data.startswith(PNG_SIGNATURE):
        _check_png(data, name)
        width, height = (int.from_bytes(data[start : start + 4], "big") for start in (16, 20))
        # Grey, RGB; OpenCV reads grey with alpha as RGBA.
        channels = {0: 1, 2: 3}.get(data[PNG_DEPTH + 1], 4)
        return _Header(np.dtype(np.uint16), (height, width), channels) if data[PNG_DEPTH] == 16 else None
    if data.startswith(TIFF_SIGNATURES):
        tags, second = _tiff_tags(data, name)
        _check_pages(tags, second, name)
        return _deep_tiff(tags, name)
    return None


def stored_depth(image: Pillow.Image, data: bytes) -> int:
    """Return the bits a channel that the file of an image of at most 8 bits has: 1, 2, 4 or 8."""
    if data.startswith(PNG_SIGNATURE):
        return data[PNG_DEPTH]
    if image.mode == "1":
        return 1
    return int(np.max(getattr(image, "tag_v2", {}).get(BITS, 8)))


def white_is_zero(image: Pillow.Image) -> bool:
    """Return whether a grey TIFF stores white as 0, which Pillow inverts."""
    return image.mode in ("1", "L") and getattr(image, "tag_v2", {}).get(PHOTOMETRIC) == 0


def convert(image: Pillow.Image, mode: str, name: str) -> NDArray[np.uint8]:
    """Return the pixels of an image in one of Pillow's modes."""
    try:
        parts = list(bands(image.height, image.width))
        if len(parts) == 1:
            return np.array(image if image.mode == mode else image.convert(mode))
        # Pillow and NumPy make a copy each, of a band at a time.
        pixels = np.empty((image.height, image.width, *_channels_of(mode)), bool if mode == "1" else np.uint8)
        for rows in parts:
            band = image.crop((0, rows.start, image.width, rows.stop))
            pixels[rows] = np.asarray(band if band.mode == mode else band.convert(mode))
        return pixels
    # A palette that is cut short is noticed only here.
    except Exception as error:
        raise _undecodable(name, error) from error


def _channels_of(mode: str) -> tuple[int, ...]:
    channels = len(ImageMode.getmode(mode).bands)
    return () if channels == 1 else (channels,)


def _open(data: bytes, name: str) -> Pillow.Image:
    try:
        image = Pillow.open(io.BytesIO(data), formats=FORMATS)
        _check_size(image)
        image.load()
    # Pillow raises SyntaxError, OSError, struct.error and its own classes, by format and kind of damage.
    except Exception as error:
        raise _undecodable(name, error) from error
    return image


def _check_size(image: Pillow.Image) -> None:
    """Refuse an image that would take too much memory, before any of it is decoded."""
    if image.width * image.height > MAX_PIXELS:
        raise ValueError(f"Expected at most {MAX_PIXELS} pixels but got {image.width}×{image.height}")


def _undecodable(name: str, error: Exception | str) -> DataError:
    unknown = isinstance(error, UnidentifiedImageError)  # its text has the address of an object
    reason = "it is no image of a known kind" if unknown else str(error) or type(error).__name__
    return DataError(f"{name}: cannot be decoded ({reason}); restore the file or remove it.")


def _only_array(data: bytes, name: str) -> Numbers:
    arrays = decode_arrays(data, name, MAX_BYTES)
    if len(arrays) != 1:
        raise DataError(f"{name}: Expected one array but got {len(arrays)}: {', '.join(arrays)}; save one a file.")
    array = next(iter(arrays.values()))
    if array.dtype.kind not in "buif" or not array.size:
        raise DataError(f"{name}: Expected an array of numbers but got {array.dtype} {list(array.shape)}.")
    return array


def _decode_deep(data: bytes, name: str, header: _Header) -> Numbers:
    """Return the numbers of an image of more than 8 bits, [H, W] or [H, W, C] with channels in the order RGB(A)."""
    size, dtype = header.size, header.dtype
    pixels = size[0] * size[1]
    if pixels > MAX_PIXELS or pixels * header.channels * dtype.itemsize > MAX_BYTES:
        raise _undecodable(name, f"Expected at most {MAX_PIXELS} pixels but got {size[1]}×{size[0]} of {dtype}")
    said = cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    try:
        numbers = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except (cv2.error, MemoryError) as error:
        raise _undecodable(name, error) from error
    finally:
        cv2.utils.logging.setLogLevel(said)
    if numbers is None:
        raise _undecodable(name, "OpenCV reads no such file; is its compression none, LZW or deflate?")
    if numbers.dtype != dtype or numbers.shape[:2] != size:
        found = f"{numbers.dtype} {list(numbers.shape)}"
        raise _undecodable(name, f"Expected {dtype} {list(size)} as its header says but got {found}")
    if numbers.ndim == 3:  # OpenCV has the channels in the order BGR(A)
        numbers[..., [0, 2]] = numbers[..., [2, 0]]
    return numbers


def _tiff_tags(data: bytes, name: str) -> tuple[dict[int, Any], dict[int, Any]]:
    """Return the TAGS of a TIFF's first page, and those of its second; {} if there is none."""
    stream, pages = io.BytesIO(data), list[dict[int, Any]]()
    header = data[:16] if 43 in data[2:4] else data[:8]
    try:
        position = ImageFileDirectory_v2(header).next
        while position and len(pages) < 2:
            page = ImageFileDirectory_v2(header)
            stream.seek(position)
            page.load(stream)
            pages.append({key: page[key] for key in TAGS if key in page})
            position = page.next
        first = {BITS: 1, PLANES: 1, SAMPLE_FORMAT: 1, STRIPS: (), STRIP_BYTES: (), **NUMBERS, **pages[0]}
        first |= {key: int(first[key]) for key in NUMBERS}
        first |= {key: _same(first[key]) for key in (BITS, SAMPLE_FORMAT)}
        # A TIFF's tiles are decoded whole, however little of one lies in the image.
        tile, size = first[TILE_WIDTH] * first[TILE_LENGTH], first[WIDTH] * first[LENGTH]
        if max(tile, size) > MAX_PIXELS:
            raise ValueError(f"Expected at most {MAX_PIXELS} pixels but got {size}, tiles of {tile}")
        return first, pages[1] if len(pages) > 1 else {}
    # Pillow raises SyntaxError, struct.error, KeyError and others, by the kind of damage.
    except Exception as error:
        raise _undecodable(name, error) from error


def _same(value: Any) -> Any:
    """Return the first of several equal values, as the bits of each channel mostly are."""
    return value[0] if isinstance(value, tuple) and len(set(value)) == 1 else value


def _deep_tiff(tags: dict[int, Any], name: str) -> _Header | None:
    bits, kind, channels = tags[BITS], tags[SAMPLE_FORMAT], tags[CHANNELS]
    if bits in (1, 2, 4, 8) and kind in (1, 4):
        return None
    if channels not in (1, 3, 4):
        raise DataError(
            f"{name}: Expected 1, 3 or 4 channels but got {channels}; save the channels that matter.", "size"
        )
    # White is 0, black is 0, RGB: others (palette, CMYK, Lab) would need more than their numbers. Of separate planes
    # OpenCV reads the first for each channel.
    known = tags.get(PHOTOMETRIC, 1) in (0, 1, 2) and (channels == 1 or tags[PLANES] == 1)
    if not known or (kind, bits) not in DEEP:
        raise DataError(
            f"{name}: Expected a TIFF of grey or RGB, of 16-bit integers or floats, but got {bits} bits, sample format "
            f"{kind}, photometric {tags.get(PHOTOMETRIC)}, planar configuration {tags[PLANES]}; save it as 16-bit RGB."
        )
    header = _Header(np.dtype(f"{DEEP[kind, bits]}{bits}"), (tags[LENGTH], tags[WIDTH]), channels)
    _check_strips(tags, header, name)
    return header


def _check_strips(tags: dict[int, Any], header: _Header, name: str) -> None:
    """Refuse a TIFF with too few parts: OpenCV repeats the last one."""
    height, width = header.size
    if TILES in tags:
        wide, high = max(1, tags[TILE_WIDTH]), max(1, tags[TILE_LENGTH])
        expected, found = -(-width // wide) * -(-height // high), np.size(tags[TILES])
    else:
        expected, found = -(-height // max(1, min(tags[STRIP_ROWS], height))), np.size(tags[STRIPS])
    stored = int(np.sum(tags[STRIP_BYTES])) if tags[COMPRESSION] == 1 and TILES not in tags else None
    needed = height * width * header.channels * header.dtype.itemsize
    if not 0 < expected <= found or (stored is not None and stored < needed):
        raise _undecodable(name, f"Expected {expected} parts of {needed} bytes but got {found} parts of {stored}")


def _check_pages(tags: dict[int, Any], second: dict[int, Any], name: str) -> None:
    """Refuse a volume: further pages of the size of the first. A smaller page is a preview, and is not read."""
    same = bool(second) and all(second.get(key) == tags[key] for key in (WIDTH, LENGTH))
    # ImageJ may write one page for all slices, and says in the description how many follow.
    slices = IMAGEJ.match(str(tags.get(DESCRIPTION, "")))
    if same or (slices and int(slices[1]) > 1):
        raise DataError(f"{name}: Expected one image but got a TIFF of several pages; save one slice a file.", "size")


def _check_png(data: bytes, name: str) -> None:
    """Compare each chunk's checksum: a damaged file may decode, to other pixels than were written."""
    position, kind = len(PNG_SIGNATURE), b""
    while kind != b"IEND":
        length = int.from_bytes(data[position : position + 4], "big")
        kind, end = data[position + 4 : position + 8], position + 8 + length
        if end + 4 > len(data):
            raise DataError(f"{name}: the PNG is cut short after {len(data)} bytes; restore the file or remove it.")
        if zlib.crc32(data[position + 4 : end]) != int.from_bytes(data[end : end + 4], "big"):
            raise DataError(f"{name}: the PNG is damaged (checksum of chunk {kind!r}); restore the file or remove it.")
        if position == len(PNG_SIGNATURE) and (kind, length) != (b"IHDR", 13):
            raise DataError(f"{name}: the PNG is damaged (it begins with {kind!r}); restore the file or remove it.")
        position = end + 4

"""Image files and arrays: images RGB uint8 [H, W, 3], masks uint8 [H, W] of class ids.

All image files are read here, so that a damaged one is an error: the checksums of a PNG's chunks are compared, which
its usual readers do not do.
"""

import io
import struct
import zlib
from dataclasses import dataclass

import numpy as np
from PIL import Image as Pillow

from segdpo.data.record import Image
from segdpo.files import DataError
from segdpo.masks import Mask

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".gif")
# Pillow opens many more by their first bytes, whatever the suffix, and runs another program for PostScript.
FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP", "GIF")
# How many pixels an image may have, read from its header before anything is decoded. Pillow refuses more than twice its
# own MAX_IMAGE_PIXELS (179 million), which is this number: to read larger images, raise both.
MAX_PIXELS = 178_956_970
TILE_WIDTH, TILE_LENGTH = 322, 323  # tags of TIFF
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class ImageFile:
    """An image as it lies on disk: its bytes, and the suffix that says how to read them."""

    suffix: str
    data: bytes


def decode_image(data: bytes, name: str, channels: int | None = 3) -> Image:
    """Return the image in a file's bytes.

    Args:
        data: the bytes of a file of one of the FORMATS, 8 bits a channel.
        name: what error messages call it.
        channels: 3: RGB, 1: grey, None: as stored (1, 3 or 4 channels).

    Returns:
        uint8 [H, W, channels].

    Raises:
        DataError: if it is damaged, too large, or not of 8 bits.
    """
    image = _open(data, name)
    if image.mode not in ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr") or _png_depth(data) == 16:
        raise DataError(
            f"{name}: Expected 8 bits a channel but got mode {image.mode}; stretch the contrast to 8 bits first."
        )
    stored = {"1": "L", "L": "L", "LA": "L", "RGBA": "RGBA"}.get(image.mode, "RGB")
    mode = {1: "L", 3: "RGB", None: stored}[channels]
    pixels = _pixels(image, mode, name)
    return pixels.reshape(*pixels.shape[:2], -1)


def decode_mask(data: bytes, name: str) -> Mask:
    """Return the class ids in a file's bytes, uint8 [H, W]: 8-bit grey or palette as they are, 1-bit as 0 and 1.

    Raises:
        DataError: if it is damaged, too large, a JPEG (which changes values), or has colours instead of class ids.
    """
    image = _open(data, name)
    if image.format in ("JPEG", "MPO"):
        raise DataError(f"{name}: Expected a lossless mask but got a JPEG; save masks as PNG.", "mask format")
    if image.mode not in ("1", "L", "P"):
        raise DataError(
            f"{name}: Expected a mask of class ids (8-bit grey, palette or 1-bit) but got mode {image.mode}; "
            "save one class id a pixel instead of colours.",
            "mask format",
        )
    pixels = _pixels(image, image.mode, name).astype(np.uint8, copy=False)
    depth = _png_depth(data)
    # Readers stretch 2- and 4-bit grey to 0 … 255; here the stored number is the class.
    return pixels // (255 // (2**depth - 1)) if image.mode == "L" and depth in (2, 4) else pixels


def encode_image(image: Image) -> ImageFile:
    """Return a PNG of an image with 1 (grey), 3 (RGB) or 4 (RGBA) channels."""
    if image.shape[2] not in (1, 3, 4):
        raise DataError(f"Expected an image with 1, 3 or 4 channels but got {image.shape[2]}; PNG holds no others.")
    return ImageFile(".png", _encode(image[..., 0] if image.shape[2] == 1 else image))


def encode_mask(mask: Mask) -> bytes:
    """Return an 8-bit grey PNG of class ids."""
    return _encode(mask)


def _encode(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Pillow.fromarray(pixels).save(buffer, "png", compress_level=4)
    return buffer.getvalue()


def _open(data: bytes, name: str) -> Pillow.Image:
    if data.startswith(PNG_SIGNATURE):
        _check_png(data, name)
    try:
        image = Pillow.open(io.BytesIO(data), formats=FORMATS)
        _check_size(image)
        image.load()
    # Pillow raises SyntaxError, OSError, struct.error and its own classes, by format and kind of damage.
    except Exception as error:
        raise DataError(f"{name}: cannot be decoded ({_reason(error)}); restore the file or remove it.") from error
    return image


def _check_size(image: Pillow.Image) -> None:
    """Refuse an image that would take too much memory, before any of it is decoded."""
    tags = getattr(image, "tag_v2", {})
    # A TIFF's tiles are decoded whole, however little of one lies in the image.
    tile = int(tags.get(TILE_WIDTH, 1)) * int(tags.get(TILE_LENGTH, 1))
    if max(image.width * image.height, tile) > MAX_PIXELS:
        raise ValueError(f"Expected at most {MAX_PIXELS} pixels but got {image.width}×{image.height}, tiles of {tile}")


def _pixels(image: Pillow.Image, mode: str, name: str) -> np.ndarray:
    try:
        return np.array(image if image.mode == mode else image.convert(mode))
    # A palette that is cut short is noticed only here.
    except Exception as error:
        raise DataError(f"{name}: cannot be decoded ({_reason(error)}); restore the file or remove it.") from error


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__


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
        position = end + 4


def _png_depth(data: bytes) -> int:
    """Return the bits a channel that a PNG's header names; 8 for other formats."""
    return int(struct.unpack_from(">B", data, 24)[0]) if data.startswith(PNG_SIGNATURE) else 8

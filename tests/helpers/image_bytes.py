"""Bytes of image and array files, written with Pillow, OpenCV and NumPy."""

import io
import json
import struct

import cv2
import numpy as np
from PIL import Image as Pillow

LZW, DEFLATE = 5, 8


def png(pixels, **options):
    """An image of Pillow or an array as PNG; 16-bit RGB by OpenCV, since Pillow writes none."""
    if isinstance(pixels, np.ndarray) and pixels.dtype == np.uint16 and pixels.ndim == 3:
        return by_opencv(pixels, ".png")
    image = pixels if isinstance(pixels, Pillow.Image) else Pillow.fromarray(pixels)
    return _saved(image, "png", **options)


def by_opencv(pixels, suffix, compression=1):
    """An array of any type as TIFF or PNG."""
    stored = pixels[..., [2, 1, 0, 3][: pixels.shape[2]]] if pixels.ndim == 3 else pixels
    options = [cv2.IMWRITE_TIFF_COMPRESSION, compression] if suffix == ".tif" else []
    return cv2.imencode(suffix, np.ascontiguousarray(stored), options)[1].tobytes()


def tiff(*pages, **options):
    """A TIFF with one or several pages."""
    first, *others = [Pillow.fromarray(page) for page in pages]
    return _saved(first, "tiff", save_all=bool(others), append_images=others, **options)


def tiff_by_hand(tags, *parts):
    """A TIFF of the tags {number: whole number} and the strips or tiles, whose places tag None names (273 or 324)."""
    places = tags.pop(None)
    lengths = {273: 279, 324: 325}[places]
    rows = sorted([*tags.items(), (places, None), (lengths, None)])
    first = 8 + 2 + 12 * len(rows) + 4
    offsets = [first + 8 * len(parts) + sum(map(len, parts[:k])) for k in range(len(parts))]
    lists = {places: (first, offsets), lengths: (first + 4 * len(parts), [len(part) for part in parts])}
    entries = b""
    for tag, value in rows:
        start, numbers = lists.get(tag, (value, [value]))
        entries += struct.pack("<HHII", tag, 4, len(numbers), numbers[0] if len(numbers) == 1 else start)
    body = b"".join(struct.pack(f"<{len(parts)}I", *numbers) for _, numbers in lists.values())
    return b"II*\0" + struct.pack("<IH", 8, len(rows)) + entries + bytes(4) + body + b"".join(parts)


def jpeg(pixels):
    return _saved(Pillow.fromarray(pixels), "jpeg", quality=95)


def npy(array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def npz(**arrays):
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


def dumped(value):
    return json.dumps(value).encode()


def _saved(image, form, **options):
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()

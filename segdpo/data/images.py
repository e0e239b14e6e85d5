"""Image files and arrays: RGB uint8 [H, W, 3], or as stored."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image as Pillow

from segdpo.data.pixels import Numbers, convert, open_pixels, stores_numbers
from segdpo.data.record import Image
from segdpo.files import DataError, read_file
from segdpo.masks import Mask

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".npy")
ValueRange = tuple[float, float]
"""(low, high): the numbers of 16-bit and float images that become 0 and 255."""
PERCENTILES = (0.5, 99.5)
# How many numbers of an image `value_range_of` looks at.
LOOKED_AT = 2**16
BLOCK = 2**22  # how many numbers are stretched at once


@dataclass(frozen=True)
class ImageFile:
    """An image as it lies on disk: its bytes, and the suffix that says how to read them."""

    suffix: str
    data: bytes


def decode_image(data: bytes, name: str, channels: int | None = 3, value_range: Sequence[float] | None = None) -> Image:
    """Return the image in a file's bytes.

    16-bit, signed and float images become 8 bits by round(255 · (x − low) / (high − low)), clipped to 0 … 255, with
    (low, high) = `value_range`. Images of 8 bits stay as they are, whatever the value range.

    Args:
        data: the bytes of a PNG, JPEG, BMP, TIFF, WebP or GIF, or of a .npy array [H, W], [H, W, C] or [C, H, W].
        name: what error messages call it.
        channels: 3: RGB, 1: grey, None: as stored (1, 3 or 4 channels).
        value_range: (low, high) of images that do not have 8 bits a channel; `value_range_of` proposes one.

    Returns:
        uint8 [H, W, channels].

    Raises:
        DataError: if it is damaged, too large, has several pages or other numbers of channels; or needs a value range.
    """
    return convert_image(open_pixels(data, name), name, channels, value_range)


def convert_image(
    image: Pillow.Image | Numbers, name: str, channels: int | None = 3, value_range: Sequence[float] | None = None
) -> Image:
    """Return an image in memory, of Pillow or numbers, as `decode_image` returns that of a file."""
    if isinstance(image, Pillow.Image) and image.mode.startswith(("I", "F")):
        image = np.asarray(image)
    if isinstance(image, np.ndarray):
        pixels = stretch(_channels_last(image, name), value_range, name)
        if pixels.shape[2] == (pixels.shape[2] if channels is None else channels):
            return np.ascontiguousarray(pixels)
        image = Pillow.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    stored = {"1": "L", "L": "L", "LA": "L", "RGBA": "RGBA"}.get(image.mode, "RGB")
    mode = {1: "L", 3: "RGB", None: stored}[channels]
    pixels = convert(image, mode, name)
    return pixels.reshape(*pixels.shape[:2], -1)


def stretch(numbers: Numbers, value_range: Sequence[float] | None, name: str) -> np.ndarray:
    """Return numbers of any type as uint8: round(255 · (x − low) / (high − low)), clipped; uint8 stays as it is.

    >>> stretch(np.array([0, 100, 1000, 4000, 9000], np.uint16), (100, 4000), "x").tolist()
    [0, 0, 59, 255, 255]
    """
    if numbers.dtype == np.uint8:
        return numbers
    if numbers.dtype == bool:
        return numbers.astype(np.uint8) * np.uint8(255)
    if numbers.dtype.kind == "f" and not np.isfinite(numbers).all():
        count = int((~np.isfinite(numbers)).sum())
        raise DataError(f"{name}: Expected finite numbers but {count} are NaN or infinite; replace them.")
    if value_range is None:
        raise DataError(
            f"{name}: Expected 8 bits a channel but got {numbers.dtype} from {numbers.min():g} to {numbers.max():g}; "
            "set value_range=[low, high], the numbers that become black and white; `segdpo check` proposes them."
        )
    low, high = check_value_range(value_range)
    result = np.empty(numbers.shape, np.uint8)
    for start in range(0, len(numbers), step := max(1, BLOCK * len(numbers) // numbers.size)):
        scaled = (numbers[start : start + step].astype(np.float64) - low) * (255 / (high - low))
        result[start : start + step] = np.rint(scaled).clip(0, 255)
    return result


def check_value_range(value_range: Sequence[float]) -> ValueRange:
    """Return (low, high) if they are two finite numbers in ascending order."""
    try:
        low, high = (float(end) for end in value_range)
    except (TypeError, ValueError):
        low = high = np.nan
    if not (low < high and np.isfinite(high - low)):
        raise DataError(f"Expected value_range=[low, high] with low < high but got {value_range!r}.")
    return low, high


def value_range_of(paths: Sequence[Path], sample: int = 32) -> ValueRange | None:
    """Return the value range that the images of a data set need; None if all have 8 bits a channel.

    It is the .5 and the 99.5 percentile over `sample` images in equal steps, of at most 65,536 numbers of each; of
    integers rounded down and up.

    Raises:
        DataError: an image cannot be decoded.
    """
    chosen = [paths[k] for k in np.unique(np.linspace(0, len(paths) - 1, min(sample, len(paths))).astype(int))]
    looked_at = [numbers for path in chosen if (numbers := _some_numbers(path)) is not None]
    if not looked_at:
        return None
    low, high = (float(end) for end in np.percentile(np.concatenate(looked_at), PERCENTILES))
    if all(numbers.dtype.kind in "iub" for numbers in looked_at):
        low, high = float(np.floor(low)), float(np.ceil(high))
    return (low, high) if low < high else (low, low + 1)


def encode_image(image: Image) -> ImageFile:
    """Return a PNG of an image with 1 (grey), 3 (RGB) or 4 (RGBA) channels."""
    if image.shape[2] not in (1, 3, 4):
        raise DataError(f"Expected an image with 1, 3 or 4 channels but got {image.shape[2]}; PNG holds no others.")
    return ImageFile(".png", _encode(image[..., 0] if image.shape[2] == 1 else image))


def encode_mask(mask: Mask) -> bytes:
    """Return an 8-bit grey PNG of class ids."""
    return _encode(mask)


def eight_bit_file(path: Path, value_range: Sequence[float] | None) -> ImageFile:
    """Return an image's file as it lies on disk; or, of what has more than 8 bits a channel, a PNG by the value range.

    What is stored in a pack or shown in a browser can then be read without the value range.
    """
    data, name = read_file(path), str(path)
    if stores_numbers(data, name):
        return encode_image(decode_image(data, name, None, value_range))
    return ImageFile(path.suffix, data)


def _encode(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Pillow.fromarray(pixels).save(buffer, "png", compress_level=4)
    return buffer.getvalue()


def _channels_last(numbers: Numbers, name: str) -> Numbers:
    """Return [H, W, C] of [H, W], [H, W, C] or [C, H, W] with 1, 3 or 4 channels."""
    if numbers.ndim == 2:
        return numbers[..., None]
    if numbers.ndim == 3 and numbers.shape[2] in (1, 3, 4):
        return numbers
    if numbers.ndim == 3 and numbers.shape[0] in (1, 3, 4):
        return np.ascontiguousarray(np.moveaxis(numbers, 0, 2))
    raise DataError(
        f"{name}: Expected an image [H, W] or [H, W, C] with 1, 3 or 4 channels but got shape {list(numbers.shape)}; "
        "save one slice a file, and the channels that matter."
    )


def _some_numbers(path: Path) -> Numbers | None:
    """Return at most LOOKED_AT numbers of an image, in equal steps; None if it has 8 bits a channel."""
    data, name = read_file(path), str(path)
    if not stores_numbers(data, name):
        return None
    numbers = np.asarray(open_pixels(data, name)).ravel()
    return None if numbers.dtype in (np.uint8, bool) else numbers[:: -(-numbers.size // LOOKED_AT)]

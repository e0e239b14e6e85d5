"""What mask files store: class ids, colours, numbers of objects, or probabilities."""

import numpy as np
from PIL import Image as Pillow

from segdpo.data.pixels import Numbers, convert, open_pixels, stored_depth, white_is_zero
from segdpo.files import DataError
from segdpo.masks import count_values

Size = tuple[int, int]
LOSSY = ("JPEG", "MPO")
TOLERANCE = 1e-3  # how far from 0 … 1 probabilities in 16-bit floats may be
WRONG = "mask format"


def class_numbers(data: bytes, name: str) -> Numbers:
    """Return the numbers [H, W] that a mask file stores, of any type: grey as it is, the index of a palette.

    Raises:
        DataError: if it is damaged, too large, a JPEG (which changes values), or has colours instead of class ids.
    """
    image = open_pixels(data, name)
    numbers = stored_numbers(image, data, name) if isinstance(image, Pillow.Image) else image
    if isinstance(image, np.ndarray) and image.ndim == 3 and image.shape[0] == 1:
        return image.reshape(image.shape[1:])
    # Grey as RGB, and opaque.
    grey = numbers.ndim == 3 and (numbers[..., :3] == numbers[..., :1]).all()
    if grey and (numbers.shape[2] in (1, 3) or (numbers.shape[2] == 4 and numbers[..., 3].min() == 255)):
        return numbers[..., 0]
    if numbers.ndim != 2:
        raise DataError(
            f"{name}: Expected a mask of class ids (8-bit grey, palette or 1-bit) but got mode "
            f"{getattr(image, 'mode', numbers.dtype)} {list(numbers.shape)}; "
            "say which colour is which class with `colors`, or save one class id a pixel.",
            WRONG,
        )
    return numbers


def mask_colours(data: bytes, name: str) -> Numbers:
    """Return the colours [H, W, 3] or [H, W, 4] of a mask file; those of its palette if it has one."""
    image = open_pixels(data, name)
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] not in (3, 4):
            raise DataError(f"{name}: Expected colours of 8 bits but got {image.dtype} {list(image.shape)}.", WRONG)
        return image
    _check_lossless(image, name)
    clear = image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info
    return convert(image, "RGBA" if clear else "RGB", name)


def stored_numbers(image: Pillow.Image, data: bytes, name: str, lossy: bool = False) -> Numbers:
    """Return the numbers of an image of at most 8 bits: [H, W], or [H, W, 3 or 4] of colours; a JPEG's if `lossy`."""
    if not lossy:
        _check_lossless(image, name)
    if image.mode not in ("1", "L", "P"):
        return convert(image, "RGBA" if image.mode in ("LA", "PA", "RGBA") else "RGB", name)
    numbers = convert(image, image.mode, name).astype(np.uint8, copy=False)
    depth = stored_depth(image, data)
    # Readers stretch 2- and 4-bit grey to 0 … 255, and invert a TIFF whose white is 0; here the stored number counts.
    if image.mode == "L" and depth in (2, 4):
        numbers = numbers // (255 // (2**depth - 1))
    return (2**depth - 1) - numbers if white_is_zero(image) else numbers


def _check_lossless(image: Pillow.Image, name: str) -> None:
    if image.format in LOSSY:
        raise DataError(f"{name}: Expected a lossless mask but got a JPEG; save masks as PNG.", WRONG)


def distinct(numbers: Numbers, name: str) -> Numbers:
    """Return the whole numbers that occur, ascending, as int64."""
    if numbers.dtype in (np.uint8, np.uint16):
        return np.flatnonzero(count_values(numbers))
    if numbers.dtype.kind in "iu" and numbers.dtype.itemsize <= 2:
        low = int(numbers.min())
        return np.flatnonzero(np.bincount(numbers.ravel().astype(np.int32) - low)) + low
    found = np.unique(numbers)
    if not np.array_equal(found, np.rint(found)):  # NaN is not equal, either
        raise DataError(
            f"{name}: Expected whole numbers but got {numbers.dtype} such as {found[found != np.rint(found)][0]:g}; "
            "set kind=probabilities if they are probabilities.",
            WRONG,
        )
    return found.astype(np.int64)


def colour_codes(colours: Numbers) -> Numbers:
    """Return r + 256 g + 65536 b of colours [..., 3]; of [..., 4], with 2²⁴ a."""
    places = np.arange(0, 8 * colours.shape[-1], 8, dtype=np.uint32)
    return np.asarray((colours.astype(np.uint32) << places).sum(-1, dtype=np.uint32))


def instance_numbers(data: bytes, name: str) -> Numbers:
    """Return the number of the object at each pixel, 0 for none; of RGB, r + 256 g + 65536 b."""
    image = open_pixels(data, name)
    colours = image.mode if isinstance(image, Pillow.Image) else image.ndim == 3 and image.shape[2] == 3
    if colours in ("RGB", True):
        return colour_codes(mask_colours(data, name))
    numbers = class_numbers(data, name)
    if numbers.dtype.kind == "f":
        distinct(numbers, name)
    if numbers.min() < 0:
        raise DataError(f"{name}: Expected numbers of objects from 0 on but got {numbers.min():g}.", "class")
    return numbers


def chances_of(data: bytes, name: str, size: Size | None, classes: tuple[str, ...]) -> Numbers:
    """Return probabilities [H, W] or [C, H, W] from 0 to 1."""
    image = open_pixels(data, name)
    if isinstance(image, Pillow.Image):
        # A JPEG's small errors do not matter much where numbers are probabilities.
        numbers: Numbers = convert(image, "L" if image.mode in ("1", "L", "LA") else "RGB", name)
        if numbers.ndim == 3 and (numbers != numbers[..., :1]).any():
            raise DataError(f"{name}: Expected grey probabilities but got mode {image.mode}.", WRONG)
        numbers = numbers[..., 0] if numbers.ndim == 3 else numbers
    else:
        numbers = _classes_first(image, name, size, classes)
    if numbers.dtype.kind in "ui":
        return numbers.astype(np.float32) / np.iinfo(numbers.dtype).max
    low, high = float(numbers.min()), float(numbers.max())
    if not (low >= -TOLERANCE and high <= 1 + TOLERANCE):
        raise DataError(
            f"{name}: Expected probabilities from 0 to 1 but got {low:g} to {high:g}; "
            "apply sigmoid or softmax to logits, or divide percentages by 100.",
            WRONG,
        )
    return numbers.astype(np.float32)


def _classes_first(numbers: Numbers, name: str, size: Size | None, classes: tuple[str, ...]) -> Numbers:
    if numbers.ndim == 4 and numbers.shape[1] == 1:
        numbers = numbers[:, 0]  # one slice, as nnU-Net writes it
    if numbers.ndim == 2:
        return numbers
    count = len(classes)
    first = numbers.ndim == 3 and numbers.shape[0] in (1, count) and size in (None, numbers.shape[1:])
    last = numbers.ndim == 3 and numbers.shape[2] in (1, count) and size in (None, numbers.shape[:2])
    if not (first or last):
        raise DataError(
            f"{name}: Expected probabilities [H, W], [C, H, W] or [H, W, C] of {count} classes, {size or 'any'} pixels "
            f"but got shape {list(numbers.shape)}.",
            "size",
        )
    planes = numbers if first else np.moveaxis(numbers, 2, 0)
    return planes[0] if len(planes) == 1 else planes

"""What a mask file holds, so that its format can be guessed or asked for: nothing is decided here."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from PIL import Image as Pillow

from segdpo.data.mask_files.numbers import LOSSY, colour_codes, stored_numbers
from segdpo.data.pixels import Numbers, convert, open_pixels, white_is_zero
from segdpo.masks import count_values

MOST = 300  # how many distinct numbers or colours are listed


@dataclass(frozen=True)
class MaskFacts:
    """What a mask file holds.

    Args:
        mode: Pillow's mode ("1", "L", "P", "RGB", "RGBA", …); of 16-bit and float files and arrays, their dtype.
        dtype: of the numbers as they are stored.
        shape: of the numbers, as they are stored: [H, W], [H, W, C], or that of the array.
        channels: 1 if the numbers have two dimensions, else the length of the last; of [C, H, W] arrays see `shape`.
        low: the smallest number.
        high: the largest number.
        values: how many pixels have each number, at most 300 numbers; None: more, or several channels.
        colors: how many pixels have each colour, at most 300; None: more, or there are none. A palette has colours.
        grey: all channels are equal, and alpha is 255 everywhere.
        lossy: a JPEG, which changes numbers.
        white_is_zero: a TIFF whose stored 0 is shown as white; as class ids the stored numbers count.
    """

    mode: str
    dtype: str
    shape: tuple[int, ...]
    channels: int
    low: float
    high: float
    values: Mapping[float, int] | None = None
    colors: Mapping[tuple[int, ...], int] | None = field(default=None)
    grey: bool = True
    lossy: bool = False
    white_is_zero: bool = False

    @property
    def whole(self) -> bool:
        """Whether all numbers are whole; False if there are too many to tell."""
        return not self.dtype.startswith("float") or (
            self.values is not None and all(float(value).is_integer() for value in self.values)
        )


def describe_mask(data: bytes, name: str) -> MaskFacts:
    """Return what the file of a mask holds: an image of any kind, .npy or .npz.

    Raises:
        DataError: if it is damaged, too large, or has several pages or arrays.

    >>> from segdpo.data.images import encode_mask
    >>> facts = describe_mask(encode_mask(np.array([[0, 255, 255]], np.uint8)), "x.png")
    >>> facts.mode, facts.values, facts.colors
    ('L', {0: 1, 255: 2}, None)
    """
    image = open_pixels(data, name)
    if not isinstance(image, Pillow.Image):
        return _facts(image, str(image.dtype), None)
    numbers = stored_numbers(image, data, name, lossy=True)
    colours = None
    if image.mode == "P":
        colours = convert(image, "RGBA" if "transparency" in image.info else "RGB", name)
    elif numbers.ndim == 3:
        colours = numbers
    return _facts(numbers, image.mode, colours, image.format in LOSSY, white_is_zero(image))


def _facts(
    numbers: Numbers, mode: str, colours: Numbers | None, lossy: bool = False, white_is_zero: bool = False
) -> MaskFacts:
    if colours is None and numbers.dtype == np.uint8 and numbers.ndim == 3 and numbers.shape[2] in (3, 4):
        colours = numbers
    several = numbers.ndim == 3 and numbers.shape[2] in (3, 4)
    grey = not several or bool((numbers[..., :3] == numbers[..., :1]).all())
    if several and numbers.shape[2] == 4:
        grey = grey and numbers[..., 3].min() == 255
    return MaskFacts(
        mode=mode,
        dtype=str(numbers.dtype),
        shape=numbers.shape,
        channels=numbers.shape[2] if several else 1,
        low=numbers.min().item(),
        high=numbers.max().item(),
        values=_counted(numbers[..., 0] if several else numbers) if grey else None,
        colors=None if colours is None else _counted_colours(colours),
        grey=grey,
        lossy=lossy,
        white_is_zero=white_is_zero,
    )


def _counted(numbers: Numbers) -> dict[float, int] | None:
    if numbers.dtype in (np.uint8, np.uint16):  # counting takes a tenth of the time of sorting, and less memory
        every = count_values(numbers)
        found = np.flatnonzero(every)
        counts = every[found]
    else:
        found, counts = np.unique(numbers, return_counts=True)
    return dict(zip(found.tolist(), counts.tolist(), strict=True)) if len(found) <= MOST else None


def _counted_colours(colours: Numbers) -> dict[tuple[int, ...], int] | None:
    counted = _counted(colour_codes(colours))
    if counted is None:
        return None
    return {tuple(int(code) >> 8 * k & 255 for k in range(colours.shape[2])): n for code, n in counted.items()}

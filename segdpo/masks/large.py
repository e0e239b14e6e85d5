"""Large images a few rows at a time, so that no temporary array is as large as the image."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

PIXELS = 2**22
"""Images of at most so many pixels are one band."""


def bands(height: int, width: int) -> Iterator[slice]:
    """Yield the rows of an image in bands of at most PIXELS pixels, at least one row each.

    >>> list(bands(5, 2**21))
    [slice(0, 2, None), slice(2, 4, None), slice(4, 5, None)]
    """
    step = max(1, PIXELS // max(1, width))
    for top in range(0, height, step):
        yield slice(top, min(height, top + step))


def bands_of(array: NDArray[Any]) -> Iterator[slice]:
    """Yield slices of the first axis of an array, each of at most PIXELS numbers."""
    return bands(len(array), array.size // max(1, len(array)))


def count_values(mask: NDArray[Any]) -> NDArray[np.int64]:
    """Return how many pixels have each value, of masks of uint8 or uint16.

    >>> count_values(np.array([[0, 1], [1, 255]], np.uint8)).nonzero()[0].tolist()
    [0, 1, 255]
    """
    values = 2 ** (8 * mask.dtype.itemsize)
    counts = np.zeros(values, np.int64)
    for rows in bands_of(mask):
        counts += np.bincount(mask[rows].ravel(), minlength=values)
    return counts

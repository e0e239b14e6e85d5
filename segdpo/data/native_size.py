"""From a view back to the image: which part of a view shows the whole image, and proof that it does."""

import numpy as np
from jaxtyping import Bool, UInt8

from segdpo.data.errors import DataError
from segdpo.data.transforms import View

Box = tuple[slice, slice]
# Below 255, which is ignore in every mask.
BASE = 251
LARGEST = BASE**2


def probes_of(size: tuple[int, ...]) -> UInt8[np.ndarray, "4 height width"]:
    """Return masks that hold each pixel's own row and column, each as two digits: views move them like any mask."""
    if max(size) > LARGEST:
        raise DataError(f"Expected an image of at most {LARGEST} pixels a side but got {size[0]}×{size[1]}.", "size")
    digits = (part for numbers in np.indices(size) for part in (numbers // BASE, numbers % BASE))
    return np.stack(list(digits)).astype(np.uint8)


def box_of(name: str, view: View, size: tuple[int, ...]) -> Box:
    """Return the part of a view that shows the image; refuse a view that shows it cut, turned or bent.

    `view.masks` are those of `probes_of(size)` under the view's geometry. In a view that only resizes and fills up,
    the pixel at r of h shows the row at the same share of the image, to within one of the image's pixels.
    """
    box = _bounds(view.valid)
    if box is not None:
        probes = view.masks[:, box[0], box[1]].astype(np.int64)
        found = BASE * probes[0] + probes[1], BASE * probes[2] + probes[3]
        if view.valid[box].all() and all(_in_proportion(found[axis], axis, size[axis]) for axis in (0, 1)):
            return box
    raise DataError(
        f"{name}: Expected an eval pipeline that shows the whole image, resized or filled up, but it cuts, turns or "
        "bends it, so that nothing can be measured at the image's own size; take transforms.eval without such "
        "steps (transforms=whole, transforms=resized), or measure the views as they are, without --native.",
        "size",
    )


def _bounds(valid: Bool[np.ndarray, "height width"]) -> Box | None:
    rows, columns = (np.flatnonzero(valid.any(axis)) for axis in (1, 0))
    if not len(rows):
        return None
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)


def _in_proportion(found: np.ndarray, axis: int, size: int) -> bool:
    """Tell whether the places found run through the image evenly, to within a pixel of the image."""
    length = found.shape[axis]
    shares = (np.arange(length) + 0.5) / length
    expected = shares[:, None] if axis == 0 else shares[None]
    return bool((abs((found + 0.5) / size - expected) <= 1.01 / size).all())

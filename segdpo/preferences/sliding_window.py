"""Logits of large images from overlapping windows, blended with Gaussian weights."""

import math
from collections.abc import Callable
from itertools import product
from typing import Protocol

import torch
from jaxtyping import Float32
from torch import Tensor

# In sides of the window. At its edge, where a network sees least of a pixel's surroundings, the weight is e^-8.
SIGMA = 1 / 8
# How many pixels share a forward pass, if there are windows: a U-Net keeps some hundred numbers for each.
PIXELS = 1024**2


class Images(Protocol):
    """Images [images, channels, height, width]: a tensor, or what makes its parts when they are read."""

    @property
    def shape(self) -> torch.Size:
        """[images, channels, height, width]."""
        ...

    @property
    def device(self) -> torch.device:
        """Where the parts are."""
        ...

    def __getitem__(self, place: tuple[int, slice, slice, slice], /) -> Tensor: ...


def window_starts(size: int, window: int, overlap: float) -> list[int]:
    """Return where the windows along an axis of `size` pixels begin: evenly spaced, overlapping by at least `overlap`.

    >>> window_starts(10, 4, 0.25)
    [0, 3, 6]
    """
    if size <= window:
        return [0]
    gaps = math.ceil((size - window) / max(1, math.floor(window * (1 - overlap))))
    return [round(gap * (size - window) / gaps) for gap in range(gaps + 1)]


def window_weight(height: int, width: int) -> Float32[Tensor, "height width"]:
    """Return the weight of each pixel of a window: a Gaussian around the centre, 0 nowhere."""
    rows, columns = (
        torch.exp(-0.5 * ((torch.arange(side) - (side - 1) / 2) / (SIGMA * side)) ** 2) for side in (height, width)
    )
    return rows[:, None] * columns


def whole_or_in_windows(
    network: Callable[[Tensor], Tensor], images: Float32[Tensor, "images channels height width"], window: int | None
) -> Float32[Tensor, "images classes height width"]:
    """Return the network's logits of images in evaluation: in windows if they are larger than `window`, else whole."""
    if window is None or max(images.shape[2:]) <= window:
        return network(images)
    return predict_windows(network, images, window=window)


@torch.no_grad()
def predict_windows(
    network: Callable[[Tensor], Tensor],
    images: Images,
    *,
    window: int = 512,
    overlap: float = 0.25,
    batch: int | None = None,
    device: torch.device | str | None = None,
) -> Float32[Tensor, "images classes height width"]:
    """Return the network's logits of whole images, where the images are, a few windows at a time on `device`.

    An image that fits into one window is passed to the network unchanged. What the network needs for a forward pass
    depends neither on the size of the images nor on their number. Call network.eval() before.

    Args:
        network: maps images to logits of their size.
        images: normalised, [images, channels, height, width]; a tensor, or what returns parts of one.
        window: side of a window in pixels.
        overlap: least overlap of neighbouring windows, as a share of the window.
        batch: windows per forward pass; None: as many as have PIXELS pixels, at least one.
        device: where the network is; None: where the images are.

    >>> predict_windows(lambda image: image, torch.ones(1, 1, 5, 9), window=4)[0, 0, 2, :3].round()
    tensor([1., 1., 1.])
    """
    check_windows(window, overlap, batch)
    height, width = images.shape[2:]
    sides = min(window, height), min(window, width)
    together = batch or max(1, PIXELS // (sides[0] * sides[1]))
    corners = list(product(window_starts(height, window, overlap), window_starts(width, window, overlap)))
    weight = window_weight(*sides).to(images.device)
    places = [
        (number, slice(top, top + sides[0]), slice(left, left + sides[1]))
        for number in range(images.shape[0])
        for top, left in corners
    ]
    sums: Tensor | None = None
    for first in range(0, len(places), together):
        some = places[first : first + together]
        crops = torch.stack([images[number, slice(None), rows, columns] for number, rows, columns in some])
        logits = network(crops.to(device or images.device)).float().to(images.device)
        if len(corners) > 1:
            logits = logits * weight
        if sums is None:
            sums = logits.new_zeros(images.shape[0], logits.shape[1], height, width)
        for (number, rows, columns), one in zip(some, logits, strict=True):
            sums[number, :, rows, columns] += one
    assert sums is not None
    return sums.div_(_coverage(height, width, corners, weight)) if len(corners) > 1 else sums


def check_windows(window: int | None, overlap: float = 0.25, batch: int | None = None) -> None:
    """Refuse windows that are empty or do not advance; None: not given."""
    for name, value in (("window", window), ("batch", batch)):
        if value is not None and value < 1:
            raise ValueError(f"Expected {name} to be at least 1 but got {value}.")
    if not 0 <= overlap < 1:
        raise ValueError(f"Expected overlap, a share of the window, from 0 to below 1 but got {overlap}; try 0.25.")


def _coverage(height: int, width: int, corners: list[tuple[int, int]], weight: Tensor) -> Tensor:
    total = weight.new_zeros(height, width)
    rows, columns = weight.shape
    for top, left in corners:
        total[top : top + rows, left : left + columns] += weight
    return total

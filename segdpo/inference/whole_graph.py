"""A network together with the preparation of its images, as one graph: image in, mask out."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Int32, UInt8
from torch import Tensor, nn

from segdpo.data import Preparation, albumentations
from segdpo.models import Segmenter
from segdpo.preferences import Network, masks_of
from segdpo.scores import predicted_classes

# The share of pixels that may differ from predict.
DIFFERING = 1e-3
# Wider than any image, so that none is predicted in windows.
NO_WINDOW = 2**20


class Padding(NamedTuple):
    """How many columns and rows are added on each side, in the order of torch, and the value that fills them."""

    left: int
    right: int
    above: int
    below: int
    fill: float

    def added(self, images: Tensor) -> Tensor:
        """Return the images with their padding."""
        return F.pad(images, self[:4], value=self.fill)

    def removed(self, logits: Tensor) -> Tensor:
        """Return the logits without it."""
        # Negative padding instead of a slice, as in Segmenter.
        return F.pad(logits, [-side for side in self[:4]])


class WholeGraph(nn.Module):
    """From uint8 images [images, height, width, channels] of their own size to class ids uint8 [images, height, width].

    Args:
        segmenter: the network.
        preparation: of its images; it may resize and then pad.
        shape: [images, channels, height, width]; if the preparation resizes, other heights and widths work too.

    Raises:
        ValueError: the preparation does something else.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, segmenter: Segmenter, preparation: Preparation, shape: tuple[int, int, int, int]) -> None:
        super().__init__()
        self.segmenter = segmenter
        self.size, self.padding = _steps_of(preparation, shape[2:], shape[1])
        views = preparation.views
        for name, values in (("mean", views.mean), ("std", views.std)):
            self.register_buffer(name, 255 * torch.tensor(values, dtype=torch.float32)[:, None, None])

    def forward(self, image: Tensor) -> Tensor:
        """Return the class of each pixel."""
        size = image.shape[1:3]
        pixels = image.permute(0, 3, 1, 2).int()
        if self.size is not None:
            pixels = resized(pixels, self.size)
        inputs = (self.padding.added(pixels.float()) - self.mean) / self.std
        logits = self.padding.removed(self.segmenter(inputs))
        if self.size is not None:
            logits = F.interpolate(logits, size, mode="bilinear", align_corners=False, antialias=True)
        return predicted_classes(logits)


def resized(images: Int32[Tensor, "N C H W"], size: tuple[int, int]) -> Int32[Tensor, "N C h w"]:
    """Return 8-bit images resized as by cv2 and albumentations, to the bit: bilinear, between centres of pixels.

    cv2 rounds weights to 1/2048 and drops bits of both rows before it adds them, so that one pixel in eight is darker
    by one than rounding would make it.
    """
    (upper, lower, high), (left, right, wide) = (
        _neighbours(images.shape[axis], length) for axis, length in ((2, size[0]), (3, size[1]))
    )
    high = high[:, None]
    rows = [images.index_select(2, number) for number in (upper, lower)]
    above, below = (
        (row.index_select(3, left) * (2048 - wide) + row.index_select(3, right) * wide) // 16 for row in rows
    )
    return (above * (2048 - high) // 2**16 + below * high // 2**16 + 2) // 4


def _neighbours(length: int, wanted: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the pixels before and after the centre of each wanted pixel, and the weight of the latter out of 2048."""
    # Coordinates are rounded to float32 before they are split.
    centres = ((torch.arange(wanted, dtype=torch.float64) + 0.5) * length / wanted - 0.5).float()
    first = centres.floor()
    weight = ((centres - first) * 2048).round().int()
    before = first.long()
    return before.clamp(0, length - 1), (before + 1).clamp(0, length - 1), weight


@dataclass(frozen=True)
class Agreement:
    """Comparison of a file with the masks of `segdpo predict`: the share of pixels of another class."""

    shape: tuple[int, ...]
    differing: float

    @property
    def passed(self) -> bool:
        """Whether so few pixels differ as other kernels and the rounding of grey values account for."""
        return self.differing <= DIFFERING

    def __str__(self) -> str:
        size = " × ".join(map(str, self.shape))
        return f"{size}: {self.differing:.4%} of the pixels have another class than in predict"


def compare_masks(
    segmenter: Segmenter, preparation: Preparation, predict: Callable[[Tensor], Tensor], shape: Sequence[int]
) -> Agreement:
    """Return how many pixels `predict` gives another class than `segdpo predict`, which sees the whole image."""
    images = example_images(shape)
    network = Network(segmenter, replace(preparation, window=NO_WINDOW))
    expected = np.concatenate([masks_of(network.predict(image[None])) for image in images.numpy()])
    return Agreement(tuple(shape), float((predict(images).numpy() != expected).mean()))


def example_images(shape: Sequence[int]) -> UInt8[Tensor, "N H W C"]:
    """Return images of blobs with some noise, always the same for a shape [images, channels, height, width]."""
    generator = torch.Generator().manual_seed(0)
    count, channels, height, width = shape
    coarse = torch.rand(count, channels, height // 16 + 2, width // 16 + 2, generator=generator)
    blobs = F.interpolate(coarse, (height, width), mode="bilinear", align_corners=True)
    noise = torch.randn(count, channels, height, width, generator=generator)
    return (255 * blobs + 8 * noise).round().clamp(0, 255).byte().permute(0, 2, 3, 1).contiguous()


def resizes(preparation: Preparation) -> bool:
    """Return whether images of any size become inputs of one size."""
    return any(isinstance(step, albumentations.Resize) for step in preparation.views.steps)


def _steps_of(preparation: Preparation, size: tuple[int, int], channels: int) -> tuple[tuple[int, int] | None, Padding]:
    """Return the size that images are resized to, if they are, and the padding."""
    steps = list(preparation.views.steps)
    resize = steps.pop(0) if steps and isinstance(steps[0], albumentations.Resize) else None
    pad = steps.pop(0) if steps and isinstance(steps[0], albumentations.PadIfNeeded) else None
    problem = f"{type(steps[0]).__name__} too" if steps else _problem_of(resize, pad)
    if problem:
        raise ValueError(
            "Expected a preparation that resizes (Resize, by linear interpolation) and then pads (PadIfNeeded), or "
            f"less, to be part of the file but it has {problem}; export without --with-preparation, and prepare images "
            "as `preparation` in the file says."
        )
    seen = preparation.input_of(np.zeros((*size, channels), np.uint8))
    (rows, columns), (height, width) = seen.box, seen.image.shape[1:]
    sides = columns.start, width - columns.stop, rows.start, height - rows.stop
    padding = Padding(*sides, 0 if pad is None else pad.fill)
    return None if resize is None else (resize.height, resize.width), padding


def _problem_of(resize: albumentations.Resize | None, pad: albumentations.PadIfNeeded | None) -> str | None:
    """Return what a graph cannot do of these two steps."""
    if any(step is not None and step.p < 1 for step in (resize, pad)):
        return "steps that are left to chance (p)"
    if resize is not None and (resize.interpolation != cv2.INTER_LINEAR or resize.area_for_downscale):
        return f"Resize with interpolation={resize.interpolation}, area_for_downscale={resize.area_for_downscale}"
    if pad is None or (
        pad.border_mode == cv2.BORDER_CONSTANT and isinstance(pad.fill, int | float) and pad.position != "random"
    ):
        return None
    return f"PadIfNeeded with border_mode={pad.border_mode}, fill={pad.fill}, position={pad.position}"

"""Views of an image and its masks: one geometry for all, photometrics for the image; the door to albumentations.

All masks of an image go through albumentations in one call, as one array [K,H,W], so that one draw moves all alike.
Not as channels [H,W,K]: cv2 takes at most 4, so that 5 and more take twice as long, and it fills only the first of
them with 255 under elastic, grid and optical distortion, which would make the outside background in the others.
Pixels that come from outside the image are 255 (ignore) in every mask.
"""

import os
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import albumentations as albumentations  # yamls name steps through here: segdpo.data.albumentations.D4
import cv2
import numpy as np
from jaxtyping import Bool, Float32, UInt8
from numpy.typing import NDArray

from segdpo.checks import IGNORE
from segdpo.data.record import Image
from segdpo.masks import Masks
from segdpo.models import IMAGENET_MEAN, IMAGENET_STD

# Importing albumentations asks the network for a newer version unless told not to; clusters have no network.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

Step: TypeAlias = albumentations.BasicTransform | albumentations.BaseCompose

# cv2's INTER_NEAREST takes the corner of a pixel's source, not its centre: masks halved in size lie half a pixel off
# the image, quartered 2 pixels. Warps round, so there it is right, and INTER_NEAREST_EXACT is not allowed.
_RESIZING = (
    albumentations.Resize,
    albumentations.RandomScale,
    albumentations.LongestMaxSize,
    albumentations.SmallestMaxSize,
    albumentations.RandomResizedCrop,
    albumentations.RandomSizedCrop,
    albumentations.RandomSizedBBoxSafeCrop,
    albumentations.RandomCropFromBorders,
    albumentations.CropAndPad,
)


@dataclass(frozen=True, eq=False)
class View:
    """One view of an image and its K masks; `valid` is False where the pixel came from outside the image."""

    image: Float32[np.ndarray, "channels height width"]
    masks: UInt8[np.ndarray, "masks height width"]
    valid: Bool[np.ndarray, "height width"]


class Pipeline:
    """Albumentations steps, then normalisation: (image / 255 − mean) / std.

    `steps` are albumentations transforms without Normalize or ToTensorV2. Masks are always resampled by nearest and
    filled with 255; what a step says about that is overruled. `mean` and `std` have one value a channel, or one
    for all.

    >>> pipeline = Pipeline([albumentations.HorizontalFlip(p=1.0)])
    >>> image = np.zeros((2, 3, 3), np.uint8)
    >>> masks = np.array([[[1, 0, 0], [0, 0, 0]]], np.uint8)
    >>> pipeline(image, masks, np.random.default_rng(0)).masks.tolist()
    [[[0, 0, 1], [0, 0, 0]]]
    """

    def __init__(
        self,
        steps: Sequence[Step] = (),
        *,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
    ) -> None:
        for step in _flat(steps):
            _make_exact(step)
        self._steps = albumentations.Compose(list(steps))
        centre, spread = (np.asarray(values, np.float32)[:, None, None] for values in (mean, std))
        self._scale: NDArray[np.float32] = np.divide(1, 255 * spread, dtype=np.float32)
        self._shift: NDArray[np.float32] = -centre / spread

    def __call__(self, image: Image, masks: Masks, rng: np.random.Generator) -> View:
        """Return the view that `rng` draws; equal generators give equal views, in any process."""
        # set_random_seed would start every step at the same number: two flips with p=.5 would always go together.
        self._steps.set_random_state(rng, random.Random(int(rng.integers(2**63))))
        # Plane 0, 1 all over, tells inside from outside afterwards, also where a step leaves 0 (GridElasticDeform).
        planes = np.concatenate([np.ones((1, *image.shape[:2]), np.uint8), masks])
        moved = self._steps(image=image, masks=planes)
        planes = np.ascontiguousarray(moved["masks"])
        valid = planes[0] == 1
        if not valid.all():
            planes[:, ~valid] = IGNORE
        return View(self._normalise(moved["image"]), planes[1:], valid)

    def _normalise(self, image: Image) -> Float32[np.ndarray, "channels height width"]:
        channels = image.shape[-1]
        if image.dtype != np.uint8:
            raise TypeError(
                f"Expected the steps to leave the image uint8 but got {image.dtype}; leave out Normalize, ToFloat and "
                "ToTensorV2, which Pipeline does itself."
            )
        if len(self._scale) not in (1, channels):
            raise ValueError(
                f"Expected an image of {len(self._scale)} channels, as many as mean and std have values, but got "
                f"{channels}; set mean and std to one value, or to {channels}."
            )
        out: NDArray[np.float32] = np.multiply(image.transpose(2, 0, 1), self._scale, dtype=np.float32, order="C")
        out += self._shift
        return out


def init_worker(worker: int) -> None:
    """Give a DataLoader's worker one thread: cv2's own pool makes several workers wait for each other."""
    cv2.setNumThreads(0)


def _flat(steps: Iterable[Step]) -> Iterator[albumentations.BasicTransform]:
    for step in steps:
        if isinstance(step, albumentations.BaseCompose):
            yield from _flat(step.transforms)
        else:
            yield step


def _make_exact(step: albumentations.BasicTransform) -> None:
    """Set how a step resamples and fills masks, where it does either."""
    if getattr(step, "fill_mask", None) is not None:
        step.fill_mask = IGNORE
    if hasattr(step, "mask_interpolation"):
        step.mask_interpolation = cv2.INTER_NEAREST_EXACT if isinstance(step, _RESIZING) else cv2.INTER_NEAREST

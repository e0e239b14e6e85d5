"""Views of an image and its masks: one geometry for all, photometrics for the image; and where the image lies in one.

All masks of an image go through albumentations in one call, as one array [K, H, W]: one draw moves them together.
Not as channels [H, W, K]: cv2 takes at most 4, so that 5 and more take twice as long, and it fills only the first of
them with 255 under elastic, grid and optical distortion, which would make the outside background in the others.
Pixels that come from outside the image are 255 (ignore) in every mask.
"""

import os
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import cv2
import numpy as np
from jaxtyping import Bool, Float32, UInt8
from numpy.typing import NDArray

from segdpo.checks import IGNORE
from segdpo.data.record import Image
from segdpo.files import DataError
from segdpo.masks import Mask, Masks
from segdpo.models import IMAGENET_MEAN, IMAGENET_STD

# Importing albumentations asks the network for a newer version unless told not to; clusters have no network.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
import albumentations as albumentations  # yamls name steps through here: segdpo.data.albumentations.D4

Step: TypeAlias = albumentations.BasicTransform | albumentations.BaseCompose
Box = tuple[slice, slice]
Objects = Callable[[], Bool[np.ndarray, "height width"]]
OBJECT = 2
"""Of plane 0 that `Pipeline` adds to the masks: the pixel belongs to an object."""


@dataclass(frozen=True, eq=False)
class View:
    """One view of an image and its K masks; `valid` is False where the pixel came from outside the image."""

    image: Float32[np.ndarray, "channels height width"]
    masks: UInt8[np.ndarray, "masks height width"]
    valid: Bool[np.ndarray, "height width"]


class Pipeline:
    """Albumentations steps, then normalisation: (image / 255 − mean) / std.

    Args:
        steps: albumentations transforms without Normalize or ToTensorV2. Masks are always resampled by nearest and
            filled with 255, whatever a step says about that.
        mean: one value a channel, or one for all; left out: ImageNet's.
        std: like `mean`.

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
        self.steps, self.mean, self.std = tuple(steps), tuple(mean), tuple(std)
        self._steps = albumentations.Compose(list(steps))
        first = steps[0] if steps else None
        # A crop that comes first cuts large images before anything else is done with them.
        self._crop = first if isinstance(first, ObjectCrop) and first.p == 1 else None
        self._after_crop = albumentations.Compose(list(steps[1:]))

    @property
    def asks_objects(self) -> bool:
        """Whether a step wants to know where the objects are."""
        return any(isinstance(step, ObjectCrop) and step.objects > 0 for step in _flat(self._steps.transforms))

    def __call__(
        self,
        image: Image,
        masks: Masks | Sequence[Mask],
        rng: np.random.Generator,
        objects: Objects | None = None,
    ) -> View:
        """Return the view that `rng` draws; equal generators give equal views, in any process.

        Args:
            image: uint8 [H, W, C].
            masks: class ids uint8 [K, H, W], or K of [H, W]; K may be 0.
            rng: draws what the steps leave to chance.
            objects: returns where the image has objects; called if a step asks for it.
        """
        moved, planes, valid = self.move(image, masks, rng, objects)
        return View(normalise(moved, self.mean, self.std), planes, valid)

    def move(
        self,
        image: Image,
        masks: Masks | Sequence[Mask],
        rng: np.random.Generator,
        objects: Objects | None = None,
    ) -> tuple[Image, Masks, Bool[np.ndarray, "height width"]]:
        """Return image, masks and `valid` of the view, the image not yet normalised."""
        # set_random_seed would start every step at the same number: two flips with p=.5 would always go together.
        draws = random.Random(int(rng.integers(2**63)))
        steps, cut = self._steps, False
        if self._crop is not None and min(image.shape[:2]) >= self._crop.height:
            draws.random()  # as Compose does, to draw whether it does anything
            self._crop.set_random_state(rng, draws)
            rows, columns = self._crop.draw(image.shape[:2], objects)
            image, masks = image[rows, columns], [mask[rows, columns] for mask in masks]
            steps, cut = self._after_crop, True
        steps.set_random_state(rng, draws)
        # Plane 0, 1 or OBJECT all over, tells inside from outside afterwards, also where a step leaves 0
        # (GridElasticDeform).
        inside = np.ones(image.shape[:2], np.uint8)
        if self.asks_objects and objects is not None and not cut:
            inside += objects()
        planes = np.stack([inside, *masks])
        del inside, masks  # of large images they take many bytes
        moved = steps(image=image, masks=planes, force_apply=cut)
        if moved["image"].dtype != np.uint8:
            raise TypeError(
                f"Expected the steps to leave the image uint8 but got {moved['image'].dtype}; leave out Normalize, "
                "ToFloat and ToTensorV2, which Pipeline does itself."
            )
        planes = np.ascontiguousarray(moved["masks"])
        valid = (planes[0] == 1) | (planes[0] == OBJECT)
        if not valid.all():
            planes[:, ~valid] = IGNORE
        return moved["image"], planes[1:], valid


class ObjectCrop(albumentations.RandomCrop):  # type: ignore[misc]
    """A crop of size × size: a share of them has a pixel of an object somewhere in it, the others lie anywhere.

    Objects that cover little of a large image are in few crops that lie anywhere; nnU-Net (Isensee et al., 2021) draws
    a third of its crops like this. Every object pixel is as likely as any other. Images that are smaller are padded.

    Args:
        size: side of the crop in pixels.
        objects: the share.
    """

    def __init__(self, size: int, objects: float = 1 / 3) -> None:
        if not 0 <= objects <= 1:
            raise ValueError(f"Expected objects to be a share of the crops, from 0 to 1, but got {objects}.")
        super().__init__(height=size, width=size, pad_if_needed=True)
        self.objects = objects

    def get_params_dependent_on_data(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
        """Return where to crop, and how far to pad before."""
        return self._draw(params["shape"], lambda: np.asarray(data["masks"][0]) == OBJECT)

    def draw(self, shape: tuple[int, ...], objects: Objects | None) -> Box:
        """Return where to crop an image [height, width] that is at least as large as the crop."""
        left, top, right, bottom = self._draw(shape, objects)["crop_coords"]
        return slice(top, bottom), slice(left, right)

    def _draw(self, shape: tuple[int, ...], objects: Objects | None) -> dict[str, Any]:
        found: dict[str, Any] = super().get_params_dependent_on_data({"shape": shape}, {})
        anywhere = self.py_random.random() >= self.objects
        place = None if anywhere or objects is None else self._object_pixel(objects())
        if place is not None:
            pads = found["pad_params"] or {}
            size, starts = self.height, []
            for at, length, before, after in zip(place, shape, ("top", "left"), ("bottom", "right"), strict=False):
                first, last = pads.get(f"pad_{before}", 0), pads.get(f"pad_{after}", 0)
                start = at + first - self.py_random.randrange(size)
                starts.append(min(max(0, start), length + first + last - size))
            found["crop_coords"] = (starts[1], starts[0], starts[1] + size, starts[0] + size)
        return found

    def _object_pixel(self, objects: Bool[np.ndarray, "height width"]) -> tuple[int, int] | None:
        """Return the row and column of a pixel of an object, each as likely as any other; None if there is none."""
        until = np.count_nonzero(objects, axis=1).cumsum()
        if not until[-1]:
            return None
        number = self.py_random.randrange(int(until[-1]))
        row = int(np.searchsorted(until, number, "right"))
        columns = np.flatnonzero(objects[row])
        return row, int(columns[number - int(until[row])])


def normalise(
    image: Image, mean: Sequence[float] = IMAGENET_MEAN, std: Sequence[float] = IMAGENET_STD
) -> Float32[np.ndarray, "channels height width"]:
    """Return (image / 255 − mean) / std as float32 [C, H, W].

    Args:
        image: uint8 [H, W, C].
        mean: one value a channel, or one for all.
        std: like `mean`.
    """
    check_channels(image.shape[-1], mean, std)
    centre, spread = (np.asarray(values, np.float32)[:, None, None] for values in (mean, std))
    # One multiplication and one addition a pixel.
    scale = np.divide(1, 255 * spread, dtype=np.float32)
    out: NDArray[np.float32] = np.multiply(image.transpose(2, 0, 1), scale, dtype=np.float32, order="C")
    out += -centre / spread
    return out


def check_channels(channels: int, mean: Sequence[float], std: Sequence[float]) -> None:
    """Refuse an image of other channels than `mean` and `std` are for."""
    if wrong := {len(mean), len(std)} - {1, channels}:
        raise ValueError(
            f"Expected an image of {max(wrong)} channels, as many as mean and std have values, but got {channels}; "
            f"set mean and std to one value, or to {channels}."
        )


def init_worker(worker: int) -> None:
    """Give a DataLoader's worker one thread: cv2's own pool makes several workers wait for each other."""
    cv2.setNumThreads(0)


# Numbers are written in two digits of this base, below 255, which is ignore in every mask.
_BASE = 251
_LARGEST = _BASE**2


def coordinate_masks(size: tuple[int, ...]) -> UInt8[np.ndarray, "4 height width"]:
    """Return masks that hold each pixel's own row and column, each as two digits: views move them like any mask."""
    if max(size) > _LARGEST:
        raise DataError(f"Expected an image of at most {_LARGEST} pixels a side but got {size[0]}×{size[1]}.", "size")
    # One side at a time: np.indices would take 16 bytes a pixel.
    digits = np.empty((4, *size), np.uint8)
    for axis, places in enumerate((np.arange(size[0])[:, None], np.arange(size[1]))):
        digits[2 * axis], digits[2 * axis + 1] = places // _BASE, places % _BASE
    return digits


def image_box(name: str, places: Masks, valid: Bool[np.ndarray, "height width"], size: tuple[int, ...]) -> Box:
    """Return the part of a view that shows the image; refuse a view that shows it cut, turned or bent.

    In a view that only resizes and pads, the pixel at row r of h shows the image's row at the same fraction of its
    height, to within one pixel of the image, and likewise for columns.

    Args:
        name: of the record, for the error.
        places: the masks of the view: those of `coordinate_masks(size)` under its geometry.
        valid: of the view.
        size: height and width of the image.
    """
    box = _bounds(valid)
    if box is not None and valid[box].all():
        high, low = places[::2, box[0], box[1]], places[1::2, box[0], box[1]]
        # One axis at a time, and uint16, which holds every place: large images take many bytes.
        if all(_is_proportional(high[axis] * np.uint16(_BASE) + low[axis], axis, size[axis]) for axis in (0, 1)):
            return box
    raise DataError(
        f"{name}: Expected an eval pipeline that shows the whole image, resized or padded, but it cuts, turns or "
        "bends it, so that nothing can be measured at the image's own size; take transforms.eval without such "
        "steps (transforms=whole, transforms=resized), or measure the views as they are: measured_at=view.",
        "size",
    )


def _bounds(valid: Bool[np.ndarray, "height width"]) -> Box | None:
    rows, columns = (np.flatnonzero(valid.any(axis)) for axis in (1, 0))
    if not len(rows):
        return None
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)


def _is_proportional(found: np.ndarray, axis: int, size: int) -> bool:
    """Return whether the places found run through the image evenly, to within a pixel of the image."""
    length = found.shape[axis]
    expected = (np.arange(length) + 0.5) * size / length - 0.5
    low, high = np.ceil(expected - 1.01).clip(0).astype(np.uint16), np.floor(expected + 1.01).astype(np.uint16)
    if axis == 0:
        low, high = low[:, None], high[:, None]
    return bool(((low <= found) & (found <= high)).all())


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


def _make_exact(step: albumentations.BasicTransform) -> None:
    """Set how a step resamples and fills masks, where it does either."""
    if getattr(step, "fill_mask", None) is not None:
        step.fill_mask = IGNORE
    if hasattr(step, "mask_interpolation"):
        step.mask_interpolation = cv2.INTER_NEAREST_EXACT if isinstance(step, _RESIZING) else cv2.INTER_NEAREST


def _flat(steps: Iterable[Step]) -> Iterator[albumentations.BasicTransform]:
    for step in steps:
        if isinstance(step, albumentations.BaseCompose):
            yield from _flat(step.transforms)
        else:
            yield step

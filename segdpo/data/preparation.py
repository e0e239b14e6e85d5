"""How an image becomes a network's input, and how its logits become those of the image: one object for every use.

It is kept with the weights (see `Preparation.stored`), so that prediction shows the network what training showed it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32
from PIL import Image as Pillow
from torch import Tensor
from torch.nn.functional import interpolate

from segdpo.checks import is_finite
from segdpo.data.images import convert_image, decode_image
from segdpo.data.pixels import Numbers
from segdpo.data.record import Image
from segdpo.data.transforms import Box, Pipeline, Step, check_channels, coordinate_masks, image_box, normalise
from segdpo.models import EVALUATION, IMAGENET_MEAN, IMAGENET_STD, build_named, checked

WINDOW = 512  # side of the windows of images at their own size
STORED = ("views", "channels", "value_range", "window")


@dataclass(frozen=True, eq=False)
class Prepared:
    """An image as the network receives it.

    Attributes:
        pixels: uint8 [height, width, channels]: the network's input before it is normalised.
        views: normalises it.
        box: the part of the input that shows the image; the rest is padding.
        size: height and width of the image.
    """

    pixels: Image
    views: Pipeline
    box: Box
    size: tuple[int, int]

    @property
    def image(self) -> Float32[np.ndarray, "channels height width"]:
        """The network's input."""
        return self.part(slice(None), slice(None))

    def part(self, rows: slice, columns: slice) -> Float32[np.ndarray, "channels height width"]:
        """Return a part of the network's input: of a large image, the whole takes twelve bytes a pixel."""
        return normalise(self.pixels[rows, columns], self.views.mean, self.views.std)

    def at_image_size(self, logits: Float32[Tensor, "classes height width"]) -> Float32[Tensor, "classes rows columns"]:
        """Return logits of the input as logits of the image: without the padding, resampled to the image's size."""
        inside = logits[:, *self.box]
        if inside.shape[1:] == self.size:
            return inside
        return interpolate(inside[None], self.size, mode="bilinear", align_corners=False, antialias=True)[0]


@dataclass(frozen=True, eq=False)
class Preparation:
    """What is done to an image before the network sees it, in training, mining, evaluation, prediction and export.

    Args:
        views: the pipeline of evaluation (`transforms.eval`): resizes or pads, and normalises.
        channels: how image files are decoded: 3: RGB, 1: grey, None: as stored.
        value_range: the values of 16-bit and float images that become 0 and 255; None: images have 8 bits.
        window: inputs with a longer side are predicted in overlapping windows of this side; None: whole, unless that
            would take too much memory, see `segdpo.preferences.Network`.
        node: what builds `views`, as in a yaml, with every value filled in; None: not known, as for weights of earlier
            versions, which kept mean and std alone.
    """

    views: Pipeline = field(default_factory=Pipeline)
    channels: int | None = 3
    value_range: tuple[float, float] | None = None
    window: int | None = None
    node: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        """Refuse values that no image could be prepared with."""
        views: object = self.views  # which a yaml may make anything
        if not isinstance(views, Pipeline):
            found = type(views).__name__
            raise ValueError(f"Expected transforms.eval to build a segdpo.data.Pipeline but it builds a {found}.")
        if self.channels not in (1, 3, None):
            raise ValueError(f"Expected channels to be 3 (RGB), 1 (grey) or null (as stored) but got {self.channels}.")
        if not (self.window is None or (type(self.window) is int and self.window >= 1)):
            raise ValueError(f"Expected a window of at least 1 pixel, or null for none, but got {self.window!r}.")
        ends = self.value_range
        if ends is not None and not (len(ends) == 2 and all(map(is_finite, ends)) and ends[0] < ends[1]):
            raise ValueError(f"Expected value_range as [lowest, highest] of the images' values but got {ends!r}.")

    def decode(self, data: bytes, name: str) -> Image:
        """Return the image in a file's bytes as training decoded it; `name` is for messages."""
        return decode_image(data, name, self.channels, self.value_range)

    def convert(self, image: Pillow.Image | Numbers, name: str) -> Image:
        """Return an image in memory as `decode` returns that of a file."""
        return convert_image(image, name, self.channels, self.value_range)

    def input_of(self, image: Image, name: str = "transforms.eval") -> Prepared:
        """Return an image as the network receives it.

        Args:
            image: uint8 [H, W, C].
            name: of the image, for messages.

        Raises:
            DataError: the views cut, turn or bend the image, so that logits cannot be taken back to its size.
        """
        if image.dtype != np.uint8 or image.ndim != 3:
            raise ValueError(f"{name}: Expected an image uint8 [H, W, C] but got {image.dtype} {list(image.shape)}.")
        height, width = image.shape[:2]
        nothing = np.empty((0, height, width), np.uint8)
        try:
            # Without steps, no places need to be followed. No name for the masks: they take more bytes than the image.
            pixels, places, valid = self.views.move(
                image,
                coordinate_masks((height, width)) if self.views.steps else nothing,
                np.random.default_rng(0),
            )
        except Exception as error:  # steps raise their own kinds, as for an image smaller than a crop
            raise ValueError(f"{name}: cannot be prepared as in training ({error}); see transforms.eval.") from error
        whole = slice(0, height), slice(0, width)
        box = image_box(name, places, valid, (height, width)) if self.views.steps else whole
        check_channels(image.shape[2], self.views.mean, self.views.std)
        return Prepared(pixels, self.views, box, (height, width))

    def native(self, window: int = WINDOW) -> "Preparation":
        """Return the same for images at their own size, in windows: normalised, and neither resized nor padded."""
        mean, std = self.views.mean, self.views.std
        node = {"_target_": "segdpo.data.Pipeline", "mean": list(mean), "std": list(std)}
        return replace(self, views=Pipeline(mean=mean, std=std), window=window, node=node)

    def stored(self) -> dict[str, Any]:
        """Return the form that is kept with weights, of JSON's values; `read_preparation` reads it."""
        node = self.native().node if self.node is None and not self.views.steps else self.node
        if node is None:
            raise ValueError("Expected a preparation with its node, which says how its views are built; give node=….")
        ends = None if self.value_range is None else list(self.value_range)
        return {"views": dict(node), "channels": self.channels, "value_range": ends, "window": self.window}

    def line(self, *, native: bool = False) -> str:
        """Return what users are told about a prediction, in one line.

        >>> Preparation().native().line(native=True)
        "native: images at their own size, in windows of 512, masks at the images' own size"
        """
        mode = "native" if native else "as trained"
        if self.node is None and not native:
            mode = "native, since the weights do not say how images were prepared (an earlier version wrote them)"
        return f"{mode}: {self.words}, masks at the images' own size"

    @property
    def words(self) -> str:
        """What is done to images, in words.

        >>> Preparation(window=128).words
        'images at their own size, in windows of 128'
        """
        steps = [_words_of(step) for step in self.views.steps] or ["images at their own size"]
        return ", ".join([*steps, *([] if self.window is None else [f"in windows of {self.window}"])])


def read_preparation(content: Any, path: Path, *, trusted: Sequence[str] = ()) -> Preparation:
    """Return the preparation that a file of weights holds, after a check of everything that it names.

    Args:
        content: what `Preparation.stored` returned.
        path: the file, for messages.
        trusted: packages whose transforms may be named, besides those of albumentations.

    Raises:
        ValueError: the content has another form, or names something that a file may not name.
    """
    if not isinstance(content, Mapping) or set(content) != set(STORED):
        names = sorted(map(str, content)) if isinstance(content, Mapping) else type(content).__name__
        raise ValueError(
            f"{path}: Expected a preparation of images ({', '.join(STORED)}) but got {names}; if a later version of "
            "segdpo wrote this file, install that version."
        )
    node = checked(content["views"], path, "preparation.views", table=EVALUATION, trusted=trusted)
    views = build_named(node, path, "preparation.views", table=EVALUATION, trusted=trusted)
    ends = content["value_range"]
    try:
        value_range = tuple(ends) if isinstance(ends, list | tuple) else ends
        return Preparation(views, content["channels"], value_range, content["window"], node)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: preparation: {error}") from error


def unknown_preparation(
    mean: Sequence[float] = IMAGENET_MEAN, std: Sequence[float] = IMAGENET_STD, channels: int | None = 3
) -> Preparation:
    """Return that of weights which keep mean and std alone: images at their own size, in windows."""
    return replace(Preparation(channels=channels).native(), views=Pipeline(mean=mean, std=std), node=None)


def _words_of(step: Step) -> str:
    """Return what a step does, in words."""
    name = type(step).__name__
    parts = {key: getattr(step, key, None) for key in ("height", "width", "pad_height_divisor", "pad_width_divisor")}
    if name == "Resize":
        return f"resized to {parts['height']} × {parts['width']}"
    if name == "PadIfNeeded" and parts["pad_height_divisor"]:
        sides = dict.fromkeys((parts["pad_height_divisor"], parts["pad_width_divisor"]))
        return f"padded to multiples of {' × '.join(map(str, sides))}"
    return f"through {name}"

"""The network that candidates come from: images in, logits out, and how sources of candidates are given one."""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Float, Float32, UInt8
from torch import Tensor, nn

from segdpo.data import Image, Pipeline, coordinate_masks, image_box, normalise
from segdpo.masks import Masks
from segdpo.models import IMAGENET_MEAN, IMAGENET_STD

Images = UInt8[np.ndarray, "N H W C"]
Logits = Float32[np.ndarray, "N classes H W"]
R = TypeVar("R")


@dataclass(frozen=True, eq=False)
class Network:
    """A network in eval mode that predicts images [H, W, C] at their own size.

    Args:
        model: maps float32 images [N, C, H, W] to logits [N, classes, H, W]; moved to `device` and put into eval mode.
        views: the transform of evaluation (`transforms.eval`), which must show the whole image. Images go through it
            and the logits are resampled to the image: a network that was trained on images resized to 128² predicts
            other sizes much worse. None: images are normalised by `mean` and `std` and padded to a `multiple`.
        device: where the model runs.
        mean: one value a channel, or one for all.
        std: one value a channel, or one for all.
        multiple: image sides are padded to a multiple of this at the bottom and the right, by repeating the edge, and
            the logits are cropped back. A U-Net that halves its input five times needs 32.
    """

    model: nn.Module
    views: Pipeline | None = None
    device: str = "cpu"
    mean: Sequence[float] = IMAGENET_MEAN
    std: Sequence[float] = IMAGENET_STD
    multiple: int = 32

    def __post_init__(self) -> None:
        self.model.to(self.device).eval()

    def predict(self, images: Images) -> Logits:
        """Return the logits of uint8 images of one size.

        Raises:
            ValueError: the model returns no logits of the input's size, or some are NaN or infinite.
        """
        with torch.inference_mode():
            logits = self._padded(images) if self.views is None else self._in_views(images, self.views)
        found = logits.float().cpu().numpy()
        if not np.isfinite(found).all():
            raise ValueError(
                "Expected finite logits from the network but some are NaN or infinite; check the weights it was given."
            )
        return np.asarray(found)

    def _padded(self, images: Images) -> Tensor:
        height, width = images.shape[1:3]
        inputs = torch.stack([to_model_input(image, self.mean, self.std) for image in images])
        padding = (0, -width % self.multiple, 0, -height % self.multiple)
        return self._logits(nn.functional.pad(inputs.to(self.device), padding, mode="replicate"))[:, :, :height, :width]

    def _in_views(self, images: Images, views: Pipeline) -> Tensor:
        size = images.shape[1:3]
        coordinates = coordinate_masks(size)
        seen = [views(image, coordinates, np.random.default_rng(0)) for image in images]
        rows, columns = image_box("transforms.eval", seen[0], size)
        inputs = torch.from_numpy(np.stack([view.image for view in seen])).to(self.device)
        logits = self._logits(inputs)[:, :, rows, columns].float()
        if logits.shape[2:] != size:
            logits = nn.functional.interpolate(logits, size, mode="bilinear", antialias=True)
        return logits

    def _logits(self, inputs: Tensor) -> Tensor:
        logits = self.model(inputs)
        expected = (len(inputs), *inputs.shape[2:])
        if not isinstance(logits, Tensor) or logits.ndim != 4 or (len(logits), *logits.shape[2:]) != expected:
            got = f"shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
            raise ValueError(
                f"Expected the network to return logits [{expected[0]}, classes, {expected[1]}, {expected[2]}] but got "
                f"{got}; wrap it in a module that returns the logits alone, resized to the input."
            )
        return logits


def asks_network(function: Callable[..., object]) -> bool:
    """Say whether a source of candidates, an acquisition or a selection needs a network that it has not been given.

    It does if it has a parameter `network` without a default, or if a function that was bound to it (the sources of a
    mixture, the acquisition of a selection) does.
    """
    parameter = _network_parameter(function)
    if parameter is not None and parameter.default is parameter.empty:
        return True
    bound = [*function.args, *function.keywords.values()] if isinstance(function, partial) else []
    return any(asks_network(part) for part in _functions(bound))


def with_network(function: Callable[..., R], network: Network | None) -> Callable[..., R]:
    """Bind `network` to the parameter `network` of a function; one that has none, or was given one, stays as it is."""
    parameter = _network_parameter(function)
    if network is None or parameter is None or parameter.default not in (parameter.empty, None):
        return function
    return partial(function, network=network)


def _network_parameter(function: Callable[..., object]) -> inspect.Parameter | None:
    try:
        return inspect.signature(function).parameters.get("network")
    except (ValueError, TypeError):  # a function written in C
        return None


def _functions(value: Any) -> Iterator[Callable[..., object]]:
    """Yield the functions in nested lists and dicts."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple):
        for part in value:
            yield from _functions(part)
    elif callable(value):
        yield value


def masks_of(logits: Logits) -> Masks:
    """Return the predicted classes uint8 [N, H, W]: logit > 0 for one channel, else the argmax."""
    if logits.shape[1] == 1:
        return (logits[:, 0] > 0).astype(np.uint8)
    return np.asarray(logits.argmax(axis=1).astype(np.uint8))


def to_model_input(
    image: UInt8[np.ndarray, "H W C"], mean: Sequence[float] = IMAGENET_MEAN, std: Sequence[float] = IMAGENET_STD
) -> Tensor:
    """Return (image/255 − mean)/std as float32 [C, H, W]; `mean` and `std` have one value a channel, or one for all."""
    if image.dtype != np.uint8 or image.ndim != 3:
        raise ValueError(f"Expected an image as uint8 [H, W, C] but got {image.dtype} of shape {image.shape}.")
    return torch.from_numpy(normalise(image, mean, std))


def to_image(
    inputs: Float[np.ndarray, "C H W"], mean: Sequence[float] = IMAGENET_MEAN, std: Sequence[float] = IMAGENET_STD
) -> Image:
    """Undo `to_model_input`: return round(255 · (inputs · std + mean)) as uint8 [H, W, C], clipped to 0 … 255."""
    pixels = inputs.transpose(1, 2, 0) * np.asarray(std, np.float32) + np.asarray(mean, np.float32)
    return np.asarray((pixels * 255).round().clip(0, 255).astype(np.uint8))

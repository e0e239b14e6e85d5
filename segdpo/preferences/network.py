"""The network that candidates come from: images in, logits out, and how sources of candidates are given one."""

import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Float, Float32, UInt8
from torch import Tensor, nn

from segdpo.data import Image, Preparation, Prepared, normalise
from segdpo.masks import Masks
from segdpo.models import IMAGENET_MEAN, IMAGENET_STD
from segdpo.preferences.sliding_window import Images, predict_windows
from segdpo.scores import predicted_classes

Pixels = UInt8[np.ndarray, "N H W C"]
Logits = Float32[np.ndarray, "N classes H W"]
R = TypeVar("R")

# What sides of images at their own size are padded to for a model that is no Segmenter; a U-Net that halves its input
# five times needs 32.
MULTIPLE = 32
# Where the preparation has no window, inputs of at most WHOLE pixels are predicted whole, as in validation, and others
# in windows of this side.
WHOLE, LARGEST = 2**21, 1024


@dataclass(frozen=True, eq=False)
class Network:
    """A network in eval mode that predicts images [H, W, C] at their own size: for mining, evaluation and prediction.

    Args:
        model: maps float32 images [N, C, H, W] to logits [N, classes, H, W]; moved to `device` and put into eval mode.
        preparation: how an image becomes the network's input. A network that was trained on images resized to 128²
            predicts other sizes much worse. Left out: images at their own size, normalised as for ImageNet.
        device: where the model runs.
        overlap: least overlap of neighbouring windows, as a share of the window.
        batch: windows in one forward pass; None: as many as have PIXELS pixels, at least one.
    """

    model: nn.Module
    preparation: Preparation = field(default_factory=Preparation)
    device: torch.device | str = "cpu"
    overlap: float = 0.25
    batch: int | None = None

    def __post_init__(self) -> None:
        self.model.to(self.device).eval()

    def predict(self, images: Pixels, name: str = "transforms.eval") -> Logits:
        """Return the logits of uint8 images of one size, at that size; `name` is for messages.

        A prediction depends on the images it is made with, in its last bits: to compare two, predict one at a time.

        Raises:
            ValueError: the views do not show the whole image, the model returns no logits of the input's size, or some
                are NaN or infinite.
        """
        prepared = [self.preparation.input_of(image, name) for image in images]
        logits = self.logits(PreparedImages(prepared), name)
        found = [one.at_image_size(each) for one, each in zip(prepared, logits, strict=True)]
        return (found[0][None] if len(found) == 1 else torch.stack(found)).numpy()

    @torch.no_grad()
    def logits(self, inputs: Tensor | Images, name: str = "transforms.eval") -> Tensor:
        """Return the logits of prepared images [N, C, H, W], float32 [N, classes, H, W] on the CPU.

        `name` is for messages.

        Inputs with a side longer than the preparation's window are predicted in windows.
        """
        sides = inputs.shape[2:]
        return predict_windows(
            partial(self._forward, name=name),
            inputs,
            window=self.preparation.window or (max(sides) if math.prod(sides) <= WHOLE else LARGEST),
            overlap=self.overlap,
            batch=self.batch,
            device=self.device,
        )

    def _forward(self, inputs: Tensor, name: str) -> Tensor:
        """Return the model's logits of inputs of any size."""
        height, width = inputs.shape[2:]
        # A Segmenter pads by itself, and views give the sizes that the model was trained at.
        multiple = 1 if hasattr(self.model, "multiple") or self.preparation.views.steps else MULTIPLE
        padding = (0, -width % multiple, 0, -height % multiple)
        if any(padding):
            inputs = nn.functional.pad(inputs, padding, mode="replicate")
        # In the type of the weights, which is bfloat16 after precision=bf16-true.
        weight = next(self.model.parameters(), inputs)
        logits = self.model(inputs.to(weight.dtype))
        expected = (len(inputs), *inputs.shape[2:])
        if not isinstance(logits, Tensor) or logits.ndim != 4 or (len(logits), *logits.shape[2:]) != expected:
            got = f"shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
            raise ValueError(
                f"Expected the network to return logits [{expected[0]}, classes, {expected[1]}, {expected[2]}] but got "
                f"{got}; wrap it in a module that returns the logits alone, resized to the input."
            )
        if not logits.isfinite().all():
            # NaN > 0 is false: without this check a broken network would count as one that predicts background.
            raise ValueError(
                f"{name}: Expected finite logits from the network but some are NaN or infinite; its weights are "
                "broken: use those of an earlier step, or train with a lower learning rate."
            )
        return logits[:, :, :height, :width]


class PreparedImages:
    """Images of one size as networks receive them, [N, C, H, W]; each part is normalised when it is read."""

    device = torch.device("cpu")

    def __init__(self, images: Sequence[Prepared]) -> None:
        self._images = images
        height, width, channels = images[0].pixels.shape
        self.shape = torch.Size((len(images), channels, height, width))

    def __getitem__(self, place: tuple[int, slice, slice, slice]) -> Tensor:
        number, channels, rows, columns = place
        return torch.from_numpy(self._images[number].part(rows, columns))[channels]


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
    """Return the predicted classes uint8 [N, H, W]: logit > 0 for one channel, else the class of the largest logit."""
    return predicted_classes(torch.from_numpy(logits)).numpy()


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

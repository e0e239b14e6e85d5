"""`predict`, a function from images to logits: how sources of candidates ask a model."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Float32, UInt8
from torch import Tensor, nn

from segdpo.data import Image, Pipeline, coordinate_masks, image_box, normalise
from segdpo.masks import Masks
from segdpo.models import IMAGENET_MEAN, IMAGENET_STD

Images = UInt8[np.ndarray, "N H W C"]
Logits = Float32[np.ndarray, "N classes H W"]
Predict = Callable[[Images], Logits]


def predict_with(
    model: nn.Module,
    *,
    device: str = "cpu",
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    multiple: int = 32,
) -> Predict:
    """Return the `predict` of a network in eval mode; `model` maps [N, C, H, W] to logits of the same size.

    Images are padded at the bottom and the right, by repeating their edge, to a `multiple` of pixels (what a U-Net with
    five halvings needs: 32), and the logits cropped back.
    """
    model.to(device).eval()
    return partial(_forward, model=model, device=device, mean=tuple(mean), std=tuple(std), multiple=multiple)


def _forward(
    images: Images, *, model: nn.Module, device: str, mean: Sequence[float], std: Sequence[float], multiple: int
) -> Logits:
    height, width = images.shape[1:3]
    inputs = torch.stack([to_model_input(image, mean, std) for image in images]).to(device)
    with torch.inference_mode():
        padding = (0, -width % multiple, 0, -height % multiple)
        logits = model(nn.functional.pad(inputs, padding, mode="replicate"))
    if not isinstance(logits, Tensor) or logits.shape[2:] != (height + padding[3], width + padding[1]):
        got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(
            f"Expected the model to return logits [N, classes, {height + padding[3]}, {width + padding[1]}] but got "
            f"{got}; wrap it in a function that picks the logits out and resizes them to the image."
        )
    return np.asarray(logits[:, :, :height, :width].float().cpu().numpy())


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
    """Undo `to_model_input`: return round(255 · (inputs · std + mean)) as uint8 [H, W, C], held within 0 … 255."""
    pixels = inputs.transpose(1, 2, 0) * np.asarray(std, np.float32) + np.asarray(mean, np.float32)
    return np.asarray((pixels * 255).round().clip(0, 255).astype(np.uint8))


def with_weights(model: nn.Module, path: str | Path | None, *, prefix: str = "") -> nn.Module:
    """Load a state_dict (bare, or under "state_dict" as in Lightning's files) into the model and return it.

    `prefix` is cut off the keys ("network."), and keys without it are left out. `path` None: the model stays as it is.
    """
    if path is None:
        return model
    content = torch.load(path, map_location="cpu", weights_only=True)
    state = content.get("state_dict", content)
    model.load_state_dict(
        {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    )
    return model


def logits_of(predict: Predict, images: Images) -> Logits:
    """Ask `predict` and refuse what are no logits of these images."""
    logits = np.asarray(predict(images))
    if logits.ndim != 4 or logits.shape[0] != len(images) or logits.shape[2:] != images.shape[1:3]:
        raise ValueError(
            f"Expected predict to return logits [N, classes, H, W] = [{len(images)}, …, {images.shape[1]}, "
            f"{images.shape[2]}] but got shape {logits.shape}."
        )
    if not np.isfinite(logits).all():
        raise ValueError(
            "Expected finite logits from predict but some are NaN or infinite; look at the model's weights."
        )
    return logits.astype(np.float32, copy=False)


def masks_of(logits: Logits) -> Masks:
    """Return the predicted classes uint8 [N, H, W]: logit > 0 for one channel, else the argmax."""
    if logits.shape[1] == 1:
        return (logits[:, 0] > 0).astype(np.uint8)
    return np.asarray(logits.argmax(axis=1).astype(np.uint8))


def predict_in_views(model: nn.Module, *, views: Pipeline, device: str = "cpu") -> Predict:
    """Return the `predict` of a network in eval mode: each image goes through `views`, its logits come back resampled.

    A network that learned on images resized to 128² knows them at that size alone; candidates that it drew at an
    image's own size would be those of a much worse network. `views` have to show the whole image (`transforms.eval`).
    """
    model.to(device).eval()
    return partial(_forward_in_views, model=model, views=views, device=device)


def _forward_in_views(images: Images, *, model: nn.Module, views: Pipeline, device: str) -> Logits:
    size = images.shape[1:3]
    coordinates = coordinate_masks(size)
    seen = [views(image, coordinates, np.random.default_rng(0)) for image in images]
    rows, columns = image_box("transforms.eval", seen[0], size)
    with torch.inference_mode():
        logits: Tensor = model(torch.from_numpy(np.stack([view.image for view in seen])).to(device))
        logits = logits[:, :, rows, columns].float()
        if logits.shape[2:] != size:
            logits = nn.functional.interpolate(logits, size, mode="bilinear", antialias=True)
    return np.asarray(logits.cpu().numpy())

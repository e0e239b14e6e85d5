"""Predict masks of image files, and write them."""

import io
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32
from torch import nn

from segdpo.data import SUFFIXES, Image, decode_image, encode_image, encode_mask, overlay
from segdpo.files import DataError, path_inside, read_file, write_atomically
from segdpo.inference.sliding_window import predict_windows
from segdpo.masks import Mask
from segdpo.models import Segmenter
from segdpo.preferences import masks_of, to_model_input

KINDS = ("masks", "probabilities", "overlays")


def find_images(where: Path, leave_out: Path) -> dict[str, Path]:
    """Return name → path of image files; predictions are written under these names.

    A name is the path in the folder without suffix; images that differ only in their suffix keep it.

    Args:
        where: a file, or a folder with its subfolders.
        leave_out: a folder that is skipped, so that predictions may be written into the folder of the images.
    """
    if where.is_file():
        return {where.stem: where}
    if not where.is_dir():
        raise DataError(f"{where}: no such file or folder; give an image, or a folder of images.")
    paths = [
        path
        for path in sorted(where.rglob("*"))
        if path.suffix.lower() in SUFFIXES and path.is_file() and not path.resolve().is_relative_to(leave_out.resolve())
    ]
    if not paths:
        raise DataError(f"{where}: Expected images but found none; files may end in {', '.join(SUFFIXES)}.")
    stems = [path.relative_to(where).with_suffix("").as_posix() for path in paths]
    times = Counter(stems)
    return {
        path.relative_to(where).as_posix() if times[stem] > 1 else stem: path
        for stem, path in zip(stems, paths, strict=True)
    }


@dataclass(frozen=True)
class Outcome:
    """The result for an image: predicted, or the error."""

    path: Path
    error: str | None = None


def predict_files(
    segmenter: Segmenter,
    description: Mapping[str, Any],
    files: Mapping[str, Path],
    folder: Path,
    *,
    kinds: Collection[str] = ("masks",),
    window: int = 512,
    overlap: float = 0.25,
    batch: int = 4,
    device: torch.device | str = "cpu",
) -> Iterator[Outcome]:
    """Predict image files and write the predictions; yield the outcome of each image as it is done.

    Consecutive images of the same size share forward passes.

    Args:
        segmenter: moved to the device and to evaluation mode.
        description: classes, mean and std, as `open_segmenter` returns them.
        files: name → image, as `find_images` returns them.
        folder: gets KIND/NAME.png or .npz.
        kinds: which of "masks", "probabilities" and "overlays" to write.
        window: side of the windows in which large images are predicted.
        overlap: least overlap of neighbouring windows, as a share of the window.
        batch: images or windows per forward pass.
        device: where to compute.
    """
    segmenter.to(device).eval()
    channels = channels_of(segmenter)
    for group in _groups(files, channels, batch):
        if isinstance(group, Outcome):
            yield group
            continue
        inputs = torch.stack([to_model_input(read.image, description["mean"], description["std"]) for read in group])
        logits = predict_windows(segmenter, inputs, window=window, overlap=overlap, batch=batch, device=device).numpy()
        for read, one in zip(group, logits, strict=True):
            write_prediction(folder, read.name, read.image, one, description["classes"], kinds)
            yield Outcome(read.path)


def channels_of(network: nn.Module) -> int:
    """Return the number of channels of the network's first convolution, or 3 if it has none."""
    return next((part.in_channels for part in network.modules() if isinstance(part, nn.Conv2d)), 3)


def write_prediction(
    folder: Path,
    name: str,
    image: Image,
    logits: Float32[np.ndarray, "classes H W"],
    classes: Sequence[str],
    kinds: Collection[str] = ("masks",),
) -> Mask:
    """Write the prediction of one image to FOLDER/KIND/NAME for each of the kinds, and return the mask."""
    # A prediction can be made again, so it need not reach the disk at once, which would take longer than predicting.
    write = partial(write_atomically, durable=False)
    mask: Mask = masks_of(logits[None])[0]
    if "masks" in kinds:
        write(path_inside(folder, "masks", f"{name}.png"), encode_mask(mask))
    if "probabilities" in kinds:
        buffer = io.BytesIO()
        np.savez_compressed(buffer, probabilities=probabilities(logits).astype(np.float16), classes=np.array(classes))
        write(path_inside(folder, "probabilities", f"{name}.npz"), buffer.getvalue())
    if "overlays" in kinds:
        write(path_inside(folder, "overlays", f"{name}.png"), encode_image(overlay(image, mask, classes)).data)
    return mask


def probabilities(logits: Float32[np.ndarray, "classes H W"]) -> Float32[np.ndarray, "classes H W"]:
    """Return the probability of each class; one channel of logits means background and foreground."""
    both = np.concatenate([np.zeros_like(logits), logits]) if len(logits) == 1 else logits
    powers = np.exp(both - both.max(0))
    return np.asarray(powers / powers.sum(0), np.float32)


@dataclass(frozen=True, eq=False)
class _Read:
    name: str
    path: Path
    image: Image


def _groups(files: Mapping[str, Path], channels: int, batch: int) -> Iterator[list[_Read] | Outcome]:
    """Yield groups of at most `batch` images of one size, and the outcome of images that cannot be read."""
    group: list[_Read] = []
    for name, path in files.items():
        try:
            image = decode_image(read_file(path), str(path), channels)
        except DataError as error:
            yield Outcome(path, str(error))
            continue
        if group and (len(group) == batch or group[0].image.shape != image.shape):
            yield group
            group = []
        group.append(_Read(name, path, image))
    if group:
        yield group

"""From image files and a trained network to files of masks; what cannot be read is told and does not stop the rest."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from segdpo.data.errors import DataError
from segdpo.data.files import read_file
from segdpo.data.image_files import decode_image
from segdpo.data.prediction_files import write_prediction
from segdpo.models.segmenter import Segmenter
from segdpo.models.sliding_window import predict_windows
from segdpo.pairs.prediction import to_model_input
from segdpo.pairs.record import Image


@dataclass(frozen=True)
class Outcome:
    """What became of an image: predicted, or why not."""

    path: Path
    error: str | None = None


@dataclass(frozen=True, eq=False)
class _Read:
    name: str
    path: Path
    image: Image


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
    """Write predictions for `files` (name: image) into `folder`, and tell of each image as it is done.

    `description` is what `open_segmenter` gives: classes, mean, std. Images of the same size that follow each other
    share forward passes.
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
    """Return how many channels the network's images have: what its first convolution takes, 3 without one."""
    return next((part.in_channels for part in network.modules() if isinstance(part, nn.Conv2d)), 3)


def _groups(files: Mapping[str, Path], channels: int, batch: int) -> Iterator[list[_Read] | Outcome]:
    """Give images of one size, at most `batch` at once; and those that cannot be read, with the reason."""
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

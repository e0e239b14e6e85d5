"""`segdpo.load`: a trained network that predicts images in one call."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from PIL import Image as Pillow

from segdpo.data import Preparation
from segdpo.files import read_file
from segdpo.inference.open import open_segmenter
from segdpo.masks import Mask
from segdpo.models import Segmenter
from segdpo.preferences import Network, masks_of


class TrainedSegmenter(Segmenter):
    """A trained network, with the names of its classes and how images were prepared in its training.

    As every Segmenter it maps prepared images [images, channels, height, width] to logits; `predict` also prepares.

    Args:
        segmenter: its network is used, not copied.
        class_names: in the order of their numbers in masks.
        preparation: how images become the network's input.
    """

    def __init__(self, segmenter: Segmenter, class_names: Sequence[str], preparation: Preparation) -> None:
        super().__init__(segmenter.network, segmenter.classes, segmenter.multiple)
        self.class_names, self.preparation = tuple(class_names), preparation
        self.description = segmenter.description
        self.train(segmenter.training)

    def predict(self, image: str | Path | Pillow.Image | NDArray[Any]) -> Mask:
        """Return the mask of an image: class numbers, uint8 [H, W] at the image's size, as `segdpo predict` writes it.

        The network computes where its parameters are, in evaluation mode.

        Args:
            image: a file, an image of Pillow, or an array uint8 [H, W, C] or [H, W]. Arrays of other numbers need a
                network that was trained on such images.

        Raises:
            ValueError: the image cannot be decoded or prepared, or the network returns NaN.
        """
        if isinstance(image, str | Path):
            name = str(image)
            pixels = self.preparation.decode(read_file(Path(image)), name)
        else:
            name = "image"
            pixels = self.preparation.convert(image, name)
        device = next((parameter.device for parameter in self.parameters()), torch.device("cpu"))
        network = Network(self, self.preparation, device)
        mask: Mask = masks_of(network.predict(pixels[None], name))[0]
        return mask


def load(path: str | Path, *, trusted: Sequence[str] = ()) -> TrainedSegmenter:
    """Return a trained network in evaluation mode.

    Args:
        path: the folder of a run (its policy), a folder of `save_pretrained`, a .safetensors that segdpo wrote, a .ckpt
            of a run, or OWNER/NAME on the Hugging Face hub; see `Segmenter.from_pretrained`.
        trusted: packages that the file may build networks from, such as your own; see docs/deploy.md. What a file names
            is called, so name only packages that you know.

    Raises:
        ValueError: the file is damaged, has no description of its network, or names something that is not trusted.
        FileNotFoundError: there is no such file or run.
    """
    segmenter, description = open_segmenter(path, trusted=trusted)
    return TrainedSegmenter(segmenter, description["classes"], description["preparation"])

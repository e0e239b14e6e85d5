"""Reward models: networks that score a mask of an image."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from segdpo.checks import IGNORE
from segdpo.models.segmenter import IMAGENET_MEAN, IMAGENET_STD, Segmenter, smp_model
from segdpo.models.trust import build_named
from segdpo.models.weights import from_json, load_weights, read_header, save_weights

# Under this key, the header of a file of weights describes the model.
KEY = "reward_model"


class RewardModel(nn.Module):
    """One reward per mask: encoder on image and mask → mean of the deepest features → linear layer.

    The mean is weighted by the share of each cell's pixels that the mask does not ignore, so padding does not count.

    Args:
        encoder_name: any encoder of segmentation_models_pytorch.
        classes: number of classes of the masks, background included.
        encoder_weights: such as "imagenet"; None: random.
        encoder_depth: how often the encoder halves the image.
        in_channels: channels of the image.
        mean: mean used to normalise the training images; judges normalise raw images by it.
        std: standard deviation used to normalise them.
    """

    def __init__(
        self,
        encoder_name: str = "resnet18",
        *,
        classes: int,
        encoder_weights: str | bool | None = None,
        encoder_depth: int = 3,
        in_channels: int = 3,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
    ) -> None:
        super().__init__()
        whole = smp_model(
            "unet",
            encoder_name,
            classes=2,
            encoder_weights=encoder_weights,
            in_channels=in_channels + planes_for(classes),
            encoder_depth=encoder_depth,
            decoder_channels=[8] * encoder_depth,
        )
        self.classes, self.mean, self.std = classes, tuple(mean), tuple(std)
        self.multiple = whole.multiple
        self.settings: dict[str, Any] = {
            "encoder_name": encoder_name,
            "classes": classes,
            "encoder_depth": encoder_depth,
            "in_channels": in_channels,
            "mean": list(mean),
            "std": list(std),
        }
        self.encoder = cast(nn.Module, whole.network.encoder)
        self.head = nn.Linear(cast(Sequence[int], self.encoder.out_channels)[-1], 1)

    def forward(self, image: Tensor, masks: Tensor, image_index: Tensor | None = None) -> Float[Tensor, "masks"]:
        """Return the reward of each mask; the arguments are those of `reward_inputs`."""
        return self.of_inputs(reward_inputs(image, masks, image_index, self.classes))

    def of_inputs(self, inputs: "RewardInputs") -> Float[Tensor, "masks"]:
        """Return the rewards of masks as planes, which may be soft; differentiable."""
        height, width = inputs.known.shape[1:]
        padding = (0, -width % self.multiple, 0, -height % self.multiple)
        both = nn.functional.pad(torch.cat([inputs.image, inputs.planes], 1), padding, mode="replicate")
        features = self.encoder(both)[-1]
        known = nn.functional.pad(inputs.known[:, None].to(features.dtype), padding)
        # At the resolution of the features: the share of known pixels in each cell.
        share = nn.functional.interpolate(known, features.shape[-2:], mode="area")
        pooled = (features * share).sum((2, 3)) / share.sum((2, 3))
        return cast(Tensor, self.head(pooled.float()))[:, 0]


class DenseRewardModel(nn.Module):
    """One reward per pixel, averaged over the mask's foreground: a U-Net on image and mask.

    Foreground is every class but 0; for an empty mask, the average is over all pixels that it does not ignore.

    Args:
        architecture: any architecture of segmentation_models_pytorch.
        encoder_name: any of its encoders.
        classes: number of classes of the masks, background included.
        encoder_weights: such as "imagenet"; None: random.
        in_channels: channels of the image.
        mean: mean used to normalise the training images; judges normalise raw images by it.
        std: standard deviation used to normalise them.
        options: of the architecture, such as `encoder_depth` and `decoder_channels`.
    """

    def __init__(
        self,
        architecture: str = "unet",
        encoder_name: str = "resnet18",
        *,
        classes: int,
        encoder_weights: str | bool | None = None,
        in_channels: int = 3,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        **options: Any,
    ) -> None:
        super().__init__()
        self.classes, self.mean, self.std = classes, tuple(mean), tuple(std)
        self.settings: dict[str, Any] = {
            "architecture": architecture,
            "encoder_name": encoder_name,
            "classes": classes,
            "in_channels": in_channels,
            "mean": list(mean),
            "std": list(std),
            **options,
        }
        channels = in_channels + planes_for(classes)
        self.segmenter: Segmenter = smp_model(
            architecture, encoder_name, classes=2, encoder_weights=encoder_weights, in_channels=channels, **options
        )

    def forward(self, image: Tensor, masks: Tensor, image_index: Tensor | None = None) -> Float[Tensor, "masks"]:
        """Return the reward of each mask; the arguments are those of `reward_inputs`."""
        return self.of_inputs(reward_inputs(image, masks, image_index, self.classes))

    def reward_map(
        self, image: Tensor, masks: Tensor, image_index: Tensor | None = None
    ) -> Float[Tensor, "masks height width"]:
        """Return the reward of every pixel of each mask, background included."""
        return self._map(reward_inputs(image, masks, image_index, self.classes))

    def of_inputs(self, inputs: "RewardInputs") -> Float[Tensor, "masks"]:
        """Return the rewards of masks as planes, which may be soft; differentiable."""
        area = inputs.foreground
        empty = area.sum((1, 2), keepdim=True) == 0
        area = torch.where(empty, inputs.known.to(area.dtype), area)
        return (self._map(inputs) * area).sum((1, 2)) / area.sum((1, 2))

    def _map(self, inputs: "RewardInputs") -> Tensor:
        logits: Tensor = self.segmenter(torch.cat([inputs.image, inputs.planes], 1))
        return logits[:, 0].float()


KINDS: Mapping[str, type[RewardModel] | type[DenseRewardModel]] = {
    kind.__name__: kind for kind in (RewardModel, DenseRewardModel)
}


def save_reward_model(path: str | Path, model: nn.Module, header: Mapping[str, str] | None = None) -> None:
    """Write the weights, with a description of the model and other texts in the header."""
    if not isinstance(model, RewardModel | DenseRewardModel):
        raise TypeError(f"Expected a {' or a '.join(KINDS)} to save but got a {type(model).__name__}.")
    description = json.dumps({"kind": type(model).__name__, "settings": model.settings})
    save_weights(path, model, {**(header or {}), KEY: description})


def load_reward_model(path: str | Path, classes: int | None = None) -> RewardModel | DenseRewardModel:
    """Return the reward model of a file, in evaluation mode.

    Runs no code from the file: the header names one of two classes and their settings.

    Args:
        path: the file, or the folder of a run of task=reward.
        classes: refuse a model with another number of classes.
    """
    path = Path(path)
    if path.is_dir():
        path = path / "reward_model.safetensors"
    description = from_json(read_header(path).get(KEY, "{}"), path)
    kind, settings = (description.get(name) if isinstance(description, dict) else None for name in ("kind", "settings"))
    if not isinstance(kind, str) or kind not in KINDS or not isinstance(settings, dict):
        raise ValueError(
            f"Expected {path} to hold a reward model but its header names none; give the reward_model.safetensors of "
            "a run of task=reward."
        )
    node = {**settings, "_target_": f"segdpo.models.{kind}", "_partial_": False}
    model: RewardModel | DenseRewardModel = build_named(node, path, "settings")
    if classes is not None and classes != model.classes:
        raise ValueError(
            f"Expected a reward model of {classes} classes but {path} holds one of {model.classes}; use the one that "
            "was trained on this data."
        )
    load_weights(path, model)
    return model.eval()


@dataclass(frozen=True, eq=False)
class RewardInputs:
    """Masks with the image of each, as the networks take them.

    `planes` has one plane for two classes, 1 on foreground and −1 on background, and one per class for more, 1 or 0;
    soft masks are in between. Pixels that the mask ignores are False in `known` and 0 in all planes.
    """

    image: Float[Tensor, "masks channels height width"]
    planes: Float[Tensor, "masks planes height width"]
    known: Bool[Tensor, "masks height width"]

    @property
    def foreground(self) -> Float[Tensor, "masks height width"]:
        """The share of each pixel that is not class 0; 0 for unknown pixels."""
        share = (self.planes[:, 0] + 1) / 2 if self.planes.shape[1] == 1 else self.planes[:, 1:].sum(1)
        return share * self.known


def reward_inputs(image: Tensor, masks: Tensor, image_index: Tensor | None, classes: int) -> RewardInputs:
    """Return class ids as inputs of a reward model.

    Args:
        image: [images, channels, height, width].
        masks: class ids [masks, height, width], 255 = ignored.
        image_index: the image of each mask [masks]; None: one mask per image.
        classes: number of classes, background included.

    Raises:
        ValueError: for shapes that do not fit, classes that the model does not have, and masks without a pixel.
    """
    _check_shapes(image, masks, image_index)
    known = masks != IGNORE
    _check_values(masks.masked_fill(~known, 0), known, classes)
    one_hot = torch.nn.functional.one_hot(masks.masked_fill(~known, 0).long(), classes).movedim(-1, 1)
    return soft_inputs(image if image_index is None else image.index_select(0, image_index), one_hot, known)


def soft_inputs(
    image: Float[Tensor, "masks channels height width"],
    shares: Tensor,
    known: Bool[Tensor, "masks height width"],
) -> RewardInputs:
    """Return soft masks as inputs of a reward model.

    Args:
        image: the image of each mask.
        shares: of the classes, [masks, classes, height, width], with a sum of 1 in each pixel.
        known: pixels that count.
    """
    shares = shares.to(image.dtype)
    planes = shares[:, 1:] - shares[:, :1] if shares.shape[1] == 2 else shares
    return RewardInputs(image, planes * known[:, None], known)


def planes_for(classes: int) -> int:
    """Return the number of planes of a mask."""
    if isinstance(classes, bool) or not isinstance(classes, int) or classes < 2:
        raise ValueError(
            f"Expected reward_model.classes to be at least 2, background included, but got {classes!r}; "
            "null takes the number from the data when train.py builds the model."
        )
    return 1 if classes == 2 else classes


def _check_shapes(image: Tensor, masks: Tensor, image_index: Tensor | None) -> None:
    if masks.is_floating_point() or image.ndim != 4 or masks.ndim != 3 or masks.shape[1:] != image.shape[2:]:
        raise ValueError(
            f"Expected masks [masks, height, width] of integer class ids at the size of image [images, channels, "
            f"height, width] but got {str(masks.dtype).removeprefix('torch.')} of shape {tuple(masks.shape)} and an "
            f"image of shape {tuple(image.shape)}; resize both to the same size, and threshold probabilities."
        )
    if image_index is None and len(masks) != len(image):
        raise ValueError(
            f"Expected one mask per image but got {len(masks)} masks for {len(image)} images; "
            "give the image of each mask as image_index."
        )
    if image_index is not None and tuple(image_index.shape) != (len(masks),):
        raise ValueError(
            f"Expected image_index of shape ({len(masks)},), one per mask, but got {tuple(image_index.shape)}."
        )


def _check_values(labels: Tensor, known: Tensor, classes: int) -> None:
    wrong = (labels < 0) | (labels >= classes)
    if bool(wrong.any()):
        number, *place = wrong.nonzero()[0].tolist()
        raise ValueError(
            f"Expected masks of the {classes} classes of this reward model, 0 to {classes - 1}, but mask "
            f"{number} has class {int(labels[(number, *place)])}; use the reward model that was trained on this data, "
            f"or mark that class as ignore ({IGNORE})."
        )
    empty = (~known.flatten(1).any(1)).nonzero().flatten().tolist()
    if empty:
        raise ValueError(
            f"Expected a pixel that counts in every mask but mask {empty[0]} ignores all of them "
            f"({len(empty)} of {len(known)} masks); remove such masks."
        )

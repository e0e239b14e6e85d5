"""Reward models: networks on an image and a mask that say how good the mask is, one number a mask.

The mask is an input, so features of an image are not shared between its masks: every mask costs a forward pass.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from segdpo.models.reward_inputs import RewardInputs, planes_for, reward_inputs
from segdpo.models.segmenter import Segmenter, smp_model
from segdpo.models.trust import build_named
from segdpo.models.weights import from_json, load_weights, read_header, save_weights

# Under which the header of a file of weights says how to build the network again.
KEY = "reward_model"
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


class RewardModel(nn.Module):
    """One number from the whole mask: encoder on image and mask → mean of the deepest features → linear.

    The mean is over cells weighed by the share of their pixels that the mask does not ignore, so pixels that only fill
    a batch up do not count.

    Args:
        encoder_name: any encoder of segmentation_models_pytorch.
        classes: how many the masks have, background counted.
        encoder_weights: such as "imagenet"; None: random.
        encoder_depth: how often the encoder halves the image.
        in_channels: channels of the image.
        mean: what normalisation took from the images that it learned on, for judges that bring raw images.
        std: what normalisation divided them by.
    """

    def __init__(
        self,
        encoder_name: str = "resnet18",
        *,
        classes: int,
        encoder_weights: str | bool | None = None,
        encoder_depth: int = 3,
        in_channels: int = 3,
        mean: Sequence[float] = IMAGENET[0],
        std: Sequence[float] = IMAGENET[1],
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
        """Return the reward of each mask: uint8 [P, H, W], 255 = ignored, mask p of image `image_index[p]`."""
        return self.of_inputs(reward_inputs(image, masks, image_index, self.classes))

    def of_inputs(self, inputs: RewardInputs) -> Float[Tensor, "masks"]:
        """Return the rewards of masks as planes, which may be soft: what an attack climbs."""
        height, width = inputs.known.shape[1:]
        padding = (0, -width % self.multiple, 0, -height % self.multiple)
        both = nn.functional.pad(torch.cat([inputs.image, inputs.planes], 1), padding, mode="replicate")
        features = self.encoder(both)[-1]
        known = nn.functional.pad(inputs.known[:, None].to(features.dtype), padding)
        # As fine as the features: the share of each cell's pixels that are known.
        share = nn.functional.interpolate(known, features.shape[-2:], mode="area")
        pooled = (features * share).sum((2, 3)) / share.sum((2, 3))
        return cast(Tensor, self.head(pooled.float()))[:, 0]


class DenseRewardModel(nn.Module):
    """One number a pixel, averaged over the mask's area: a U-Net on image and mask.

    The area is what the mask calls foreground, any class but 0; of an empty mask, all pixels it does not ignore.

    Args:
        architecture: any of segmentation_models_pytorch.
        encoder_name: any of its encoders.
        classes: how many the masks have, background counted.
        in_channels: channels of the image.
        mean: what normalisation took from the images that it learned on, for judges that bring raw images.
        std: what normalisation divided them by.
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
        mean: Sequence[float] = IMAGENET[0],
        std: Sequence[float] = IMAGENET[1],
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
        """Return the reward of each mask: uint8 [P, H, W], 255 = ignored, mask p of image `image_index[p]`."""
        return self.of_inputs(reward_inputs(image, masks, image_index, self.classes))

    def reward_map(
        self, image: Tensor, masks: Tensor, image_index: Tensor | None = None
    ) -> Float[Tensor, "masks height width"]:
        """Return the reward of each pixel of each mask, of pixels outside its area too."""
        return self._map(reward_inputs(image, masks, image_index, self.classes))

    def of_inputs(self, inputs: RewardInputs) -> Float[Tensor, "masks"]:
        """Return the rewards of masks as planes, which may be soft: what an attack climbs."""
        area = inputs.foreground
        empty = area.sum((1, 2), keepdim=True) == 0
        area = torch.where(empty, inputs.known.to(area.dtype), area)
        return (self._map(inputs) * area).sum((1, 2)) / area.sum((1, 2))

    def _map(self, inputs: RewardInputs) -> Tensor:
        logits: Tensor = self.segmenter(torch.cat([inputs.image, inputs.planes], 1))
        return logits[:, 0].float()


KINDS: Mapping[str, type[RewardModel] | type[DenseRewardModel]] = {
    kind.__name__: kind for kind in (RewardModel, DenseRewardModel)
}


def save_reward_model(path: str | Path, model: nn.Module, header: Mapping[str, str] | None = None) -> None:
    """Write the weights with what builds the model, and `header`, more to say of it, beside them."""
    if not isinstance(model, RewardModel | DenseRewardModel):
        raise TypeError(f"Expected a {' or a '.join(KINDS)} to save but got a {type(model).__name__}.")
    description = json.dumps({"kind": type(model).__name__, "settings": model.settings})
    save_weights(path, model, {**(header or {}), KEY: description})


def load_reward_model(path: str | Path, classes: int | None = None) -> RewardModel | DenseRewardModel:
    """Return the reward model of a file in eval mode, built from its header; `classes`: refuse one of other classes.

    Runs no code that the file brings: the header names one of two classes and their settings.
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
    node = {**settings, "_target_": f"{__name__}.{kind}", "_partial_": False}
    model: RewardModel | DenseRewardModel = build_named(node, path, "settings")
    if classes is not None and classes != model.classes:
        raise ValueError(
            f"Expected a reward model of {classes} classes but {path} holds one of {model.classes}; take the one that "
            "was trained on this data."
        )
    load_weights(path, model)
    return model.eval()

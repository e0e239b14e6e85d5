"""Reward models, which score a mask of an image, and the value head of PPO."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from segdpo.checks import IGNORE, check_choice, check_range
from segdpo.models.segmenter import IMAGENET_MEAN, IMAGENET_STD, Segmenter, smp_model
from segdpo.models.trust import build_named
from segdpo.models.weights import from_json, load_weights, read_header, save_weights


@dataclass(frozen=True, eq=False)
class RewardInputs:
    """P masks with the image of each.

    `planes`: of two classes one, 1 on foreground and −1 on background; of more, one a class, 1 or 0. Soft masks lie
    between. Pixels that are not `known`, those that the mask ignores, are 0 in all planes.
    """

    image: Float[Tensor, "masks channels height width"]
    planes: Float[Tensor, "masks planes height width"]
    known: Bool[Tensor, "masks height width"]

    @property
    def foreground(self) -> Float[Tensor, "masks height width"]:
        """How much of each pixel is any class but 0; nothing of a pixel that is not known."""
        share = (self.planes[:, 0] + 1) / 2 if self.planes.shape[1] == 1 else self.planes[:, 1:].sum(1)
        return share * self.known


def planes_for(classes: int) -> int:
    """Return how many planes a mask takes beside the image."""
    if isinstance(classes, bool) or not isinstance(classes, int) or classes < 2:
        raise ValueError(
            f"Expected reward_model.classes to be at least 2, background counted, but got {classes!r}; "
            "null takes the number from the data when train.py builds the model."
        )
    return 1 if classes == 2 else classes


def reward_inputs(image: Tensor, masks: Tensor, image_index: Tensor | None, classes: int) -> RewardInputs:
    """Join masks [P, H, W] of class ids, 255 = ignored, with their images; refuse what cannot be rewarded."""
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
    """Join masks as shares of each class [P, classes, H, W], which sum to 1 in a pixel, with an image each."""
    shares = shares.to(image.dtype)
    planes = shares[:, 1:] - shares[:, :1] if shares.shape[1] == 2 else shares
    return RewardInputs(image, planes * known[:, None], known)


def _check_shapes(image: Tensor, masks: Tensor, image_index: Tensor | None) -> None:
    if masks.is_floating_point() or image.ndim != 4 or masks.ndim != 3 or masks.shape[1:] != image.shape[2:]:
        raise ValueError(
            f"Expected masks [masks, height, width] of integer class ids at the size of image [images, channels, "
            f"height, width] but got {str(masks.dtype).removeprefix('torch.')} of shape {tuple(masks.shape)} and an "
            f"image of shape {tuple(image.shape)}; resize both alike, and threshold probabilities."
        )
    if image_index is None and len(masks) != len(image):
        raise ValueError(
            f"Expected one mask an image but got {len(masks)} masks for {len(image)} images; "
            "say which image each mask belongs to with image_index."
        )
    if image_index is not None and tuple(image_index.shape) != (len(masks),):
        raise ValueError(
            f"Expected image_index of shape ({len(masks)},), one a mask, but got {tuple(image_index.shape)}."
        )


def _check_values(labels: Tensor, known: Tensor, classes: int) -> None:
    wrong = (labels < 0) | (labels >= classes)
    if bool(wrong.any()):
        number, *place = wrong.nonzero()[0].tolist()
        raise ValueError(
            f"Expected masks of the {classes} classes that this reward model knows, 0 to {classes - 1}, but mask "
            f"{number} has class {int(labels[(number, *place)])}; take the reward model that was trained on this data, "
            f"or mark that class as ignore ({IGNORE})."
        )
    empty = (~known.flatten(1).any(1)).nonzero().flatten().tolist()
    if empty:
        raise ValueError(
            f"Expected a pixel to reward in every mask but mask {empty[0]} ignores all of them "
            f"({len(empty)} of {len(known)} masks); leave such masks out."
        )


# Under which the header of a file of weights says how to build the network again.
KEY = "reward_model"


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


PER = ("image", "pixel")
COARSE = 4


class ValueHead(nn.Module):
    """Three convolutions, on a quarter of the resolution, over the image and the policy's chances of each class.

    A small network of its own rather than a head on the policy's features: so it serves any network, and its error,
    large at first, does not pull at what the policy sees. It starts at 0 everywhere.

    Args:
        classes: of the masks, background counted.
        in_channels: of the images.
        per: `image`: one value an image; `pixel`: one a pixel, each held against the same reward.
        width: channels of the convolutions.
    """

    def __init__(self, *, classes: int, in_channels: int = 3, per: str = "image", width: int = 16) -> None:
        super().__init__()
        check_choice("per", per, PER)
        check_range("width", width, least=1)
        self.per = per
        last = nn.Conv2d(width, 1, 1)
        for parameter in last.parameters():
            nn.init.zeros_(parameter)
        self.layers = nn.Sequential(
            nn.Conv2d(in_channels + classes, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.ReLU(),
            last,
        )

    def forward(
        self,
        image: Float[Tensor, "images channels height width"],
        chances: Float[Tensor, "images classes height width"],
        valid: Bool[Tensor, "images height width"],
    ) -> Float[Tensor, "images *pixels"]:
        """Return [images], the mean over valid pixels, or [images, height, width]."""
        shown = torch.cat([image, chances], 1)
        values: Tensor = self.layers(_coarse(shown))
        if self.per == "image":
            weight = _coarse(valid[:, None].to(values))
            return (values * weight).flatten(1).sum(1) / weight.flatten(1).sum(1).clamp(min=1e-6)
        return F.interpolate(values, image.shape[2:], mode="nearest")[:, 0]


def _coarse(planes: Tensor) -> Tensor:
    """Average cells of 4 × 4; not adaptively, which has no deterministic gradient on a GPU."""
    return F.avg_pool2d(planes, COARSE, ceil_mode=True) if min(planes.shape[2:]) >= COARSE else planes

"""What a reward model sees: an image and a mask as planes; soft masks as well as hard ones."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from segdpo.regions import IGNORE


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

"""Rewards by overlap with gold, all masks of a batch at once: IoU and Dice, as the judges of these names have them."""

from jaxtyping import Float
from torch import Tensor

from segdpo.metrics.overlap import per_image_overlap
from segdpo.rewards.request import RewardRequest


def iou(request: RewardRequest, *, background: bool = False) -> Float[Tensor, "masks"]:
    """|G ∩ M| / |G ∪ M|, mean over the classes present in either; 1 where none is, for then nothing is wrong."""
    return _overlap(request, "iou", background)


def dice(request: RewardRequest, *, background: bool = False) -> Float[Tensor, "masks"]:
    """2|G ∩ M| / (|G| + |M|), mean over the classes present in either; 1 where none is."""
    return _overlap(request, "dice", background)


def _overlap(request: RewardRequest, name: str, background: bool) -> Tensor:
    found = per_image_overlap(request.shown(), request.gold_of_masks(), request.classes, background)
    return found[name].nan_to_num(1.0)

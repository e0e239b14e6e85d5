"""Rewards of masks: overlap with gold, a judge, a reward model, a weighted sum.

A reward is a function `(RewardRequest) -> float [masks]`, larger is better, whose options are bound by
`functools.partial`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor, nn

from segdpo.checks import IGNORE, check_range
from segdpo.data import Record, reads_gold, record_rng
from segdpo.metrics import per_image_overlap
from segdpo.models import IMAGENET_MEAN, IMAGENET_STD
from segdpo.preferences import Judge, to_image


@dataclass(frozen=True, eq=False)
class RewardRequest:
    """Masks whose reward is wanted; mask p is of image `image_index[p]`.

    Args:
        image: normalised, as the network gets them.
        masks: class ids.
        image_index: which image each mask is of.
        gold: class ids, 255 where a pixel is not counted; None if there is none.
        valid: False at padding, where nothing is counted.
        classes: of the masks, background counted.
    """

    image: Float[Tensor, "images channels height width"]
    masks: UInt8[Tensor, "masks height width"]
    image_index: Int[Tensor, "masks"]
    gold: UInt8[Tensor, "images height width"] | None
    valid: Bool[Tensor, "images height width"]
    classes: int = 2

    def counted(self) -> UInt8[Tensor, "masks height width"]:
        """Return the masks, 255 where no pixel counts."""
        return self.masks.masked_fill(~self.valid.index_select(0, self.image_index), IGNORE)

    def gold_of_masks(self) -> UInt8[Tensor, "masks height width"]:
        """Return the gold mask of each mask's image, or raise if an image has none."""
        known = None if self.gold is None else ((self.gold != IGNORE) & self.valid).flatten(1).any(1)
        if self.gold is None or known is None or not bool(known.all()):
            without = [] if known is None else (~known).nonzero().flatten().tolist()
            which = f"image {without[0]} of the batch" if without else "the batch"
            raise ValueError(
                f"Expected gold for a reward by overlap but {which} has none that counts; train on images with gold, "
                "crop less tightly, or choose a reward that needs none (reward=reward_model, or reward=judge with such "
                "a judge)."
            )
        return self.gold.index_select(0, self.image_index)


Reward = Callable[[RewardRequest], Tensor]


def rewards_of(reward: Reward, request: RewardRequest) -> Float[Tensor, "masks"]:
    """Return the rewards of the masks, and raise if there is not one finite reward for each."""
    with torch.no_grad():
        rewards = reward(request)
    if rewards.shape != request.image_index.shape:
        raise ValueError(
            f"Expected one reward a mask, shape ({len(request.masks)},), but the reward gave {tuple(rewards.shape)}."
        )
    wrong = (~torch.isfinite(rewards)).nonzero().flatten().tolist()
    if wrong:
        raise ValueError(
            f"Expected finite rewards but {len(wrong)} of {len(rewards)} are NaN or infinite, the first "
            f"{float(rewards[wrong[0]])} for a mask of image {int(request.image_index[wrong[0]])} of the batch; check "
            "the reward on that image (an untrained reward model, or a judge that divides by 0?)."
        )
    return rewards.float()


def by_judge(
    request: RewardRequest,
    *,
    judge: Judge,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    seed: int = 0,
) -> Float[Tensor, "masks"]:
    """Return the scores of a judge of `segdpo.preferences`, as for mined pairs.

    Args:
        request: the masks; all masks of an image are judged together, as candidates are.
        judge: `(record, masks, rng) -> float [K]`.
        mean: subtracted from the images by normalisation, one value a channel.
        std: by which normalisation divided them.
        seed: of a judge that draws random numbers.
    """
    masks, index = request.counted().cpu().numpy(), request.image_index.cpu().numpy()
    rewards = np.full(len(masks), np.nan)
    for number in np.unique(index):
        own = np.flatnonzero(index == number)
        record = _record(request, int(number), mean, std)
        rewards[own] = judge(record, masks[own], record_rng(seed, record.id, "reward"))
    return torch.from_numpy(rewards).to(request.image.device, torch.float32)


def _record(request: RewardRequest, number: int, mean: Sequence[float], std: Sequence[float]) -> Record:
    gold = None
    if request.gold is not None:
        gold = request.gold[number].masked_fill(~request.valid[number], IGNORE).cpu().numpy()
    seen = request.image[number].float().cpu().numpy()
    if len(seen) != len(mean):
        raise ValueError(
            f"Expected images of {len(mean)} channels, as mean and std have values, but got {len(seen)}; set "
            "reward.mean and reward.std."
        )
    image = to_image(seen, mean, std)
    none = np.zeros((0, *image.shape[:2]), np.uint8)
    return Record(f"image {number} of the batch", image, none, (), gold=gold)


@reads_gold
def iou(request: RewardRequest, *, background: bool = False) -> Float[Tensor, "masks"]:
    """|G ∩ M| / |G ∪ M|, mean over the classes present in either; 1 where none is."""
    return _overlap(request, "iou", background)


@reads_gold
def dice(request: RewardRequest, *, background: bool = False) -> Float[Tensor, "masks"]:
    """2|G ∩ M| / (|G| + |M|), mean over the classes present in either; 1 where none is."""
    return _overlap(request, "dice", background)


def _overlap(request: RewardRequest, name: str, background: bool) -> Tensor:
    found = per_image_overlap(request.counted(), request.gold_of_masks(), request.classes, background)
    return found[name].nan_to_num(1.0)


def by_model(request: RewardRequest, *, model: nn.Module) -> Float[Tensor, "masks"]:
    """Return `model(image, masks, image_index) -> [masks]`, in evaluation mode and on the images' device.

    >>> from functools import partial
    >>> reward = partial(by_model, model=nn.Module())   # conf/reward/reward_model.yaml: a RewardModel of a file
    """
    classes = getattr(model, "classes", None)
    if classes is not None and classes != request.classes:
        raise ValueError(
            f"Expected a reward model of masks with {request.classes} classes, as the policy predicts, but this one "
            f"was trained on masks with {classes}; train one on this data (segdpo train task=reward)."
        )
    rewards: Tensor = model.to(request.image.device).eval()(request.image, request.counted(), request.image_index)
    return rewards


@dataclass(frozen=True, eq=False)
class Part:
    """One reward of a sum and its weight; a negative weight makes it a penalty."""

    weight: float
    reward: Reward

    def __post_init__(self) -> None:
        check_range("weight", self.weight)


def weighted_sum(request: RewardRequest, *, parts: Mapping[str, Part]) -> Float[Tensor, "masks"]:
    """Σ weight · reward over the parts; an error names the part that is not finite."""
    if not parts:
        raise ValueError("Expected at least one part of a weighted reward but got none; name some in reward.parts.")
    total = request.image.new_zeros(len(request.masks), dtype=torch.float32)
    for name, part in parts.items():
        rewards = part.reward(request)
        if not bool(torch.isfinite(rewards).all()):
            raise ValueError(
                f"Expected finite rewards but the part {name!r} of a weighted sum gave NaN or infinite ones; check "
                "that reward alone."
            )
        total = total + part.weight * rewards.to(total)
    return total

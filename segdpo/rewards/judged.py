"""A judge of pairs as a reward: any of conf/judge/, image by image in NumPy. Slower than overlap.py, and knows more."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from segdpo.pairs.judges import Judge
from segdpo.pairs.prediction import MEAN, STD, to_image
from segdpo.pairs.record import Record
from segdpo.pairs.seeding import record_rng
from segdpo.regions import IGNORE
from segdpo.rewards.request import RewardRequest


def by_judge(
    request: RewardRequest,
    *,
    judge: Judge,
    mean: Sequence[float] = MEAN,
    std: Sequence[float] = STD,
    seed: int = 0,
) -> Float[Tensor, "masks"]:
    """Ask a judge, as for mined pairs: gold and masks are ignored (255) where no pixel counts.

    Args:
        request: what is to be judged; all masks of an image are judged together, as candidates are.
        judge: `(record, masks, rng) -> float [K]`.
        mean: what normalisation took from the images, one value a channel.
        std: what normalisation divided them by.
        seed: of a judge that draws.
    """
    masks, index = request.shown().cpu().numpy(), request.image_index.cpu().numpy()
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

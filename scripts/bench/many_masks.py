"""All 28 pairs of eight masks an image, as in a batch of the data module: each mask once, pairs as indices."""

from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor

from bench.cases import another_mask, make_case
from segdpo import MaskIndex, PairScores, mask_index, score_masks

MASKS = 8


@dataclass(frozen=True, eq=False)
class ManyMasks:
    """Eight masks an image [images · 8, side, side], pairs as indices, and where they differ."""

    masks: Tensor
    pairs: Tensor
    mask_image: Tensor
    index: MaskIndex

    def score(self, logits: Tensor) -> PairScores:
        """Score all pairs, each mask once."""
        return score_masks(logits, self.masks, self.pairs, self.mask_image, index=self.index)

    @property
    def cached(self) -> PairScores:
        """Reference scores from a cache."""
        zeros = torch.zeros(len(self.pairs), device=self.pairs.device)
        return PairScores(chosen=zeros, margin=zeros)


def make_many(images: int, classes: int, side: int, device: torch.device, pairs: int = 28) -> ManyMasks:
    """Make masks that each differ from the first in a tenth of the pixels, and the first of all pairs of each image."""
    generator = torch.Generator().manual_seed(2)
    first = make_case(images, classes, side, torch.device("cpu")).chosen.long()
    others = [another_mask(first, classes, generator) for _ in range(MASKS - 1)]
    masks = torch.stack([first, *others], 1).flatten(0, 1).to(torch.uint8)
    of_one = torch.tensor(list(combinations(range(MASKS), 2))[:pairs])
    numbers = (of_one + MASKS * torch.arange(images)[:, None, None]).flatten(0, 1)
    mask_image = torch.arange(images).repeat_interleave(MASKS)
    index = mask_index(masks, numbers, mask_image).to(device)
    return ManyMasks(masks.to(device), numbers.to(device), mask_image.to(device), index)

"""All 28 pairs of eight masks an image, as a batch of the data module has them."""

from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor

from bench.cases import Case, another_mask
from segdpo import PairIndex, PairScores, pair_index

MASKS = 8


@dataclass(frozen=True, eq=False)
class ManyMasks:
    """All pairs of K masks an image, as a batch of the data module has them."""

    chosen: Tensor
    rejected: Tensor
    image_index: Tensor
    index: PairIndex

    @property
    def cached(self) -> PairScores:
        """Reference scores from a cache."""
        zeros = torch.zeros(len(self.chosen), device=self.chosen.device)
        return PairScores(chosen=zeros, margin=zeros)


def make_many(case: Case, classes: int) -> ManyMasks:
    """Make all 28 pairs of eight masks an image, each a tenth off the first."""
    generator = torch.Generator().manual_seed(2)
    first = case.chosen.cpu().long()
    masks = torch.stack([first, *(another_mask(first, classes, generator) for _ in range(MASKS - 1))], 1)
    pairs = torch.tensor(list(combinations(range(MASKS), 2)))
    chosen, rejected = (masks[:, pairs[:, k]].flatten(0, 1).to(torch.uint8) for k in (0, 1))
    image_index = torch.arange(len(first)).repeat_interleave(len(pairs))
    device = case.chosen.device
    index = pair_index(chosen, rejected, image_index=image_index).to(device)
    return ManyMasks(chosen.to(device), rejected.to(device), image_index.to(device), index)

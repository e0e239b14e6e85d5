"""Training a reward model from pairs or rankings of masks."""

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from segdpo.checks import IGNORE
from segdpo.data import Batch, PairBatch, RankingBatch
from segdpo.losses import LossTerms, RewardLoss
from segdpo.training.scoring import PreferenceBatch, weight_of
from segdpo.training.task import MakeOptimizer, MakeScheduler, Task, batch_in_errors

JudgeScores = Mapping[str, NDArray[np.float64]]
"""The judge's scores of all masks of a record, by the record's id."""

PARTS = ("objective", "centring")
LOGGED = ("reward/chosen", "reward/rejected", "reward/margin", "pairs/accuracy")


class RewardTask(Task):
    """Minimise a RewardLoss over the pairs (or rankings) of the batches.

    Args:
        network: maps (image, masks, image_index) to a reward for each mask.
        loss: a RewardLoss.
        optimizer: called with the trainable parameters.
        scheduler: called with the optimiser, and with `steps=` if it takes it; None: a constant learning rate.
        judge_scores: from which margins are computed, for losses that have them.
    """

    def __init__(
        self,
        network: nn.Module,
        loss: RewardLoss,
        optimizer: MakeOptimizer,
        *,
        scheduler: MakeScheduler | None = None,
        judge_scores: JudgeScores | None = None,
    ) -> None:
        super().__init__(["loss", *(f"loss/{name}" for name in PARTS), *LOGGED], optimizer, scheduler, background=False)
        self.network, self.loss, self.judge_scores = network, loss, judge_scores

    def training_step(self, batch: PreferenceBatch, batch_idx: int) -> Tensor:
        """Return the loss, scaled by this process's share of all processes' pairs."""
        weight = weight_of(batch)
        with batch_in_errors(batch.ids, self.global_step):
            rewards, terms = self._step(batch, weight)
            self.guard.watch(terms.total, terms.parts, batch.ids, self.global_step)
        self.count("train", _values(rewards, terms), weight)
        return terms.total * self.share(weight.sum())

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Count the loss and the pairs that the rewards order correctly."""
        self._evaluate("val", batch)

    def test_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Count the loss and the pairs that the rewards order correctly."""
        self._evaluate("test", batch)

    def _step(self, batch: PreferenceBatch, weight: Tensor) -> tuple[Tensor, LossTerms]:
        rewards = rewards_of(self.network, batch)
        gap = None
        if self.loss.margin_per_gap and self.judge_scores is not None:
            gap = gap_of(batch, self.judge_scores).to(rewards)
        return rewards, self.loss(rewards, weight=weight, gap=gap)

    @torch.no_grad()
    def _evaluate(self, stage: str, batch: Batch) -> None:
        if isinstance(batch, PairBatch | RankingBatch):
            weight = weight_of(batch)
            with batch_in_errors(batch.ids, self.global_step):
                rewards, terms = self._step(batch, weight)
            self.count(stage, _values(rewards, terms), weight)


def rewards_of(network: nn.Module, batch: PreferenceBatch) -> Tensor:
    """Return the rewards [lists, masks] of a batch, in its order from best to worst.

    Args:
        network: maps (image, masks, image_index) to a reward for each mask.
        batch: rankings, or pairs, which are lists of two masks.
    """
    if isinstance(batch, RankingBatch):
        images, masks = batch.ranking.shape[:2]
        index = torch.arange(images, device=batch.ranking.device).repeat_interleave(masks)
        return _call(network, batch, batch.ranking.flatten(0, 1), index).view(images, masks)
    if batch.shared is not None:  # each mask once, even if it is in several pairs
        return _call(network, batch, batch.shared.masks, batch.shared.mask_image)[batch.shared.pairs]
    both = torch.cat([batch.chosen, batch.rejected])
    return _call(network, batch, both, batch.image_index.repeat(2)).view(2, -1).T


def in_order(rewards: Tensor) -> Tensor:
    """Return the share of pairs in each list that are ordered correctly; a tie counts half.

    Args:
        rewards: [lists, masks], of masks from best to worst.

    >>> in_order(torch.tensor([[3.0, 1.0, 2.0], [0.0, 0.0, 0.0]]))
    tensor([0.6667, 0.5000])
    """
    return share_ahead(margins_of(rewards)).mean(1)


def share_ahead(margins: Tensor) -> Tensor:
    """Return 1 for each margin above 0, ½ for 0, and 0 below."""
    return (margins > 0).float() + 0.5 * (margins == 0).float()


def margins_of(rewards: Tensor) -> Tensor:
    """Return R_j − R_k of all pairs j < k of each list: [lists, masks] → [lists, pairs]."""
    better, worse = torch.triu_indices(rewards.shape[1], rewards.shape[1], offset=1, device=rewards.device)
    return rewards[:, better] - rewards[:, worse]


def gap_of(batch: PreferenceBatch, judge_scores: JudgeScores) -> Tensor:
    """Return the absolute difference of the judge's scores of each pair, float32 [pairs]."""
    if isinstance(batch, RankingBatch):
        raise ValueError(
            "Expected pairs for margins by the judge's gap but got rankings; choose datamodule=preference."
        )
    # One copy, since on a GPU each one waits for the device.
    rows = torch.cat([batch.image_index[:, None], batch.pair_masks], 1).tolist()
    scores = [judge_scores[batch.ids[image]] for image, _, _ in rows]
    gaps = [abs(own[chosen] - own[rejected]) for own, (_, chosen, rejected) in zip(scores, rows, strict=True)]
    return torch.tensor(np.array(gaps), dtype=torch.float32)


def _call(network: nn.Module, batch: Batch, masks: Tensor, index: Tensor) -> Tensor:
    # Our data sets mark pixels from outside the image already; a user's own may not.
    masks = masks.masked_fill(~batch.valid[index], IGNORE)
    rewards: Tensor = network(batch.image, masks, index)
    return rewards


def _values(rewards: Tensor, terms: LossTerms) -> dict[str, Tensor]:
    rewards = rewards.detach()
    return {
        "loss": terms.total.detach().expand(len(rewards)),
        **{f"loss/{name}": part for name, part in terms.parts.items()},
        "reward/chosen": rewards[:, 0],
        "reward/rejected": rewards[:, -1],
        "reward/margin": rewards[:, 0] - rewards[:, -1],
        "pairs/accuracy": in_order(rewards),
    }

"""Training a reward model: from pairs or rankings of masks to numbers that agree with them."""

import warnings
from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from segdpo.checks import IGNORE
from segdpo.data import Batch, PairBatch, RankingBatch
from segdpo.losses import LossTerms, RewardLoss
from segdpo.training.scoring import PreferenceBatch, weight_of
from segdpo.training.task import MakeOptimizer, MakeScheduler, Task, naming

Judged = Mapping[str, NDArray[np.float64]]
PARTS = ("objective", "centring")
LOGGED = ("reward/chosen", "reward/rejected", "reward/margin", "pairs/accuracy")


class RewardTask(Task):
    """Minimise a RewardLoss over the pairs (or rankings) of the batches.

    Args:
        network: what is trained; maps (image, masks, image_index) to a reward for each mask.
        loss: a RewardLoss.
        optimizer: called with the trainable parameters.
        scheduler: called with the optimiser, and `steps=` if it asks for them; None: a constant rate.
        judged: the judge's scores of all masks of each record, by its id; what margins are made of.
    """

    def __init__(
        self,
        network: nn.Module,
        loss: RewardLoss,
        optimizer: MakeOptimizer,
        *,
        scheduler: MakeScheduler | None = None,
        judged: Judged | None = None,
    ) -> None:
        super().__init__(["loss", *(f"loss/{name}" for name in PARTS), *LOGGED], optimizer, scheduler, background=False)
        self.network, self.loss, self.judged = network, loss, judged

    def setup(self, stage: str) -> None:
        """Spare the user torchmetrics' doubt: no network of this task predicts masks to hold against gold."""
        warnings.filterwarnings("ignore", message="The ``compute`` method of metric Overlap was called before")

    def training_step(self, batch: PreferenceBatch, batch_idx: int) -> Tensor:
        """Return the loss, with this process's share of all processes' pairs."""
        weight = weight_of(batch)
        with naming(batch.ids, self.global_step):
            rewards, terms = self._step(batch, weight)
            self.guard.watch(terms.total, terms.parts, batch.ids, self.global_step)
        self.count("train", _values(rewards, terms), weight)
        return terms.total * self.share(weight.sum())

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Count the loss and the pairs that are in order."""
        self._evaluate("val", batch)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Count the loss and the pairs that are in order."""
        self._evaluate("test", batch)

    def _step(self, batch: PreferenceBatch, weight: Tensor) -> tuple[Tensor, LossTerms]:
        rewards = rewards_of(self.network, batch)
        gap = gap_of(batch, self.judged).to(rewards) if self.loss.margin_per_gap and self.judged is not None else None
        return rewards, self.loss(rewards, weight=weight, gap=gap)

    @torch.no_grad()
    def _evaluate(self, stage: str, batch: Batch) -> None:
        if isinstance(batch, PairBatch | RankingBatch):
            weight = weight_of(batch)
            with naming(batch.ids, self.global_step):
                rewards, terms = self._step(batch, weight)
            self.count(stage, _values(rewards, terms), weight)


def rewards_of(network: nn.Module, batch: PreferenceBatch) -> Tensor:
    """Return the rewards [lists, masks] of a batch, best first: two masks a list in a batch of pairs."""
    if isinstance(batch, RankingBatch):
        images, masks = batch.ranking.shape[:2]
        index = torch.arange(images, device=batch.ranking.device).repeat_interleave(masks)
        return _ask(network, batch, batch.ranking.flatten(0, 1), index).view(images, masks)
    if batch.shared is not None:  # each mask once, however many pairs it is in
        return _ask(network, batch, batch.shared.masks, batch.shared.mask_image)[batch.shared.pairs]
    both = torch.cat([batch.chosen, batch.rejected])
    return _ask(network, batch, both, batch.image_index.repeat(2)).view(2, -1).T


def in_order(rewards: Tensor) -> Tensor:
    """Return the share of the pairs of each list [lists, masks], best first, that rewards put in order; a tie is half.

    >>> in_order(torch.tensor([[3.0, 1.0, 2.0], [0.0, 0.0, 0.0]]))
    tensor([0.6667, 0.5000])
    """
    return share_ahead(margins_of(rewards)).mean(1)


def share_ahead(margins: Tensor) -> Tensor:
    """Return 1 for each margin above 0, ½ for a tie, 0 for one below."""
    return (margins > 0).float() + 0.5 * (margins == 0).float()


def margins_of(rewards: Tensor) -> Tensor:
    """Return R_j − R_k of all pairs j before k of each list: [lists, masks] → [lists, pairs]."""
    better, worse = torch.triu_indices(rewards.shape[1], rewards.shape[1], offset=1, device=rewards.device)
    return rewards[:, better] - rewards[:, worse]


def gap_of(batch: PreferenceBatch, judged: Judged) -> Tensor:
    """Return how far apart the judge saw the masks of each pair of a batch, float32 [pairs]."""
    if isinstance(batch, RankingBatch):
        raise ValueError(
            "Expected pairs for margins by the judge's gap but got rankings; choose datamodule=preference."
        )
    scores = [judged[batch.ids[int(image)]] for image in batch.image_index]
    numbers = batch.pair_masks.cpu().numpy()
    gaps = [abs(own[chosen] - own[rejected]) for own, (chosen, rejected) in zip(scores, numbers, strict=True)]
    return torch.tensor(np.array(gaps), dtype=torch.float32)


def _ask(network: nn.Module, batch: Batch, masks: Tensor, index: Tensor) -> Tensor:
    # Masks are 255 already where a pixel comes from outside the image, but for data sets of somebody's own.
    seen = masks.masked_fill(~batch.valid[index], IGNORE)
    rewards: Tensor = network(batch.image, seen, index)
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

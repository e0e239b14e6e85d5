"""Supervised training: a network learns from one mask per image."""

import warnings

import torch
from torch import Tensor, nn

from segdpo.checks import IGNORE
from segdpo.data import Batch, PairBatch, RankingBatch, SupervisedBatch
from segdpo.models import hold_statistics as hold
from segdpo.preferences import whole_or_in_windows
from segdpo.training.losses import SupervisedLoss
from segdpo.training.task import MakeOptimizer, MakeScheduler, Task, batch_in_errors


class SupervisedTask(Task):
    """Minimise `loss(logits, target, valid)` over SupervisedBatches; validation and test may be on pairs.

    Means over several batches weight each by its valid pixels, and so does the gradient over accumulated batches and
    several processes. That is exact for losses that are a mean over pixels (cross-entropy), not for ratios of sums
    (Dice).

    Args:
        network: maps images [images, channels, height, width] to logits [images, 1 or classes, height, width].
        loss: function of (logits, target, valid); target is uint8 [images, height, width], or shares of the raters
            float32 [images, classes, height, width].
        optimizer: called with the trainable parameters.
        scheduler: called with the optimiser, and with `steps=` if it takes it; None: a constant learning rate.
        background: whether class 0 counts in IoU and Dice.
        hold_statistics: keep BatchNorm and dropout in evaluation mode, as preference training does.
        start: the network that training started from, to which val/pairs/iou_gain is relative; None: to none.
        window: in validation and test, larger images are predicted in windows of this side; None: whole.
    """

    def __init__(
        self,
        network: nn.Module,
        loss: SupervisedLoss,
        optimizer: MakeOptimizer,
        *,
        scheduler: MakeScheduler | None = None,
        background: bool = False,
        hold_statistics: bool = False,
        start: nn.Module | None = None,
        window: int | None = None,
    ) -> None:
        super().__init__(["loss"], optimizer, scheduler, background, start, window)
        self.network, self.loss = network, loss
        self._hold_statistics = hold_statistics
        self.train()

    def forward(self, image: Tensor) -> Tensor:
        """Return the network's logits."""
        logits: Tensor = self.network(image)
        return logits

    def training_step(self, batch: SupervisedBatch, batch_idx: int) -> Tensor:
        """Return the loss; gradients are those of the mean over all pixels of accumulated batches and processes."""
        self.warn_if_empty(batch)
        pixels = batch.valid.sum()
        with batch_in_errors(batch.ids, self.global_step):
            loss = self.loss(self.network(batch.image), batch.target, batch.valid)
            self.guard.watch(loss, {}, batch.ids, self.global_step)
        self.count("train", {"loss": loss[None]}, pixels[None])
        return self.to_minimise(loss, pixels)

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Count the loss of targets (with pairs: of gold), the IoU gains of pairs, and the overlap with gold."""
        self._evaluate("val", batch)

    def test_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Count the loss of targets (with pairs: of gold), the IoU gains of pairs, and the overlap with gold."""
        self._evaluate("test", batch)

    @torch.no_grad()
    def _evaluate(self, stage: str, batch: Batch) -> None:
        logits = whole_or_in_windows(self.network, batch.image, self.window)
        target, valid = batch.gold, batch.valid
        if isinstance(batch, SupervisedBatch):
            target = batch.target
        elif target is not None:
            valid = valid & (target != IGNORE)
        if target is not None and valid.any():
            self.count(stage, {"loss": self.loss(logits, target, valid)[None]}, valid.sum()[None])
        if isinstance(batch, PairBatch | RankingBatch):
            self.count_held_out(stage, logits, batch)
        self.count_overlap(stage, logits, batch)

    def train(self, mode: bool = True) -> "SupervisedTask":
        """Switch to training or evaluation; with `hold_statistics`, the network stays in evaluation mode."""
        super().train(mode)
        if mode and self._hold_statistics:
            hold(self.network)
        return self

    def setup(self, stage: str) -> None:
        """Silence Lightning's warning about modules that are in evaluation mode on purpose."""
        if self._hold_statistics:
            warnings.filterwarnings("ignore", message=r"Found \d+ module\(s\) in eval mode")

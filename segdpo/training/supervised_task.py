"""Supervised training: where the reference comes from."""

import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn

from segdpo.data.batch import Batch, SupervisedBatch
from segdpo.models.freezing import hold_statistics as hold
from segdpo.training.finite import naming
from segdpo.training.task import MakeOptimizer, MakeScheduler, Task

SupervisedLoss = Callable[[Tensor, Tensor, Tensor], Tensor]


class SupervisedTask(Task):
    """Minimise `loss(logits, target, valid)` over SupervisedBatches.

    Means over several batches weigh each by its valid pixels, and so does the gradient over several processes: exact
    for losses that are a mean over pixels (cross-entropy). Of a ratio of sums, such as Dice, no mean over parts is
    exact; there the parts are weighed alike.

    Args:
        network: what is trained; maps images [B, channels, H, W] to logits [B, 1 or classes, H, W].
        loss: of (logits, target, valid): target is uint8 [B,H,W], or the raters' shares float32 [B,classes,H,W].
        optimizer: called with the trainable parameters.
        scheduler: called with the optimiser, and `steps=` if it asks for them; None: a constant rate.
        background: whether val/iou and val/dice count class 0.
        hold_statistics: keep BatchNorm and dropout as in evaluation, as preference training does.
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
    ) -> None:
        super().__init__(["loss"], optimizer, scheduler, background)
        self.network, self.loss = network, loss
        self._hold_statistics = hold_statistics
        self.train()

    def setup(self, stage: str) -> None:
        """Spare the user Lightning's doubt about modes that are meant."""
        if self._hold_statistics:
            warnings.filterwarnings("ignore", message=r"Found \d+ module\(s\) in eval mode")

    def train(self, mode: bool = True) -> "SupervisedTask":
        """Switch to training or evaluation; statistics that are held stay held."""
        super().train(mode)
        if mode and self._hold_statistics:
            hold(self.network)
        return self

    def forward(self, image: Tensor) -> Tensor:
        """Return the network's logits."""
        logits: Tensor = self.network(image)
        return logits

    def training_step(self, batch: SupervisedBatch, batch_idx: int) -> Tensor:
        """Return the loss, with this process's share of all processes' valid pixels."""
        pixels = batch.valid.sum()
        with naming(batch.ids, self.global_step):
            loss = self.loss(self.network(batch.image), batch.target, batch.valid)
            self.guard.watch(loss, {}, batch.ids, self.global_step)
        self.count("train", {"loss": loss[None]}, pixels[None])
        return loss * self.share(pixels)

    def validation_step(self, batch: SupervisedBatch, batch_idx: int) -> None:
        """Count the loss and the overlap with gold."""
        self._evaluate("val", batch)

    def test_step(self, batch: SupervisedBatch, batch_idx: int) -> None:
        """Count the loss and the overlap with gold."""
        self._evaluate("test", batch)

    @torch.no_grad()
    def _evaluate(self, stage: str, batch: Batch) -> None:
        logits = self.network(batch.image)
        if isinstance(batch, SupervisedBatch):
            loss = self.loss(logits, batch.target, batch.valid)
            self.count(stage, {"loss": loss[None]}, batch.valid.sum()[None])
        self.count_overlap(stage, logits, batch)

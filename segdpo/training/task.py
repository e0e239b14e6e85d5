"""What both tasks do alike: the optimiser, means over all processes, a stop at the first loss that is no number."""

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, cast

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.optim import Optimizer

from segdpo.data.batch import Batch
from segdpo.metrics.overlap import Overlap
from segdpo.policies.pixel_policy import predicted_classes
from segdpo.regions import IGNORE
from segdpo.training.finite import FiniteGuard
from segdpo.training.means import Means

MakeOptimizer = Callable[[Iterable[nn.Parameter]], Optimizer]
MakeScheduler = Callable[..., Any]
STAGES = ("train", "val", "test")


class Task(LightningModule):
    """A task logs means over pairs (or pixels), not over batches, and over all processes, not those of one.

    During training `train/…` are means since the last time that the Trainer logged.
    """

    def __init__(
        self,
        names: Sequence[str],
        optimizer: MakeOptimizer,
        scheduler: MakeScheduler | None,
        background: bool,
    ) -> None:
        super().__init__()
        self.means = nn.ModuleDict({f"on_{stage}": Means(names) for stage in STAGES})
        self.overlaps = nn.ModuleDict({f"on_{stage}": Overlap(2, background) for stage in STAGES[1:]})
        self.guard = FiniteGuard()
        self._make_optimizer, self._make_scheduler = optimizer, scheduler
        self._logged_at = -1

    def configure_optimizers(self) -> Any:
        """Give the optimiser what is to be trained, and step the schedule after every step."""
        parameters = [parameter for parameter in self.parameters() if parameter.requires_grad]
        if not parameters:
            raise ValueError("Expected parameters to train but every one is frozen; freeze less of the network.")
        optimizer = self._make_optimizer(parameters)
        if self._make_scheduler is None:
            return optimizer
        # A schedule that wants to know how long training is asks for `steps`.
        asks = "steps" in inspect.signature(self._make_scheduler).parameters
        steps = {"steps": int(self.trainer.estimated_stepping_batches)} if asks else {}
        scheduler = self._make_scheduler(optimizer, **steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    @property
    def logs_this_step(self) -> bool:
        """Whether the Trainer logs after this step."""
        trainer: Any = self.trainer
        every = trainer.log_every_n_steps
        return bool(trainer.fast_dev_run) or (every > 0 and (self.global_step + 1) % every == 0)

    def count(self, stage: str, values: Mapping[str, Tensor], weight: Tensor) -> None:
        """Add values [pairs] to the means; in training, log them if it is time."""
        means = cast(Means, self.means[f"on_{stage}"])
        # Not at once after logging: an accumulated step logs after its last batch only.
        if stage == "train" and self._logged_at not in (-1, self.global_step):
            means.reset()
            self._logged_at = -1
        means.update(values, weight)
        if stage == "train" and self.logs_this_step:
            self._logged_at = self.global_step
            found = {f"train/{name}": value for name, value in means.compute().items()}
            self.log_dict(found, on_step=True, on_epoch=False)

    def share(self, weight: Tensor) -> Tensor:
        """Return the factor that makes the mean of the processes' gradients the gradient of the one mean of all.

        Each process's loss is a mean over its own pairs (or pixels), and DDP averages over processes: right only if
        all have the same weight in sum. This process's loss has to count by its share of the weight.
        """
        weight = weight.detach().float()
        if self.trainer.world_size == 1:
            return torch.ones_like(weight)
        whole = self.sum_over_processes(weight)
        return weight * self.trainer.world_size / whole.clamp(min=torch.finfo(weight.dtype).tiny)

    def sum_over_processes(self, values: Tensor) -> Tensor:
        """Return the sums over all processes; each of them has to call this."""
        if self.trainer.world_size == 1:
            return values
        return cast(Tensor, self.trainer.strategy.reduce(values.clone(), reduce_op="sum"))

    def count_overlap(self, stage: str, logits: Tensor, batch: Batch) -> None:
        """Hold the predicted masks against gold, if the batch has any."""
        if batch.gold is not None:
            overlap = cast(Overlap, self.overlaps[f"on_{stage}"])
            overlap.classes = max(2, logits.shape[1])
            overlap.update(predicted_classes(logits), batch.gold.masked_fill(~batch.valid, IGNORE))

    def on_validation_epoch_end(self) -> None:
        """Log what was counted."""
        self._log_epoch("val")

    def on_test_epoch_end(self) -> None:
        """Log what was counted."""
        self._log_epoch("test")

    def on_train_epoch_end(self) -> None:
        """Look at the last loss too."""
        self.guard.look()

    def _log_epoch(self, stage: str) -> None:
        means, overlaps = cast(Means, self.means[f"on_{stage}"]), cast(Overlap, self.overlaps[f"on_{stage}"])
        found, overlap = means.compute(), overlaps.compute()
        if overlap["images"] > 0:
            found |= {name: overlap[name] for name in ("iou", "dice")}
        means.reset()
        overlaps.reset()
        # The same on every process already; Lightning wants to be told to share what is logged at the end of an epoch.
        self.log_dict({f"{stage}/{name}": value for name, value in found.items()}, sync_dist=True)

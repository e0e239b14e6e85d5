"""What all tasks share: the optimiser, logged means over pairs or pixels, and a check that the loss is finite."""

import inspect
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.optim import Optimizer
from torchmetrics import Metric

from segdpo.checks import IGNORE
from segdpo.data import Batch
from segdpo.metrics import Overlap
from segdpo.scores import predicted_classes
from segdpo.training.held_out import GAINS, HeldOutGains
from segdpo.training.references import Reference
from segdpo.training.scoring import PreferenceBatch, weight_of

MakeOptimizer = Callable[[Iterable[nn.Parameter]], Optimizer]
MakeScheduler = Callable[..., Any]
STAGES = ("train", "val", "test")
IOU_GAIN = "pairs/iou_gain"
"""The smaller of both gains in IoU with the masks of held-out pairs."""


class Task(LightningModule):
    """A LightningModule that logs means over pairs (or pixels) of all processes, instead of means over batches.

    During training, `train/…` are means since the last time that the Trainer logged.

    Args:
        names: of everything that is logged, without the stage.
        optimizer: called with the trainable parameters.
        scheduler: called with the optimiser, and with `steps=` if it takes it; None: a constant learning rate.
        background: whether class 0 counts in IoU and Dice.
        start: the network that training started from, to which val/pairs/iou_gain is relative; None: to none.
        window: in validation and test, larger images are predicted in windows of this side; None: whole.
    """

    def __init__(
        self,
        names: Sequence[str],
        optimizer: MakeOptimizer,
        scheduler: MakeScheduler | None,
        background: bool,
        start: nn.Module | None = None,
        window: int | None = None,
    ) -> None:
        super().__init__()
        self.means = nn.ModuleDict(
            {f"on_{stage}": Means([*names, *(f"pairs/{gain}" for gain in GAINS)]) for stage in STAGES}
        )
        self._held_out = HeldOutGains(start, background, window)
        self.window = window
        self.overlaps = nn.ModuleDict({f"on_{stage}": Overlap(2, background) for stage in STAGES[1:]})
        self.guard = FiniteGuard()
        self._make_optimizer, self._make_scheduler = optimizer, scheduler
        self._logged_at = -1
        self.resume_force = False
        """Resume also from a checkpoint that was trained against another reference."""
        self._unit: Tensor | None = None
        self._weight: Tensor | None = None

    def configure_optimizers(self) -> Any:
        """Build the optimiser of the trainable parameters, and a schedule that steps after every step."""
        parameters = [parameter for parameter in self.parameters() if parameter.requires_grad]
        if not parameters:
            raise ValueError("Expected parameters to train but every one is frozen; freeze less of the network.")
        optimizer = self._make_optimizer(parameters)
        if self._make_scheduler is None:
            return optimizer
        takes_steps = "steps" in inspect.signature(self._make_scheduler).parameters
        steps = {"steps": int(self.trainer.estimated_stepping_batches)} if takes_steps else {}
        scheduler = self._make_scheduler(optimizer, **steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    @property
    def logs_this_step(self) -> bool:
        """Whether the Trainer logs after this step."""
        trainer: Any = self.trainer
        every = trainer.log_every_n_steps
        return bool(trainer.fast_dev_run) or (every > 0 and (self.global_step + 1) % every == 0)

    def count(self, stage: str, values: Mapping[str, Tensor], weight: Tensor) -> None:
        """Add values [pairs] with the pairs' weights [pairs] to the means; in training, log them if it is time."""
        means = cast(Means, self.means[f"on_{stage}"])
        # Not immediately after logging: an accumulated step logs after its last batch only.
        if stage == "train" and self._logged_at not in (-1, self.global_step):
            means.reset()
            self._logged_at = -1
        means.update(values, weight)
        if stage == "train" and self.logs_this_step:
            self._logged_at = self.global_step
            found = {f"train/{name}": value for name, value in means.compute().items()}
            self.log_dict(found, on_step=True, on_epoch=False)

    def count_overlap(self, stage: str, logits: Tensor, batch: Batch) -> None:
        """Add the overlap of the predicted masks with gold, if the batch has gold."""
        if batch.gold is not None:
            overlap = cast(Overlap, self.overlaps[f"on_{stage}"])
            overlap.classes = max(2, logits.shape[1])
            overlap.update(predicted_classes(logits), batch.gold.masked_fill(~batch.valid, IGNORE))

    def count_held_out(self, stage: str, logits: Tensor, batch: PreferenceBatch) -> None:
        """Add the gains in IoU with the masks of held-out pairs."""
        gains = self._held_out(logits, batch)
        self.count(stage, {f"pairs/{name}": gain for name, gain in gains.items()}, weight_of(batch))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the sums and weights of the training means since they were logged, over all processes."""
        means = cast(Means, self.means["on_train"])
        sums, weights = self.sum_over_processes(torch.stack([means.sums, means.weights])).tolist()
        logged = self._logged_at != -1  # the next batch begins anew
        rows = zip(means.names, sums, weights, strict=True)
        checkpoint["train_means"] = {} if logged else {name: pair for name, *pair in rows}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the training means, so that the next logged ones cover the same pairs as without an interruption."""
        means = cast(Means, self.means["on_train"])
        first = self._trainer is None or self._trainer.is_global_zero
        found = checkpoint.get("train_means", {}) if first else {}
        rows = [found.get(name, (0.0, 0.0)) for name in means.names]
        means.sums, means.weights = means.sums.new_tensor(rows).T.contiguous().unbind()
        self._logged_at = -1

    def load_reference(self, reference: Reference, checkpoint: Mapping[str, Any]) -> None:
        """Restore a reference; without `resume_force` it refuses a checkpoint trained against other weights."""
        own, state = reference.state_dict(), checkpoint.get("reference", {})
        reference.load_state_dict(own if self.resume_force and "fingerprint" in own else state)

    @property
    def _adds_up(self) -> bool:
        """Whether an optimiser step is made of several means: of accumulated batches, or of several processes."""
        return self.trainer.accumulate_grad_batches > 1 or self.trainer.world_size > 1

    def to_minimise(self, mean: Tensor, weight: Tensor) -> Tensor:
        """Return what `training_step` returns for a mean over this batch's pairs (or pixels).

        That is the mean itself, unless a step adds up several: Lightning then takes the mean of the batches' and
        processes' means, which is off where their weights differ. So the weighted sum is differentiated instead, and
        the gradient is divided by the weight of all batches and processes before the optimiser's step.

        Args:
            mean: the loss, a scalar.
            weight: the sum of the weights that it was divided by, a scalar.
        """
        if not self._adds_up:
            return mean
        weight = weight.detach().to(torch.promote_types(mean.dtype, torch.float32))
        if self._unit is None:
            # A power of two of the weights' size, the same in all processes: it keeps the sum in the range of half
            # precision and does not change the bits of the result.
            self._unit = self.sum_over_processes(weight).clamp(min=1).log2().round().exp2()
        self._weight = weight if self._weight is None else self._weight + weight
        return mean * (weight / self._unit)

    def on_train_start(self) -> None:
        """Start without accumulated batches."""
        self._unit = self._weight = None

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Divide the gradient of a sum by the weight of all its batches and processes; gradients are clipped later."""
        if self._unit is None or self._weight is None:
            return
        whole, self._weight = self.sum_over_processes(self._weight), None
        # Lightning has divided by the number of batches, and DDP by that of processes.
        means = self.trainer.accumulate_grad_batches * self.trainer.world_size
        factor = torch.where(whole > 0, means * self._unit / whole, 0.0)
        for parameter in (parameter for group in optimizer.param_groups for parameter in group["params"]):
            if parameter.grad is not None:
                parameter.grad.mul_(factor)

    def warn_if_empty(self, batch: Batch) -> None:
        """Warn, once, of a batch without a pixel that counts: its loss is 0."""
        if batch.empty:
            rank_zero_warn(
                "Expected pixels that count in every batch but in one all are ignored, or outside of the images; its "
                "loss is 0. If there are many such batches, use larger crops or a larger datamodule.batch_size."
            )

    def sum_over_processes(self, values: Tensor) -> Tensor:
        """Return the sums over all processes; every process has to call this."""
        if self.trainer.world_size == 1:
            return values
        return cast(Tensor, self.trainer.strategy.reduce(values.clone(), reduce_op="sum"))

    def on_validation_epoch_end(self) -> None:
        """Log the means and overlaps."""
        self._log_epoch("val")

    def on_test_epoch_end(self) -> None:
        """Log the means and overlaps."""
        self._log_epoch("test")

    def on_train_epoch_end(self) -> None:
        """Check the last loss."""
        self.guard.check_pending()

    def _log_epoch(self, stage: str) -> None:
        means, overlaps = cast(Means, self.means[f"on_{stage}"]), cast(Overlap, self.overlaps[f"on_{stage}"])
        with warnings.catch_warnings():  # without gold, nothing is compared with it
            warnings.filterwarnings("ignore", message="The ``compute`` method of metric Overlap was called before")
            found, overlap = means.compute(), overlaps.compute()
        if overlap["images"] > 0:
            found |= {name: overlap[name] for name in ("iou", "dice")}
        if gains := [found[name] for name in (f"pairs/{gain}" for gain in GAINS) if name in found]:
            found[IOU_GAIN] = torch.stack(gains).min()
        means.reset()
        overlaps.reset()
        self._held_out.release()
        # Already the same on every process, but Lightning warns without sync_dist.
        self.log_dict({f"{stage}/{name}": value for name, value in found.items()}, sync_dist=True)


class Means(Metric):
    """Means of several named values, weighted by the weights of the pairs (or pixels) that they were taken over.

    One metric for all names, so that processes exchange two short vectors instead of two numbers per name.

    >>> means = Means(["loss", "margin"])
    >>> means.update({"loss": torch.tensor([1.0, 4.0])}, weight=torch.tensor([2.0, 1.0]))
    >>> means.compute()
    {'loss': tensor(2.)}
    """

    full_state_update = False
    sums: Tensor
    weights: Tensor

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__()
        self.names = tuple(names)
        self._rows: dict[tuple[str, ...], Tensor] = {}
        for state in ("sums", "weights"):
            self.add_state(state, torch.zeros(len(self.names)), dist_reduce_fx="sum")

    def update(self, values: Mapping[str, Tensor], weight: Tensor) -> None:
        """Add values [pairs] with the pairs' weights [pairs]."""
        weight = weight.detach().to(self.sums.dtype)
        stacked = torch.stack([value.detach().to(weight) for value in values.values()])
        rows = self._rows_of(tuple(values))
        # A product and a sum instead of a matrix product, which autocast would round to half precision.
        self.sums = self.sums.index_add(0, rows, (stacked * weight).sum(1))
        self.weights = self.weights.index_add(0, rows, weight.sum().expand(len(rows)))

    def compute(self) -> dict[str, Tensor]:
        """Return the means; names without any weight are left out."""
        seen = (self.weights > 0).tolist()
        means = self.sums / self.weights
        return {name: mean for name, mean, was_seen in zip(self.names, means, seen, strict=True) if was_seen}

    def _rows_of(self, names: tuple[str, ...]) -> Tensor:
        """Return the names' numbers on the device; kept there, because sending them waits for the device."""
        rows = self._rows.get(names)
        if rows is None or rows.device != self.sums.device:
            numbers = [self.names.index(name) for name in names]
            rows = self._rows[names] = torch.tensor(numbers, device=self.sums.device)
        return rows


class NonFiniteLossError(ValueError):
    """A loss became NaN or infinite."""


class FiniteGuard:
    """Check that every loss is finite: at once on a CPU, one step later elsewhere, so that no step waits."""

    def __init__(self) -> None:
        self._pending: _Pending | None = None

    def watch(self, total: Tensor, parts: Mapping[str, Tensor], ids: Sequence[str], step: int) -> None:
        """Check the loss of the step before and remember this one.

        Args:
            total: the loss, a scalar.
            parts: its terms by name, [pairs] each.
            ids: the batch's images, for the message.
            step: number of the step, for the message.
        """
        self.check_pending()
        # One sum per part: it is finite only if every pair's value is.
        values = torch.stack([total.detach().float(), *(part.detach().float().sum() for part in parts.values())])
        self._pending = _Pending(values.isfinite(), ("loss", *parts), tuple(ids), step)
        if total.device.type == "cpu":
            self.check_pending()

    def check_pending(self) -> None:
        """Raise NonFiniteLossError if the loss remembered last is not finite."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.check()


class _Pending:
    """Flags that are copied from the device while it goes on computing."""

    def __init__(self, flags: Tensor, names: tuple[str, ...], ids: tuple[str, ...], step: int) -> None:
        self._names, self._ids, self._step = names, ids, step
        self._copied: torch.cuda.Event | None = None
        self._flags = flags
        if flags.device.type == "cuda":
            # Pinned: a plain copy would wait for everything queued before it.
            self._flags = torch.empty(flags.shape, dtype=flags.dtype, pin_memory=True)
            self._flags.copy_(flags, non_blocking=True)
            self._copied = torch.cuda.Event()
            self._copied.record()

    def check(self) -> None:
        if self._copied is not None:
            self._copied.synchronize()
        if self._flags.all():
            return
        wrong = [name for name, finite in zip(self._names, self._flags.tolist(), strict=True) if not finite]
        raise NonFiniteLossError(
            f"Expected a finite loss but at step {self._step} {' and '.join(wrong)} became NaN or infinite on the "
            f"images {', '.join(self._ids)}; lower the learning rate, clip gradients (trainer.gradient_clip_val=1), or "
            "look at these images and masks."
        )


@contextmanager
def batch_in_errors(ids: Sequence[str], step: int) -> Iterator[None]:
    """Add the step and the batch's images to ValueErrors raised inside the `with`."""
    try:
        yield
    except NonFiniteLossError:
        raise
    except ValueError as error:
        raise ValueError(f"{error} (Step {step}, images: {', '.join(ids)}.)") from error

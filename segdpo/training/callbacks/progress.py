"""The progress over all steps of a run, with the most important metrics."""

import math
import time
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar

from segdpo.progress import Bars

SHOWN = MappingProxyType(
    {
        "loss {:.3f}": "train/loss",
        "acc {:.2f}": "train/pairs/accuracy",
        "h {:+.2f}": "train/pairs/margin",
        "gain {:+.2f}": "train/pairs/chosen_gain",
        "IoU {:.3f}": "val/iou",
    }
)
# In the place of IoU where validation has no gold.
WITHOUT_GOLD = MappingProxyType({"judged {:+.3f}": "val/pairs/iou_gain"})


class Progress(ProgressBar):
    """One progress bar over all steps, instead of one per epoch: a run's length is `max_steps`. In log files: lines.

    Args:
        shown: format string → name of the logged metric; metrics that are not logged are left out.
        per_second: how often the line is drawn. Reading a metric waits for the device, so not every step does.
    """

    def __init__(self, shown: Mapping[str, str] = SHOWN, per_second: float = 4) -> None:
        super().__init__()
        self._shown, self._interval = shown, 1 / per_second
        self._enabled = True
        self._display: Bars | None = None
        self._drawn = -math.inf

    def enable(self) -> None:
        """Draw the bar; called by Lightning."""
        self._enabled = True

    def disable(self) -> None:
        """Draw nothing; called by Lightning in every process but the first."""
        self._enabled = False

    def numbers(self, trainer: Trainer) -> str:
        """Return the latest metrics in one line."""
        metrics = trainer.callback_metrics
        shown = self._shown if "val/iou" in metrics else {**self._shown, **WITHOUT_GOLD}
        return " ".join(form.format(float(metrics[name])) for form, name in shown.items() if name in metrics)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Advance by a step."""
        self._advance(trainer, "train", trainer.global_step, trainer.estimated_stepping_batches)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restart the interval, so that a short validation gets no line of its own."""
        self._drawn = time.monotonic()

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Advance by a batch."""
        self._advance(trainer, "validate", batch_idx + 1, _total(trainer.num_val_batches, dataloader_idx))

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Advance by a batch."""
        self._advance(trainer, "test", batch_idx + 1, _total(trainer.num_test_batches, dataloader_idx))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remove the validation's line; its metrics are drawn with the next step."""
        if self._display is not None:
            self._display.remove("validate")
        self._drawn = -math.inf

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the last metrics."""
        if self._display is not None:
            total = _length(trainer.estimated_stepping_batches)
            self._display.update("train", trainer.global_step, total, self.numbers(trainer))

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Release the terminal before the error is printed."""
        self._close()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Release the terminal."""
        self._close()

    def _advance(self, trainer: Trainer, name: str, done: int, total: float) -> None:
        now = time.monotonic()
        early = now - self._drawn < self._interval and done < total
        # A validation's end is not shown: its line goes right after it.
        if early or (name == "validate" and done >= total) or not self._enabled:
            return
        self._drawn = now
        # Started late: what runs before the first batch may draw a bar of its own.
        if self._display is None:
            self._display = Bars()
        self._display.update(name, done, _length(total), self.numbers(trainer) if name == "train" else "")

    def _close(self) -> None:
        if self._display is not None:
            self._display.close()
        self._display, self._drawn = None, -math.inf


def _length(total: float) -> int | None:
    return None if math.isinf(total) else int(total)


def _total(batches: int | float | list[int | float], loader: int) -> float:
    return batches[loader] if isinstance(batches, list) else batches

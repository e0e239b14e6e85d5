"""One progress bar over all steps of a run, with the numbers that matter."""

import math
import time
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress
from rich.table import Column

SHOWN = MappingProxyType(
    {
        "loss {:.3f}": "train/loss",
        "acc {:.2f}": "train/pairs/accuracy",
        "h {:+.2f}": "train/pairs/margin",
        "gain {:+.2f}": "train/pairs/chosen_gain",
        "IoU {:.3f}": "val/iou",
    }
)


class Progress(ProgressBar):
    """A bar of rich over all steps, not one an epoch: runs are as long as max_steps says, epochs come and go.

    Args:
        shown: how a number is written, and which logged metric it is; those that are not logged are left out.
        per_second: how often the line is drawn anew. Reading a number waits for the device, so not every step does.
    """

    def __init__(self, shown: Mapping[str, str] = SHOWN, per_second: float = 4) -> None:
        super().__init__()
        self._shown, self._interval = shown, 1 / per_second
        self._enabled = True
        self._display: RichProgress | None = None
        self._tasks: dict[str, TaskID] = {}
        self._drawn = -math.inf

    def enable(self) -> None:
        """Draw; Lightning asks for it."""
        self._enabled = True

    def disable(self) -> None:
        """Draw nothing; Lightning asks for it in every process but the first."""
        self._enabled = False

    def numbers(self, trainer: Trainer) -> str:
        """Return the latest numbers in one line."""
        metrics = trainer.callback_metrics
        return " ".join(form.format(float(metrics[name])) for form, name in self._shown.items() if name in metrics)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Move on by a step."""
        self._move(trainer, "train", trainer.global_step, trainer.estimated_stepping_batches)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let a short validation pass without a line of its own, which would only flicker."""
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
        """Move on by a batch."""
        self._move(trainer, "validate", batch_idx + 1, _total(trainer.num_val_batches, dataloader_idx))

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Move on by a batch."""
        self._move(trainer, "test", batch_idx + 1, _total(trainer.num_test_batches, dataloader_idx))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the line of the validation away and show what it found."""
        if self._display is not None and "validate" in self._tasks:
            self._display.remove_task(self._tasks.pop("validate"))
        self._drawn = -math.inf

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the last numbers."""
        if self._display is not None and "train" in self._tasks:
            self._display.update(
                self._tasks["train"], completed=trainer.global_step, numbers=self.numbers(trainer), refresh=True
            )

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Give the terminal back before anyone says what went wrong."""
        self._close()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Give the terminal back."""
        self._close()

    def _move(self, trainer: Trainer, name: str, done: int, total: float) -> None:
        now = time.monotonic()
        early = now - self._drawn < self._interval and (done < total or name == "validate")
        if early or not self._enabled:
            return
        self._drawn = now
        # Not before the first batch is done: what gets ready before that may draw a bar of its own.
        if self._display is None:
            self._display = _display()
            self._display.start()
        length = None if math.isinf(total) else int(total)
        if name not in self._tasks:
            self._tasks[name] = self._display.add_task(name, total=length, numbers="")
        numbers = "" if name != "train" else self.numbers(trainer)
        self._display.update(self._tasks[name], completed=done, total=length, numbers=numbers)

    def _close(self) -> None:
        if self._display is not None:
            self._display.stop()
        self._display, self._drawn = None, -math.inf
        self._tasks.clear()


def _display() -> RichProgress:
    return RichProgress(
        TextColumn("{task.description}"),
        # The bar takes what the numbers leave of the line.
        BarColumn(bar_width=None, table_column=Column(ratio=1)),
        MofNCompleteColumn(),
        TextColumn("{task.fields[numbers]}"),
        TimeRemainingColumn(compact=True, elapsed_when_finished=True),
        expand=True,
    )


def _total(batches: int | float | list[int | float], loader: int) -> float:
    return batches[loader] if isinstance(batches, list) else batches

"""A checkpoint of the last step, so that a finished run can be made longer."""

from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer


class AtTheEnd(Callback):
    """Saves to `path` after the last step: rarely one at which checkpoints are due.

    Within the loop, not after it: a checkpoint of a loop that has ended starts an epoch anew.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save if this was the last step."""
        if trainer.global_step == trainer.max_steps and not getattr(trainer, "fast_dev_run", False):
            trainer.save_checkpoint(self.path)

"""Checkpoints that are whole or not there, and words for whoever finds a run stopped."""

import contextlib
import io
import logging
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import SIGTERMException

from segdpo.models.atomic_file import write_atomically

log = logging.getLogger(__name__)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its place, waits until the disk has it, then puts it there in one step.

    Lightning's own writes to the system's temporary folder, without waiting; from another disk, moving it is a copy
    that may stop half-way, over the last good checkpoint.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Write; if the disk is full or Ctrl-C comes, what was there before stays, and nothing else does."""
        path = Path(path)
        # A process killed while writing could not clear up; its file is as large as a checkpoint.
        for left in path.parent.glob(f".{path.name}.*.tmp"):
            with contextlib.suppress(OSError):
                left.unlink()
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        write_atomically(path, buffer.getvalue())


class LastCheckpoint(Checkpoint):
    """Saves everything that going on takes, in place of the checkpoint before: DIRPATH/last.ckpt, each n steps.

    And after the last step, so that a finished run can be made longer.

    Lightning's ModelCheckpoint saves the last step of an epoch before that epoch is validated, and a run resumed from
    there never validates it: the best checkpoint may then be replaced by a worse one. Here that save waits.
    """

    def __init__(self, dirpath: str | Path, every_n_train_steps: int = 100) -> None:
        if every_n_train_steps < 1:
            raise ValueError(f"Expected a checkpoint each 1 or more steps but got {every_n_train_steps}.")
        self.path, self.every_n_train_steps = Path(dirpath) / "last.ckpt", every_n_train_steps
        self._saved_at = 0
        self._waits = False

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save if it is time, once a step: with accumulated gradients, several batches end at the same one."""
        due = trainer.global_step % self.every_n_train_steps == 0 or trainer.global_step == trainer.max_steps
        if not due or trainer.global_step == self._saved_at:
            return
        self._saved_at = trainer.global_step
        if trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
            self._waits = True
        else:
            trainer.save_checkpoint(self.path)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save what waited for the validation."""
        if self._waits:
            self._waits = False
            trainer.save_checkpoint(self.path)

    def state_dict(self) -> dict[str, Any]:
        """Return the step of this checkpoint."""
        return {"saved_at": self._saved_at}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self._saved_at = state_dict["saved_at"]


class HowToGoOn(Callback):
    """When Ctrl-C, the cluster or the disk stops a run: says where the last checkpoint is and how to go on from it."""

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Say it, for what is no fault of the run's own."""
        if not isinstance(exception, KeyboardInterrupt | SIGTERMException | OSError):
            return
        why = {KeyboardInterrupt: "by Ctrl-C", SIGTERMException: "by SIGTERM"}.get(type(exception), "by the system")
        _say(f"Stopped {why} after step {trainer.global_step}. {_how(trainer)}")


def _how(trainer: Trainer) -> str:
    whole = [path for callback in trainer.checkpoint_callbacks for path in _resumable(callback) if path.is_file()]
    last = max(whole, key=lambda path: path.stat().st_mtime_ns, default=None)
    if last is None:
        return "No checkpoint had been written yet; run the same command again."
    return (
        f"The last checkpoint, {last}, is whole; go on with the same command and "
        f"hydra.run.dir={trainer.default_root_dir} ckpt_path={last}"
    )


def _resumable(callback: Checkpoint) -> list[Path]:
    """Return the files that a callback wrote and a run can go on from; weights alone are none."""
    if isinstance(callback, LastCheckpoint):
        return [callback.path]
    if isinstance(callback, ModelCheckpoint) and not callback.save_weights_only:
        return [Path(path) for path in (callback.last_model_path, callback.best_model_path) if path]
    return []


@rank_zero_only
def _say(message: str) -> None:
    log.warning("%s", message)

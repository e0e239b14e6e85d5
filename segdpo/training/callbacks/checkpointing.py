"""Checkpoints that are whole or not there, and words for whoever finds a run stopped."""

import contextlib
import io
import logging
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
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


class HowToGoOn(Callback):
    """When Ctrl-C, the cluster or the disk stops a run: says where the last checkpoint is and how to go on from it."""

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Say it, for what is no fault of the run's own."""
        if not isinstance(exception, KeyboardInterrupt | SIGTERMException | OSError):
            return
        why = {KeyboardInterrupt: "by Ctrl-C", SIGTERMException: "by SIGTERM"}.get(type(exception), "by the system")
        _say(f"Stopped {why} after step {trainer.global_step}. {_how(trainer)}")


def _how(trainer: Trainer) -> str:
    paths = [
        Path(path)
        for callback in trainer.checkpoint_callbacks
        if isinstance(callback, ModelCheckpoint) and not callback.save_weights_only
        for path in (callback.last_model_path, callback.best_model_path)
        if path
    ]
    last = max((path for path in paths if path.is_file()), key=lambda path: path.stat().st_mtime_ns, default=None)
    if last is None:
        return "No checkpoint had been written yet; run the same command again."
    run = last.parent.parent
    return (
        f"The last checkpoint, {last}, is whole; go on with the same command and hydra.run.dir={run} ckpt_path={last}"
    )


@rank_zero_only
def _say(message: str) -> None:
    log.warning("%s", message)

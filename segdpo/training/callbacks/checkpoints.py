"""Checkpoints that a run resumes from exactly: written atomically, with the random state, and named when it stops."""

import io
import logging
import random
import signal
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import SIGTERMException

from segdpo.files import remove_unfinished, write_atomically

log = logging.getLogger(__name__)


class LastCheckpoint(Checkpoint):
    """Save the whole state of training to DIRPATH/last.ckpt every n steps, and after the last step.

    The checkpoint of the last step lets a finished run be made longer.

    Lightning's ModelCheckpoint saves the last step of an epoch before that epoch is validated, and a run resumed from
    there never validates it: the best checkpoint may then be replaced by a worse one. Here that save comes after the
    validation.

    After SIGTERM the state is saved once more before training stops: after the current step, or after the validation
    if one is due. Several processes agree on the step, whichever of them received it.
    """

    def __init__(self, dirpath: str | Path, every_n_train_steps: int = 100) -> None:
        if every_n_train_steps < 1:
            raise ValueError(f"Expected a checkpoint each 1 or more steps but got {every_n_train_steps}.")
        self.path, self.every_n_train_steps = Path(dirpath) / "last.ckpt", every_n_train_steps
        self._saved_at = self._step = self._batches = 0
        self._loaded = False
        self._save_after_validation = self._received = self._stopping = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Receive SIGTERM in the place of Lightning, which saves nothing then, and hangs on several devices."""
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._remember)  # Lightning restores what was there before training

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop where SIGTERM came after the last step."""
        if self._agree_to_stop(trainer):
            raise SIGTERMException

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Before the first step after a resume, correct the step of logged values."""
        self._correct_step(trainer)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Correct the step and the epoch of logged values where there was no step after a resume."""
        progress = trainer.fit_loop.epoch_progress
        if self._loaded and trainer.current_epoch < progress.current.ready:
            progress.increment_completed()
        self._correct_step(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save if it is time, once a step: with accumulated gradients, several batches end at the same one."""
        before, self._step = self._step, trainer.global_step
        # With manual optimisation, a batch may be several steps.
        due = self._step // self.every_n_train_steps > self._saved_at // self.every_n_train_steps
        due |= self._agree_to_stop(trainer) or self._step == trainer.max_steps
        if not due or self._step in (before, self._saved_at):
            return
        if trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
            self._save_after_validation = True
        else:
            self._save(trainer, trainer.fit_loop.epoch_loop._batches_that_stepped + 1)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save what was postponed until after the validation."""
        if self._agree_to_stop(trainer) or self._save_after_validation:
            self._save(trainer, trainer.fit_loop.epoch_loop._batches_that_stepped)

    def _correct_step(self, trainer: Trainer) -> None:
        """Lightning counts one step too many after a checkpoint between epochs, and one too few after the last step."""
        if self._loaded:
            trainer.fit_loop.epoch_loop._batches_that_stepped = self._batches
            self._loaded = False

    def _save(self, trainer: Trainer, batches: int) -> None:
        self._save_after_validation, self._saved_at, self._batches = False, trainer.global_step, batches
        trainer.save_checkpoint(self.path)
        if self._stopping:
            trainer._signal_connector.received_sigterm = True

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self._received = True

    def _agree_to_stop(self, trainer: Trainer) -> bool:
        """Return whether a process has received SIGTERM; all processes get the same answer, and then stay with it."""
        self._stopping |= trainer.strategy.reduce_boolean_decision(self._received, all=False)
        return self._stopping

    def state_dict(self) -> dict[str, Any]:
        """Return the step of this checkpoint, and the number of batches that ended in a step."""
        return {"saved_at": self._saved_at, "batches": self._batches}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the state of a checkpoint."""
        self._saved_at = self._step = state_dict["saved_at"]
        self._batches = state_dict.get("batches", 0)
        self._loaded = "batches" in state_dict  # not in checkpoints of earlier versions


class AtomicCheckpointIO(TorchCheckpointIO):
    """Write a checkpoint to a temporary file beside its place, flush it to disk, then rename it.

    Lightning's own plugin writes to the system's temporary folder without flushing; moving the file from another disk
    is a copy that may stop half-way, over the last good checkpoint.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Write the file; if that fails or is interrupted, the previous file stays and nothing else does."""
        path = Path(path)
        # Temporary files of killed processes, each as large as a checkpoint.
        remove_unfinished(path.parent, path.name)
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        write_atomically(path, buffer.getvalue())


class RandomState(Callback):
    """Keep the states of Python's, NumPy's and torch's random generators in each checkpoint, and restore them.

    Lightning keeps weights, optimisers and loops only; without these states, dropout would draw other numbers after a
    resume.
    """

    def __init__(self) -> None:
        self._loaded: dict[str, Any] | None = None

    def state_dict(self) -> dict[str, Any]:
        """Return the states, in types that torch.load accepts with weights_only."""
        version, numbers, gauss = random.getstate()
        kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)  # noqa: NPY002
        return {
            "python": [version, list(numbers), gauss],
            "numpy": [kind, torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, cached],
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the states until the first step: what is set up before it draws numbers too."""
        self._loaded = state_dict

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Restore the states before the first step after a resume."""
        if self._loaded is None:
            return
        state, self._loaded = self._loaded, None
        version, numbers, gauss = state["python"]
        random.setstate((version, tuple(numbers), gauss))
        kind, keys, position, has_gauss, cached = state["numpy"]
        np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, cached))  # noqa: NPY002
        torch.set_rng_state(state["torch"])
        if state["cuda"]:
            torch.cuda.set_rng_state_all(state["cuda"])


class ResumeHint(Callback):
    """When Ctrl-C, SIGTERM or the disk stops a run: log where the last checkpoint is and how to resume from it."""

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Log the hint, unless the run stopped because of an error of its own."""
        if not isinstance(exception, KeyboardInterrupt | SIGTERMException | OSError):
            return
        cause = {KeyboardInterrupt: "by Ctrl-C", SIGTERMException: "by SIGTERM"}.get(type(exception), "by the system")
        rank_zero_only(log.warning)("Stopped %s after step %d. %s", cause, trainer.global_step, _hint(trainer))


def _hint(trainer: Trainer) -> str:
    files = [path for callback in trainer.checkpoint_callbacks for path in _resumable(callback) if path.is_file()]
    last = max(files, key=lambda path: path.stat().st_mtime_ns, default=None)
    if last is None:
        return "No checkpoint had been written yet; run the same command again."
    return (
        f"The last checkpoint is {last}; resume with the same command and "
        f"hydra.run.dir={trainer.default_root_dir} resume={last}"
    )


def _resumable(callback: Checkpoint) -> list[Path]:
    """Return the checkpoints that a callback wrote and a run can resume from; weights alone are not enough."""
    if isinstance(callback, LastCheckpoint):
        return [callback.path]
    if isinstance(callback, ModelCheckpoint) and not callback.save_weights_only:
        return [Path(path) for path in (callback.last_model_path, callback.best_model_path) if path]
    return []

"""Checkpoints that a run resumes from exactly: written atomically, with the random state, and named when it stops."""

import io
import logging
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import SIGTERMException

from segdpo.files import remove_unfinished, write_atomically
from segdpo.models import check_archive

log = logging.getLogger(__name__)


class LastCheckpoint(Checkpoint):
    """Save the whole state of training to DIRPATH/last.ckpt every n steps, and after the last step.

    The checkpoint of the last step lets a finished run be made longer.

    Lightning's ModelCheckpoint saves the last step of an epoch before that epoch is validated, and a run resumed from
    there never validates it: the best checkpoint may then be replaced by a worse one. Here that save comes after the
    validation.
    """

    def __init__(self, dirpath: str | Path, every_n_train_steps: int = 100) -> None:
        if every_n_train_steps < 1:
            raise ValueError(f"Expected a checkpoint each 1 or more steps but got {every_n_train_steps}.")
        self.path, self.every_n_train_steps = Path(dirpath) / "last.ckpt", every_n_train_steps
        self._saved_at = 0
        self._save_after_validation = False

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save if it is time, once a step: with accumulated gradients, several batches end at the same one."""
        due = trainer.global_step % self.every_n_train_steps == 0 or trainer.global_step == trainer.max_steps
        if not due or trainer.global_step == self._saved_at:
            return
        self._saved_at = trainer.global_step
        if trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
            self._save_after_validation = True
        else:
            trainer.save_checkpoint(self.path)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save what was postponed until after the validation."""
        if self._save_after_validation:
            self._save_after_validation = False
            trainer.save_checkpoint(self.path)

    def state_dict(self) -> dict[str, Any]:
        """Return the step of this checkpoint."""
        return {"saved_at": self._saved_at}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the state of a checkpoint."""
        self._saved_at = state_dict["saved_at"]


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

    def load_checkpoint(self, path: str | Path, *args: Any, **options: Any) -> dict[str, Any]:
        """Return the content of a file; a damaged one is an error, which it is not for `torch.load`."""
        if Path(path).is_file():  # and no address
            check_archive(path)
        return super().load_checkpoint(path, *args, **options)


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

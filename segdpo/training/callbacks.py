"""Callbacks: checkpoints, random state, pruning, warnings about displacement."""

import io
import logging
import random
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import SIGTERMException
from optuna import Trial, TrialPruned

from segdpo.files import remove_unfinished, write_atomically


class RandomState(Callback):
    """Keeps the states of Python's, NumPy's and torch's generators in each checkpoint, and puts them back.

    Lightning keeps weights, optimisers and loops, not these; without them dropout would draw other numbers.
    """

    def __init__(self) -> None:
        self._kept: dict[str, Any] | None = None

    def state_dict(self) -> dict[str, Any]:
        """Return the states, in types that torch.load takes with weights_only."""
        version, numbers, gauss = random.getstate()
        kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)  # noqa: NPY002
        return {
            "python": [version, list(numbers), gauss],
            "numpy": [kind, torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, cached],
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the states until training starts: what is set up until then draws numbers too."""
        self._kept = state_dict

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Put the states back before the first step after a resume."""
        if self._kept is None:
            return
        kept, self._kept = self._kept, None
        version, numbers, gauss = kept["python"]
        random.setstate((version, tuple(numbers), gauss))
        kind, keys, position, has_gauss, cached = kept["numpy"]
        np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, cached))  # noqa: NPY002
        torch.set_rng_state(kept["torch"])
        if kept["cuda"]:
            torch.cuda.set_rng_state_all(kept["cuda"])


class PruneTrial(Callback):
    """Report `metric` to the trial after each validation, and stop the run when the study's pruner says so.

    Steps are counted in validations, from 1: what min_resource of Hyperband and n_warmup_steps of the median mean.
    """

    def __init__(self, trial: Trial, metric: str) -> None:
        self.trial, self.metric = trial, metric
        self.validations = 0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse several processes: only one of them knows the trial, the others would train on."""
        if trainer.world_size > 1:
            raise ValueError(
                f"Expected a search to train on one device but got {trainer.world_size}; set trainer.devices=1 and "
                "start the search several times at once instead."
            )

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Report; raise TrialPruned if the trial is to be given up."""
        # Only while training: the validation of the final weights is the trial's value.
        if trainer.sanity_checking or trainer.state.fn != TrainerFn.FITTING:
            return
        if self.metric not in trainer.callback_metrics:
            raise ValueError(
                f"Expected the metric {self.metric!r} after validation but got "
                f"{', '.join(sorted(trainer.callback_metrics)) or 'none'}; set hparams_search.metric to one of them."
            )
        self.validations += 1
        value = float(trainer.callback_metrics[self.metric])
        self.trial.report(value, step=self.validations)
        if self.trial.should_prune():
            raise TrialPruned(f"{self.metric} = {value:.4g} after {self.validations} validations")


log = logging.getLogger(__name__)

MEND = (
    "Mend: an anchor (loss=hinge_anchor, lse_anchor or dpo_nll), a larger beta (nearer to the reference), or a "
    "smaller learning rate."
)


class Displacement(Callback):
    """Says once, in words, that displacement has set in, and logs `train/displaced` (0 or 1).

    Displacement is a chosen gain s⁺_θ − s⁺_ref below 0: the policy likes the preferred masks less than the reference
    did, although the margin grows. It has set in when the mean of the last `window` logged values lies below
    `threshold` at `patience` logged steps in a row. Each logged value is itself the mean since the one before, over
    all processes, so every process comes to the same verdict.

    Args:
        threshold: in the units of the score; a little below 0, since the first steps wander about it.
        window: logged values in the mean.
        patience: logged steps that the mean has to stay below.
        metric: the chosen gain's name among what is logged; `margin`: that of h, said in the message.
    """

    def __init__(
        self,
        threshold: float = -0.01,
        window: int = 5,
        patience: int = 3,
        metric: str = "train/pairs/chosen_gain",
        margin: str = "train/pairs/margin",
    ) -> None:
        if window < 1 or patience < 1:
            raise ValueError(f"Expected window and patience of at least 1 but got {window} and {patience}.")
        self.threshold, self.patience, self.metric, self.margin = threshold, patience, metric, margin
        self.displaced = False
        self._gains: deque[float] = deque(maxlen=window)
        self._below = 0
        self._seen_at = 0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Look at the chosen gain if it was logged at this step."""
        step: int = trainer.global_step
        every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]  # set by its logger connector
        # Between logged steps, and between the batches of one accumulated step, Lightning keeps the old value.
        if step == self._seen_at or every < 1 or step % every:
            return
        self._seen_at = step
        gain = trainer.callback_metrics.get(self.metric)
        if gain is None:
            return
        if self.sees(float(gain)) and not self.displaced:
            self.displaced = True
            _warn(self._in_words(trainer, step))
        pl_module.log("train/displaced", float(self.displaced), on_step=True, on_epoch=False)

    def sees(self, gain: float) -> bool:
        """Take in one more value; return whether the mean has been below the threshold for long enough."""
        self._gains.append(gain)
        full = len(self._gains) == self._gains.maxlen
        self._below = self._below + 1 if full and self.mean < self.threshold else 0
        return self._below >= self.patience

    @property
    def mean(self) -> float:
        """The mean of the values in the window."""
        return sum(self._gains) / len(self._gains)

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run has to know, so that it neither forgets nor repeats itself."""
        return {"displaced": self.displaced, "gains": list(self._gains), "below": self._below, "step": self._seen_at}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.displaced, self._below, self._seen_at = (state_dict[key] for key in ("displaced", "below", "step"))
        self._gains.clear()
        self._gains.extend(state_dict["gains"])

    def _in_words(self, trainer: Trainer, step: int) -> str:
        margin = float(trainer.callback_metrics.get(self.margin, 0))
        but = f", though its margin over the rejected ones grew (h {margin:+.3g})" if margin > 0 else ""
        return (
            f"Likelihood displacement has set in by step {step}: over the last {len(self._gains)} logged values the "
            f"policy likes the chosen masks less than the reference does (chosen gain {self.mean:+.3g}, below "
            f"{self.threshold:g}){but}. {MEND} (optimizer.lr={trainer.optimizers[0].param_groups[0]['lr']:g} now)"
        )


@rank_zero_only
def _warn(message: str) -> None:
    log.warning("%s", message)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its place, waits until the disk has it, then puts it there in one step.

    Lightning's own writes to the system's temporary folder, without waiting; from another disk, moving it is a copy
    that may stop half-way, over the last good checkpoint.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Write; if the disk is full or Ctrl-C comes, what was there before stays, and nothing else does."""
        path = Path(path)
        # A process killed while writing could not clear up; its file is as large as a checkpoint.
        remove_unfinished(path.parent, path.name)
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
        f"hydra.run.dir={trainer.default_root_dir} resume={last}"
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

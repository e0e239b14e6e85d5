"""The Trainer, the loaders and the policy of a configuration, and training with them."""

import copy
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, ProgressBar
from omegaconf import DictConfig
from torch import nn

from segdpo.data import DataModule, RecordSource, Splits
from segdpo.models import freeze_parts, load_weights, without_download
from segdpo.recipes.config import Plain, build, plain
from segdpo.recipes.resuming import TrainedOn, resuming
from segdpo.recipes.run import Run
from segdpo.recipes.sweep_folder import in_sweep
from segdpo.training import RandomState, Task

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Fitted:
    """A task after training, its Trainer, and the loaders it was trained with."""

    trainer: Trainer
    task: LightningModule
    data: DataModule


def fit(
    run: Run,
    task: LightningModule,
    data: DataModule,
    network: nn.Module,
    callbacks: Sequence[Callback],
    stage: str = "policy",
) -> Fitted:
    """Train as the configuration says, from the beginning or from the checkpoint of `resume=…`.

    Args:
        run: its configuration has the trainer, callbacks and loggers.
        task: what is trained.
        data: the loaders.
        network: the network in the task that is being trained; with final=best it gets its best weights at the end.
        callbacks: beside those of the configuration.
        stage: what the caller counts the seconds of the training as.

    Raises:
        ValueError: the checkpoint is of another training, and there is no resume_force.
    """
    config = run.config
    # In every checkpoint, so that the network can be built from the file alone.
    task.save_hyperparameters({"config": description_of(run)})
    trainer = make_trainer(config, callbacks)
    checkpoint = _checkpoint_of(config, trainer)
    trained_on = TrainedOn.of(run, network, data, trainer.world_size)
    trainer.callbacks.append(resuming(run, trained_on, checkpoint, stage))  # type: ignore[attr-defined]
    if isinstance(task, Task):
        task.resume_force = config.resume_force
    trainer.fit(task, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    best = run.folder / "checkpoints" / "best.ckpt"
    if config.final == "best" and best.exists():
        load_weights(best, network)
    elif config.final == "best":
        log.warning("Nothing was validated in %d steps, so that final=best is the last step.", trainer.global_step)
    return Fitted(trainer, task, data)


def validate(fitted: Fitted, name: str) -> float | None:
    """Validate the final weights and return the metric that the run optimises; None if there is no such metric."""
    data = fitted.data
    found = fitted.trainer.validate(fitted.task, datamodule=data, verbose=False) if len(data.splits.val) else []
    metrics = found[0] if found else {}
    if name in metrics:
        return float(metrics[name])
    log.warning("Nothing is logged as optimise=%s; there is %s.", name, ", ".join(sorted(metrics)) or "nothing")
    return None


def make_trainer(config: DictConfig, callbacks: Sequence[Callback]) -> Trainer:
    """Return the Trainer of the configuration, with its callbacks and loggers and the given callbacks.

    Without a callback that saves checkpoints there are none, and without one that shows progress no bar: Lightning
    would add its own.
    """
    named = [build(node) for node in (plain(config.callbacks) or {}).values() if node]
    loggers = [build(node) for node in (plain(config.logger) or {}).values() if node]
    all_callbacks = [*named, *callbacks, RandomState()]
    trainer: Trainer = build(
        config.trainer,
        callbacks=all_callbacks,
        logger=loggers or False,
        enable_checkpointing=any(isinstance(one, Checkpoint) for one in all_callbacks),
        enable_progress_bar=any(isinstance(one, ProgressBar) for one in all_callbacks),
    )
    return trainer


def make_data(config: DictConfig, source: RecordSource, splits: Splits) -> DataModule:
    """Return the loaders of the configuration for these records and splits."""
    transforms: dict[str, Any] = build(config.transforms)
    data: DataModule = build(
        config.datamodule,
        source=source,
        split=splits,
        train_pipeline=transforms["train"],
        eval_pipeline=transforms["eval"],
    )
    return data


def make_policy(config: DictConfig, network: nn.Module) -> nn.Module:
    """Return a policy before its first step: a copy of the network, with the adapter and frozen parts if chosen."""
    policy: nn.Module = build(config.adapter)(copy.deepcopy(network))
    freeze_parts(policy, config.freeze)
    return policy


def description_of(run: Run) -> Plain:
    """Return what it takes to build the network of a run again and to show it images as this run does."""
    config, preparation = run.config, run.preparation
    return {
        "model": {**without_download(plain(config.model)), "classes": len(run.classes)},
        "adapter": plain(config.adapter),
        "classes": list(run.classes),
        "mean": list(preparation.views.mean),
        "std": list(preparation.views.std),
        "preparation": preparation.stored(),
    }


def header_for(run: Run, *, adapter: bool = False) -> dict[str, str]:
    """Return the header of a file of weights; `adapter`: the weights include those of the adapter."""
    description = description_of(run)
    if not adapter:
        description["adapter"] = None
    return {"config": json.dumps(description)}


def _checkpoint_of(config: DictConfig, trainer: Trainer) -> Path | None:
    """Return the checkpoint to resume from: a file, or with resume=last the run folder's own if there is one.

    A job that Slurm requeued resumes from the one that Lightning saved for that.
    """
    if config.resume is None:
        requeued = trainer._checkpoint_connector._hpc_resume_path if SLURMEnvironment.detect() else None
        return None if requeued is None else Path(requeued)
    if config.resume != "last":
        if not Path(config.resume).is_file():
            raise FileNotFoundError(
                f"Expected a checkpoint at resume={config.resume} but there is no such file; checkpoints are in "
                "the folder checkpoints/ of a run."
            )
        return Path(config.resume)
    last = Path(config.run_folder) / "checkpoints" / "last.ckpt"
    if last.exists():
        log.info("Resuming from %s.", last)
        return last
    if not in_sweep():
        log.warning(
            "There is no checkpoint at %s: the run starts from its beginning. To resume an earlier run, name its "
            "folder: hydra.run.dir=outputs/DATE/TIME resume=last.",
            last,
        )
    return None

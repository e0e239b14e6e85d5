"""The training loop of a run: a Trainer with callbacks and loggers, gone on with where an earlier one stopped."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from omegaconf import DictConfig
from torch import nn

from segdpo.data.datamodule import DataModule
from segdpo.data.record_source import RecordSource
from segdpo.data.splits import Splits
from segdpo.models.weights import load_weights
from segdpo.story.configs import build, plain
from segdpo.training.callbacks.random_state import RandomState

log = logging.getLogger(__name__)


def make_trainer(config: DictConfig, callbacks: Sequence[Callback]) -> Trainer:
    """Return the Trainer of the configuration, with its callbacks and loggers and the given ones."""
    named = [build(node) for node in (plain(config.callbacks) or {}).values() if node]
    loggers = [build(node) for node in (plain(config.logger) or {}).values() if node]
    trainer: Trainer = build(config.trainer, callbacks=[*named, *callbacks, RandomState()], logger=loggers or False)
    return trainer


def make_data(config: DictConfig, source: RecordSource, splits: Splits) -> DataModule:
    """Return the loaders of the configuration over records and splits that are there already."""
    transforms: dict[str, Any] = build(config.transforms)
    data: DataModule = build(
        config.datamodule,
        source=source,
        split=lambda infos: splits,
        train_pipeline=transforms["train"],
        eval_pipeline=transforms["eval"],
    )
    return data


def fit(trainer: Trainer, task: LightningModule, data: DataModule, config: DictConfig) -> None:
    """Train, from the start or from the checkpoint that ckpt_path names."""
    trainer.fit(task, datamodule=data, ckpt_path=checkpoint_of(config), weights_only=True)


def take_final(config: DictConfig, folder: Path, network: nn.Module) -> None:
    """Give the network the weights that `final` asks for: the last ones, which it has, or the best validation's."""
    if config.final == "best":
        load_weights(folder / "checkpoints" / "best.ckpt", network)


def metric_of(trainer: Trainer, task: LightningModule, data: DataModule, name: str) -> float | None:
    """Validate the final weights and return what the run optimises; None if there is nothing to validate on."""
    found = trainer.validate(task, datamodule=data, verbose=False) if len(data.splits.val) else []
    metrics = found[0] if found else {}
    if name in metrics:
        return float(metrics[name])
    log.warning("Nothing logged as optimise=%s; there is %s.", name, ", ".join(sorted(metrics)) or "nothing")
    return None


def checkpoint_of(config: DictConfig) -> str | None:
    """Return the file to go on from; `last` is the run folder's own, if it has one yet."""
    if config.ckpt_path is None:
        return None
    if config.ckpt_path != "last":
        if not Path(config.ckpt_path).is_file():
            raise FileNotFoundError(
                f"Expected a checkpoint at ckpt_path={config.ckpt_path} but there is no such file; checkpoints are in "
                "the folder checkpoints/ of a run."
            )
        return str(config.ckpt_path)
    last = Path(config.run_folder) / "checkpoints" / "last.ckpt"
    if last.exists():
        log.info("Going on from %s.", last)
        return str(last)
    log.warning(
        "No checkpoint at %s yet: the run starts at its beginning. To go on with an earlier run, give its folder: "
        "hydra.run.dir=outputs/DATE/TIME ckpt_path=last.",
        last,
    )
    return None

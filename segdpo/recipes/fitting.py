"""The Trainer, the data and the task of a configuration, and training with them."""

import copy
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

from lightning.pytorch import Callback, LightningModule, Trainer
from omegaconf import DictConfig
from torch import nn

from segdpo.data import DataModule, RecordSource, Splits
from segdpo.losses import PreferenceLoss, dpo
from segdpo.models import IMAGENET_MEAN, IMAGENET_STD, freeze_parts, load_weights
from segdpo.recipes.config import Plain, build, plain
from segdpo.recipes.run import Setting
from segdpo.training import FrozenCopy, PreferenceTask, RandomState, Task


def description_of(config: DictConfig, classes: Sequence[str]) -> Plain:
    """Return model, adapter, classes and normalisation as plain values."""
    evaluation = plain(config.transforms).get("eval", {})
    adapter = plain(config.adapter)
    return {
        "model": {**plain(config.model), "classes": len(classes)},
        "adapter": adapter,
        "classes": list(classes),
        "mean": list(evaluation.get("mean", IMAGENET_MEAN)),
        "std": list(evaluation.get("std", IMAGENET_STD)),
    }


def header_for(config: DictConfig, classes: Sequence[str], *, adapter: bool = False) -> dict[str, str]:
    """Return the header of a file of weights; `adapter`: the weights are the network's with its adapter."""
    description = description_of(config, classes)
    if not adapter:
        description["adapter"] = None
    return {"config": json.dumps(description)}


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
        split=splits,
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
    if config.resume is None:
        return None
    if config.resume != "last":
        if not Path(config.resume).is_file():
            raise FileNotFoundError(
                f"Expected a checkpoint at resume={config.resume} but there is no such file; checkpoints are in "
                "the folder checkpoints/ of a run."
            )
        return str(config.resume)
    last = Path(config.run_folder) / "checkpoints" / "last.ckpt"
    if last.exists():
        log.info("Going on from %s.", last)
        return str(last)
    log.warning(
        "No checkpoint at %s yet: the run starts at its beginning. To go on with an earlier run, give its folder: "
        "hydra.run.dir=outputs/DATE/TIME resume=last.",
        last,
    )
    return None


@dataclass(frozen=True, eq=False)
class Lesson:
    """One round: its own setting, the policy to train, the network to hold it against, and the pairs.

    `fresh`: the policy has the weights of `held`.
    """

    setting: Setting
    policy: nn.Module
    held: nn.Module
    data: DataModule
    fresh: bool = True


@dataclass(frozen=True, eq=False)
class Learned:
    """What trained, and on which data."""

    trainer: Trainer
    task: Task
    data: DataModule


Learn = Callable[[Lesson, Sequence[Callback]], Learned]


def learn_from_pairs(lesson: Lesson, callbacks: Sequence[Callback]) -> Learned:
    """Train with the loss of the configuration."""
    return train(lesson, make_task(lesson), lesson.data, callbacks)


def train(lesson: Lesson, task: Task, data: DataModule, callbacks: Sequence[Callback]) -> Learned:
    """Train as the configuration says, whatever the task learns from."""
    config = lesson.setting.config
    # Into every checkpoint, so that the network can be built again from the file alone.
    task.save_hyperparameters({"config": description_of(config, lesson.setting.source.classes)})
    trainer = make_trainer(config, callbacks)
    fit(trainer, task, data, config)
    return Learned(trainer, task, data)


def make_policy(config: DictConfig, network: nn.Module) -> nn.Module:
    """Return the policy before its first step: a copy of the reference, with an adapter and frozen parts if chosen."""
    policy: nn.Module = build(config.adapter)(copy.deepcopy(network))
    freeze_parts(policy, config.freeze)
    return policy


def make_task(lesson: Lesson) -> PreferenceTask:
    """Return the policy with all that trains it."""
    config = lesson.setting.config
    return PreferenceTask(
        lesson.policy,
        build(config.reference)(lesson.held),
        build(config.loss),
        build(config.optimizer),
        scheduler=build(config.scheduler),
        beta=build(config.beta_schedule),
        hold_statistics=config.hold_statistics,
        starts_at_reference=lesson.fresh,
        background=config.background,
        low_resolution=config.low_resolution,
    )


def pairs_on_test(lesson: Lesson, learned: Learned) -> dict[str, Any]:
    """Return what the test pairs say of the policy against the network of `lesson`, whatever it has learned from."""
    if not len(lesson.data.splits.test):
        return {}
    config = lesson.setting.config
    task = learned.task
    if not (lesson.fresh and isinstance(task, PreferenceTask) and task.loss.needs_reference):
        loss = PreferenceLoss(partial(dpo, beta=1.0), score=build(config.score))
        reference = FrozenCopy(lesson.held)
        task = PreferenceTask(lesson.policy, reference, loss, build(config.optimizer), background=config.background)
    found = learned.trainer.test(task, datamodule=lesson.data, verbose=False)
    return cast(dict[str, Any], found[0])

"""What a policy learns from in one round: from pairs of masks here, from masks alone in finetune.py."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

from lightning.pytorch import Callback, Trainer
from omegaconf import DictConfig
from torch import nn

from segdpo.data.datamodule import DataModule
from segdpo.losses.objectives import dpo
from segdpo.losses.preference_loss import PreferenceLoss
from segdpo.models.freezing import freeze_parts
from segdpo.story.configs import build
from segdpo.story.fitting import fit, make_trainer
from segdpo.story.headers import description_of
from segdpo.story.setting import Setting
from segdpo.training.preference_task import PreferenceTask
from segdpo.training.references import FrozenCopy
from segdpo.training.task import Task


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

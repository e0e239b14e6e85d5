"""The course of a policy: round by round, preferences are collected and learned from."""

import copy
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from lightning.pytorch import Callback, seed_everything
from torch import nn

from segdpo.data.splits import Numbers
from segdpo.models.weights import load_weights, save_weights
from segdpo.story.clock import Clock
from segdpo.story.fitting import make_data, take_final
from segdpo.story.headers import header_for
from segdpo.story.learning import Learn, Learned, Lesson, make_policy
from segdpo.story.preferences import Judged, network_node, with_preferences
from segdpo.story.reference import Reference
from segdpo.story.rounds import join_metrics, rounds_of
from segdpo.story.setting import Setting

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Course:
    """What the last round ended with, as a lesson against the first reference, and what all rounds were judged on."""

    lesson: Lesson
    learned: Learned
    judged: Sequence[Judged]
    seconds: dict[str, float]


def walk(setting: Setting, reference: Reference, callbacks: Sequence[Callback], learn: Learn) -> Course:
    """Let a policy that starts as the reference learn in all rounds."""
    config, clock, rounds = setting.config, Clock(), rounds_of(setting)
    seconds = {"pairs": 0.0, "policy": 0.0}
    asked = network_node(config, setting.source, reference.path)
    splits = replace(setting.splits, train=judged_of(setting, reference))
    held: nn.Module = reference.network
    policy: nn.Module | None = None
    judged: list[Judged] = []
    for number, own in enumerate(rounds):
        judged.append(with_preferences(own.config, own.source, splits, asked, first=judged[0] if judged else None))
        data = make_data(own.config, judged[-1].source, judged[-1].splits)
        seconds["pairs"] += clock.lap()
        # Whether the reference was trained here or found must not change what is drawn from here on.
        seed_everything(own.config.seed, workers=True, verbose=False)
        policy = make_policy(config, held) if policy is None else policy
        latest = config.round_reference == "latest"
        lesson = Lesson(own, policy, held, data, fresh=latest or number == 0)
        ended = own.folder / "policy.safetensors"
        if own is not rounds[-1] and config.ckpt_path == "last" and ended.exists():
            log.info("Round %d of %d is there: %s", number + 1, len(rounds), ended)
            load_weights(ended, policy)
        else:
            learned = learn(lesson, callbacks)
            take_final(config, own.folder, policy)
        if own is not rounds[-1]:
            save_weights(ended, policy, header_for(config, setting.source.classes, adapter=True))
            asked = network_node(config, setting.source, ended, adapter=bool(config.adapter))
            held = copy.deepcopy(policy) if latest else held
        seconds["policy"] += clock.lap()
    _join(setting, rounds)
    whole = replace(lesson, setting=setting, held=reference.network, fresh=len(rounds) == 1)
    return Course(whole, learned, judged, seconds)


def judged_of(setting: Setting, reference: Reference) -> Numbers:
    """Return the training images that may be judged; with few masks, those without a mask of their own."""
    train = setting.splits.train
    if setting.config.start.judge_seen:
        return train
    rest = np.setdiff1d(train, reference.seen)
    if not len(rest):
        raise ValueError(
            f"Expected training images beyond the {len(reference.seen)} that the reference has seen but none is left; "
            "lower start.images, or set start.judge_seen=true."
        )
    return rest


def _join(setting: Setting, rounds: Sequence[Setting]) -> None:
    if len(rounds) > 1:
        steps = [own.config.trainer.max_steps for own in rounds]
        join_metrics([own.folder for own in rounds], steps, Path(setting.folder) / "metrics.csv")

"""Rounds of collecting preferences and training on them."""

import copy
import csv
import io
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from lightning.pytorch import Callback, seed_everything
from omegaconf import DictConfig, OmegaConf
from torch import nn

from segdpo.data import Numbers
from segdpo.files import write_atomically
from segdpo.models import load_weights, save_weights
from segdpo.recipes.collect import Judged, asks_a_network, network_node, with_preferences
from segdpo.recipes.config import leaves, plain
from segdpo.recipes.fitting import Learn, Learned, Lesson, header_for, make_data, make_policy, take_final
from segdpo.recipes.reference import Reference
from segdpo.recipes.run import Clock, Setting

# Far beyond the seeds that people give, so that no round draws what another run does.
SEEDS_APART = 1_000_000


def rounds_of(setting: Setting) -> list[Setting]:
    """Return the setting of each round; one round is the run itself."""
    config = setting.config
    check_rounds(config)
    if config.rounds == 1:
        return [setting]
    steps = shares(config.trainer.max_steps, config.rounds)
    return [replace(setting, config=_own(config, *one), folder=_folder(setting, one[0])) for one in enumerate(steps)]


def check_rounds(config: DictConfig) -> None:
    """Refuse, before anything is trained, what no rounds can be made of."""
    if config.rounds < 1 or config.round_reference not in ("latest", "first"):
        raise ValueError(
            "Expected rounds of at least 1 and round_reference latest or first but got "
            f"rounds={config.rounds} round_reference={config.round_reference}."
        )
    if config.rounds == 1:
        return
    asks, held = asks_a_network(plain(config.candidates)), config.reference._target_.rpartition(".")[2]
    expected = {
        f"pairs that ask the policy for masks but got {config.candidates._target_}, which gives the "
        "same ones each round; "
        "choose candidates=logit_noise, tta, mc_dropout, thresholds or class_biases": asks,
        f"trainer.max_steps of at least {config.rounds}, to share out among the rounds, but got "
        f"{config.trainer.max_steps}": config.trainer.max_steps >= config.rounds,
        f"trainer.devices=1 but got {config.trainer.devices}": str(config.trainer.devices) == "1",
        "a reference that can follow but got adapter_off; choose reference=frozen, or round_reference=first": (
            held != "AdapterOff" or config.round_reference == "first"
        ),
        f"resume=last, or none, but got {config.resume}: a file does not say of which round it is": (
            config.resume in (None, "last")
        ),
    }
    for words, met in expected.items():
        if not met:
            raise ValueError(f"Expected, with rounds={config.rounds}, {words}.")


def shares(steps: int, rounds: int) -> list[int]:
    """Share the steps out evenly, the first rounds taking what is left over.

    >>> shares(60, 3), shares(8, 3)
    ([20, 20, 20], [3, 3, 2])
    """
    return [steps // rounds + (number < steps % rounds) for number in range(rounds)]


def join_metrics(folders: Sequence[Path], steps: Sequence[int], out: Path) -> None:
    """Write the rounds' metrics.csv as one, with steps that go on from round to round."""
    rows, columns, begin = [], ["epoch", "step"], 0
    for folder, length in zip(folders, steps, strict=True):
        path = folder / "metrics.csv"
        found = list(csv.DictReader(path.open(newline=""))) if path.exists() else []
        rows += [{**row, "step": str(int(row["step"]) + begin)} for row in found]
        columns += [name for name in (found[0] if found else {}) if name not in columns]
        begin += length
    if rows:
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, columns, restval="")
        writer.writeheader()
        writer.writerows(rows)
        write_atomically(out, text.getvalue().encode())


def _own(config: DictConfig, number: int, steps: int) -> DictConfig:
    own = config.copy()
    # Folds, images, or a reward model that go with the run's seed are not another round's.
    for name, value in leaves(OmegaConf.to_container(config, resolve=False)):
        if isinstance(value, str) and "${seed}" in value:
            OmegaConf.update(own, name, OmegaConf.select(config, name))
    own.run_folder = str(Path(config.run_folder) / f"round_{number + 1}")
    own.seed = config.seed + number * SEEDS_APART
    own.trainer.max_steps = steps
    return own


def _folder(setting: Setting, number: int) -> Path:
    folder = setting.folder / f"round_{number + 1}"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


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
        if own is not rounds[-1] and config.resume == "last" and ended.exists():
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
    if setting.config.reference_training.judge_seen:
        return train
    rest = np.setdiff1d(train, reference.seen)
    if not len(rest):
        raise ValueError(
            f"Expected training images beyond the {len(reference.seen)} that the reference has seen but none is left; "
            "lower reference_training.images, or set reference_training.judge_seen=true."
        )
    return rest


def _join(setting: Setting, rounds: Sequence[Setting]) -> None:
    if len(rounds) > 1:
        steps = [own.config.trainer.max_steps for own in rounds]
        join_metrics([own.folder for own in rounds], steps, Path(setting.folder) / "metrics.csv")

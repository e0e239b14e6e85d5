"""Rounds of collecting preferences and training on them; a run without rounds is one round."""

import copy
import csv
import io
import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lightning.pytorch import seed_everything
from omegaconf import DictConfig, OmegaConf
from torch import nn

from segdpo.data import DataModule
from segdpo.files import write_atomically
from segdpo.models import load_weights, read_header, save_weights
from segdpo.preferences import asks_network
from segdpo.recipes.collect import Preferences, collect_preferences
from segdpo.recipes.config import build, function_of, leaves
from segdpo.recipes.fitting import header_for, make_data, make_policy
from segdpo.recipes.keep import check_rule
from segdpo.recipes.reference import Reference, images_to_judge
from segdpo.recipes.resuming import TrainedOn, check_resumed
from segdpo.recipes.run import Run
from segdpo.training import AdapterOff

log = logging.getLogger(__name__)

# Far more than the seeds that people choose, so that no round draws the numbers of another run.
SEEDS_APART = 1_000_000


@dataclass(frozen=True, eq=False)
class Round:
    """One round of a run.

    Attributes:
        run: with the round's own seed, folder and number of steps.
        policy: the policy to train.
        reference: the network that the policy is compared with in training.
        data: loaders of the preferences collected for this round.
        preferences: those of all rounds so far, this one's last.
        starts_at_reference: the policy has the weights of `reference`.
    """

    run: Run
    policy: nn.Module
    reference: nn.Module
    data: DataModule
    preferences: Sequence[Preferences]
    starts_at_reference: bool = True


def rounds_of(run: Run, reference: Reference) -> Iterator[Round]:
    """Yield each round with its preferences collected, for the caller to train its policy.

    The first round asks the reference for candidates, each later one the policy of the round before. With resume=last
    rounds that are finished are not yielded: their weights are loaded.
    """
    config, runs = run.config, split_into_rounds(run)
    images = images_to_judge(run)
    held: nn.Module = reference.network
    policy: nn.Module | None = None
    collected: list[Preferences] = []
    for number, part in enumerate(runs):
        first = collected[0] if collected else None
        weights = reference.path if policy is None else None
        asked = reference.network if policy is None else policy
        collected.append(collect_preferences(part, images, asked, weights=weights, first=first))
        data = make_data(part.config, collected[-1].source, collected[-1].splits)
        if first is None:
            check_rule(config.keep, data)
        run.clock.lap("pairs")
        # What is drawn from here on must not depend on whether the reference was trained here or found in the cache.
        seed_everything(part.config.seed, workers=True, verbose=False)
        policy = make_policy(config, held) if policy is None else policy
        kept, is_last = part.folder / "policy.safetensors", part is runs[-1]
        trained_on = None if is_last else TrainedOn.of(part, policy, data)
        if trained_on is not None and config.resume == "last" and kept.exists():
            log.info("Round %d of %d is finished: %s", number + 1, len(runs), kept)
            _resume_after(part, kept, trained_on)
            load_weights(kept, policy)
        else:
            fresh = number == 0 or config.round_reference == "latest"
            yield Round(part, policy, held, data, tuple(collected), starts_at_reference=fresh)
            if trained_on is not None:
                own = {"trained_on": vars(trained_on), "seconds": run.clock.until_now("policy")}
                header = header_for(run, adapter=True) | {name: json.dumps(value) for name, value in own.items()}
                save_weights(kept, policy, header)
        if not is_last and config.round_reference == "latest":
            held = copy.deepcopy(policy)
        run.clock.lap("policy")
    if len(runs) > 1:
        join_metrics(runs, run.folder / "metrics.csv")


def check_rounds(config: DictConfig) -> None:
    """Refuse options that do not go together with rounds, before anything is trained.

    Raises:
        ValueError: one of them does not.
    """
    if config.rounds < 1 or config.round_reference not in ("latest", "first"):
        raise ValueError(
            "Expected rounds of at least 1 and round_reference latest or first but got "
            f"rounds={config.rounds} round_reference={config.round_reference}."
        )
    if config.rounds == 1:
        return
    adapter_off = function_of(build(config.reference)) is AdapterOff
    expected = {
        "questions to ask in each round but got questions=answered, which asks none; choose questions=best_worst": (
            build(config.questions) is not None
        ),
        f"candidates of the policy but got {config.candidates._target_}, which makes the same masks in each round; "
        "choose candidates=logit_noise, tta, mc_dropout, thresholds or class_biases": asks_network(
            build(config.candidates)
        ),
        f"trainer.max_steps of at least {config.rounds}, to share out among the rounds, but got "
        f"{config.trainer.max_steps}": config.trainer.max_steps >= config.rounds,
        f"trainer.devices=1 but got {config.trainer.devices}": str(config.trainer.devices) == "1",
        "a reference that is replaced in each round but got reference=adapter_off, which cannot be; choose "
        "reference=frozen, or round_reference=first": not adapter_off or config.round_reference == "first",
        f"resume=last, or none, but got resume={config.resume}: a checkpoint does not say which round it is of": (
            config.resume in (None, "last")
        ),
    }
    for words, met in expected.items():
        if not met:
            raise ValueError(f"Expected, with rounds={config.rounds}, {words}.")


def split_into_rounds(run: Run) -> list[Run]:
    """Return the run of each round: its own seed and folder, and a share of the steps; one round is the run itself."""
    if run.config.rounds == 1:
        return [run]
    runs = []
    for number, steps in enumerate(shares(run.config.trainer.max_steps, run.config.rounds)):
        folder = run.folder / f"round_{number + 1}"
        folder.mkdir(parents=True, exist_ok=True)
        runs.append(replace(run, config=_config_of(run.config, number, steps), folder=folder))
    return runs


def shares(steps: int, rounds: int) -> list[int]:
    """Divide the steps evenly; the first rounds take one more of the remainder.

    >>> shares(60, 3), shares(8, 3)
    ([20, 20, 20], [3, 3, 2])
    """
    return [steps // rounds + (number < steps % rounds) for number in range(rounds)]


def join_metrics(runs: Sequence[Run], out: Path) -> None:
    """Write the metrics.csv of all rounds as one, with steps counted through."""
    rows, columns, begin = [], ["epoch", "step"], 0
    for run in runs:
        path = run.folder / "metrics.csv"
        found = list(csv.DictReader(path.open(newline=""))) if path.exists() else []
        rows += [{**row, "step": str(int(row["step"]) + begin)} for row in found]
        columns += [name for name in (found[0] if found else {}) if name not in columns]
        begin += run.config.trainer.max_steps
    if rows:
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, columns, restval="")
        writer.writeheader()
        writer.writerows(rows)
        write_atomically(out, text.getvalue().encode())


def _resume_after(part: Run, kept: Path, now: TrainedOn) -> None:
    """Compare a finished round with what would be trained now, and count its seconds."""
    header = read_header(kept)
    before, seconds = (json.loads(header[name]) if name in header else None for name in ("trained_on", "seconds"))
    check_resumed(kept, before, now, force=part.config.resume_force)
    part.clock.resume(seconds or {})


def _config_of(config: DictConfig, number: int, steps: int) -> DictConfig:
    own = config.copy()
    # What depends on the run's seed, such as the fold, stays the same in all rounds.
    for name, value in leaves(OmegaConf.to_container(config, resolve=False)):
        if isinstance(value, str) and "${seed}" in value:
            OmegaConf.update(own, name, OmegaConf.select(config, name))
    own.run_folder = str(Path(config.run_folder) / f"round_{number + 1}")
    own.seed = config.seed + number * SEEDS_APART
    own.trainer.max_steps = steps
    return own

"""What a checkpoint was trained on, kept in it, and compared with the run that resumes from it."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from omegaconf import OmegaConf
from torch import nn

from segdpo.data import DataModule, Record, info_of
from segdpo.files import DataError
from segdpo.models import fingerprint
from segdpo.recipes.config import Plain, plain
from segdpo.recipes.run import Clock, Run, differences
from segdpo.renamed import current_config
from segdpo.training import AtomicCheckpointIO

log = logging.getLogger(__name__)

# Options that decide what the first step finds: their effect is compared, so that data and weights may be moved.
OF_START = ("reference_training.",)
OF_DATA = ("data.", "limit_images", "datamodule.split.")
# Options that may change: they decide how long is trained, what is watched, and what is done with the result.
FREE = (
    "callbacks.",
    "cluster",
    "datamodule.pin_memory",
    "datamodule.workers",
    "debug",
    "experiment",
    "final",
    "frontier",
    "hparams_search",
    "keep",
    "measured_at",
    "optimise",
    "reward_test",
    "trainer.",
    "without_gold",
)
# Ways to have the same reference: scores, and checkpoints, are the same.
SAME_REFERENCE = ("FrozenCopy", "CachedScores", "SharedEncoder", "AdapterOff")
OF_STEPS = tuple(f"trainer.{name}" for name in ("accumulate_grad", "gradient_clip", "limit_train", "precision"))
# Records whose content is read, and records whose names are: evenly spread ones where there are more.
CONTENTS, NAMES = 4, 2**16


@dataclass(frozen=True, eq=False)
class TrainedOn:
    """What decides the numbers of a training.

    Attributes:
        start: fingerprint of the weights before the first step.
        data: fingerprint of the training images and their preferences.
        processes: how many train together.
        config: the options.
    """

    start: str
    data: str
    processes: int
    config: Plain

    @classmethod
    def of(cls, run: Run, network: nn.Module, data: DataModule, processes: int = 1) -> "TrainedOn":
        """Return it for a run whose network is not trained yet."""
        config = plain(OmegaConf.create(OmegaConf.to_yaml(run.config, resolve=True)))
        return cls(fingerprint(network), print_of(data), processes, config)

    def differences(self, now: "TrainedOn") -> list[str]:
        """Return what differs now, each as "name (before → now)"."""
        changed = differences(current_config(self.config), now.config)
        found = _compared("the weights before the first step", self.start, now.start, changed, OF_START)
        found += _compared("the data", self.data, now.data, changed, OF_DATA)
        found += _compared("processes", self.processes, now.processes, [], ())
        free = (*OF_START, *OF_DATA, *FREE, *(["reference."] if _same_reference(self.config, now.config) else []))
        return found + [one for one in changed if one.startswith(OF_STEPS) or not one.startswith(free)]


def check_resumed(path: Path, before: Mapping[str, Any] | None, now: TrainedOn, *, force: bool) -> list[str]:
    """Compare a run with the training that it resumes.

    Args:
        path: of the checkpoint.
        before: the fields of `TrainedOn` in it; None: it is of a version that did not keep them.
        now: of this run.
        force: resume all the same.

    Returns:
        What differs.

    Raises:
        ValueError: something differs.
    """
    if before is None:
        log.warning("%s does not say what it was trained on, so that nothing is compared.", path)
        return []
    found = TrainedOn(**before).differences(now)
    if found and not force:
        raise ValueError(
            f"Expected to resume the training of {path} but that was another one: {'; '.join(found)}. Resume with the "
            "options of that training, start a new run in another folder, or resume all the same (resume_force=true)."
        )
    if found:
        log.warning("Resuming from %s, although that was another training: %s", path, "; ".join(found))
    return found


class Resuming(Callback):
    """Keeps in each checkpoint what it was trained on and the seconds until then; counts these after a resume.

    Args:
        trained_on: kept as it is.
        clock: of the run.
        stage: what the seconds of the training are counted as.
        restart_optimizer: begin with new states of the optimiser and its schedule instead of those of the checkpoint.
    """

    def __init__(self, trained_on: TrainedOn, clock: Clock, stage: str, restart_optimizer: bool) -> None:
        self.trained_on, self.clock, self.stage = trained_on, clock, stage
        self.restart_optimizer = restart_optimizer

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add both."""
        checkpoint["trained_on"] = dict(vars(self.trained_on))
        checkpoint["seconds"] = self.clock.until_now(self.stage)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Count the seconds; remove states that would replace the options of the optimiser by earlier ones."""
        self.clock.resume(checkpoint.get("seconds", {}))
        if self.restart_optimizer:
            checkpoint |= {"optimizer_states": [], "lr_schedulers": []}


def resuming(run: Run, trained_on: TrainedOn, path: Path | None, stage: str) -> Resuming:
    """Return the callback, after a comparison with the checkpoint that the run resumes from.

    Raises:
        ValueError: it is of another training, and there is no resume_force.
    """
    found: list[str] = []
    if path is not None:
        before = AtomicCheckpointIO().load_checkpoint(path, weights_only=True).get("trained_on")
        found = check_resumed(path, before, trained_on, force=run.config.resume_force)
    restart = any(one.startswith(("optimizer.", "scheduler.")) for one in found)
    if restart:
        log.warning("The optimiser and its schedule start anew, with the options of this run.")
    return Resuming(trained_on, run.clock, stage, restart)


def print_of(data: DataModule) -> str:
    """Return 32 hex digits over the names and numbers of preferences of the training images, and some of the images."""
    numbers, digest = data.splits.train, blake2b(digest_size=16)
    digest.update(f"{len(numbers)}".encode())
    for number in numbers[:: max(1, len(numbers) // NAMES)]:
        info = info_of(data.source, int(number))
        digest.update(repr((info.id, info.pairs, info.ranking)).encode())
    for number in numbers[:: max(1, len(numbers) // CONTENTS)][:CONTENTS]:
        try:
            _add(digest, data.source[int(number)])
        except DataError as error:
            digest.update(error.kind.encode())
    return digest.hexdigest()


def _add(digest: blake2b, record: Record) -> None:
    for values in (record.image, record.masks, *(() if record.gold is None else (record.gold,))):
        digest.update(f"{values.shape}".encode() + values.tobytes())
    digest.update(repr((record.mask_names, record.pairs, record.ranking)).encode())


def _same_reference(*configs: Plain) -> bool:
    targets = [str((config.get("reference") or {}).get("_target_")) for config in configs]
    return all(target.rpartition(".")[2] in SAME_REFERENCE for target in targets)


def _compared(name: str, before: object, now: object, changed: list[str], causes: tuple[str, ...]) -> list[str]:
    because = "".join(f", {one}" for one in changed if one.startswith(causes)) if causes else ""
    return [] if before == now else [f"{name} ({before} → {now}{because})"]

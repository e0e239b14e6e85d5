"""The reference: trained once for each configuration of it, kept in the cache, and found there by later runs.

The file is named after everything that the weights depend on, so that runs that differ in their loss alone share it.
The second of two jobs that start together waits for the first. Where the cache may not be written to, the run's own
folder takes its place.
"""

import errno
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.pytorch import Trainer
from omegaconf import DictConfig

from segdpo.checks import IGNORE
from segdpo.data import DataModule, Numbers, Pipeline, Record, RecordSource, Splits, SupervisedDataset
from segdpo.files import DataError
from segdpo.models import Segmenter, load_weights, save_weights
from segdpo.recipes.cache import held
from segdpo.recipes.config import build, key_for, plain
from segdpo.recipes.fitting import header_for
from segdpo.recipes.gold import check_target
from segdpo.recipes.run import Run, reset_peak
from segdpo.training import Progress, SupervisedTask

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Reference:
    """The reference network, the file of its weights, and whether it was trained here."""

    network: Segmenter
    path: Path
    trained: bool


def train_or_load_reference(run: Run) -> Reference:
    """Load the reference that the configuration describes; train it first if the cache does not have it."""
    config, seen = run.config, seen_images(run)
    torch.manual_seed(config.seed)
    network: Segmenter = build(config.model, classes=len(run.classes))
    if config.reference_training.path is not None:
        path, trained = Path(config.reference_training.path), False
        load_weights(path, network)
    else:
        name = f"{_key(config, seen)}.safetensors"
        folders = [Path(folder) / "references" for folder in (config.cache, run.folder / "cache")]
        path, trained = _kept_or_trained(run, network, seen, [folder / name for folder in folders])
    run.clock.lap("reference")
    # The peak that is reported must not depend on whether the reference was trained here.
    reset_peak()
    return Reference(network, path, trained)


def seen_images(run: Run) -> Numbers:
    """Return the training images whose masks the reference is trained on: none if it comes from a file.

    Raises:
        ValueError: they do not have the masks that reference_training.target names.
    """
    options, train = run.config.reference_training, run.splits.train
    if options.path is not None:
        return np.empty(0, np.uint32)
    pool = run.with_gold(train) if options.target == "gold" else train
    check_target(run, pool)
    images = options.images
    if images is None and (options.get("at_most") or len(pool)) < len(pool):
        images = options.at_most
    return draw_images(pool, images, run.config.seed)


def draw_images(pool: Numbers, images: int | None, seed: int) -> Numbers:
    """Draw the training images whose masks the reference is trained on; None: all.

    Args:
        pool: the training images that have such masks.
        images: how many.
        seed: of the draw.
    """
    if images is None:
        return pool
    if not 1 <= images <= len(pool):
        raise ValueError(
            f"Expected reference_training.images to be from 1 to {len(pool)}, the number of training images that have "
            f"reference_training.target, but got {images}."
        )
    drawn = np.random.default_rng(seed).permutation(pool)[:images]
    return np.sort(drawn)


def images_to_judge(run: Run) -> Numbers:
    """Return the training images that preferences are collected for: all, or those the reference has not seen masks of.

    Raises:
        ValueError: the reference sees all of them and reference_training.judge_seen is false.
    """
    seen = seen_images(run)
    if run.config.reference_training.judge_seen:
        return run.splits.train
    rest = np.setdiff1d(run.splits.train, seen)
    if not len(rest):
        raise ValueError(
            f"Expected training images that the reference does not see but it sees all {len(seen)}; lower "
            "reference_training.images, or set reference_training.judge_seen=true."
        )
    return rest


def _counted(run: Run, seen: Numbers) -> tuple[int, int, str]:
    """Return how many images the reference is trained on, of how many, and how many of these have gold."""
    train = run.splits.train
    if run.config.reference_training.target != "gold":
        return len(seen), len(train), ""
    gold = len(run.with_gold(train))
    more = "; reference_training.at_most=null takes all" if len(seen) < gold < len(train) else ""
    return len(seen), len(train), f", {gold} of which have gold{more}"


def _key(config: DictConfig, seen: Numbers) -> str:
    """Return a name for everything that the weights depend on, the versions of the software included."""
    precision = plain(config.trainer).get("precision")
    names = ("reference_training", "model", "transforms", "seed")
    return key_for(config, names, seen=seen.tolist(), precision=precision)


def _kept_or_trained(run: Run, network: Segmenter, seen: Numbers, places: Sequence[Path]) -> tuple[Path, bool]:
    """Load the weights from the first of `places` that has them, or train them; return the file, and if it is new."""
    for place in places:
        if _is_loaded(place, network):
            return place, False
    for place in places:
        with held(place, place.parent) as writable:
            # Another job may have trained it since.
            if _is_loaded(place, network):
                return place, False
            if writable:
                log.info(
                    "Training the reference on %d of %d training images%s (kept as %s).", *_counted(run, seen), place
                )
                _train(run.config, network, run.source, _with_pixels(run, seen))
                save_weights(place, network, header_for(run))
                return place, True
    raise PermissionError(errno.EACCES, "Expected a cache, or a run folder, that may be written to", str(places[-1]))


def _with_pixels(run: Run, seen: Numbers) -> Numbers:
    """Leave out images whose gold is ignored everywhere, and say how many they are; other targets are not looked at."""
    if run.config.reference_training.target != "gold":
        return seen
    ids = {int(number): record.id for number in seen if _is_ignored(record := run.source[int(number)])}
    if len(ids) == len(seen):
        raise DataError(
            f"Expected gold with a pixel that counts but that of all {len(seen)} images is {IGNORE} (ignore) alone, "
            f"the first {next(iter(ids.values()))!r}; draw other masks.",
            "preference",
        )
    if ids:
        first = next(iter(ids.values()))
        log.warning("Skipped %d of %d: gold is ignored everywhere (first: %s).", len(ids), len(seen), first)
    return np.setdiff1d(seen, list(ids))


def _is_ignored(record: Record) -> bool:
    return record.gold is not None and bool((record.gold == IGNORE).all())


def _is_loaded(path: Path, network: Segmenter) -> bool:
    """Load the weights if the cache has them, and return whether it has; a file that is damaged is trained again."""
    if not path.exists():
        return False
    try:
        load_weights(path, network)
    except DataError as error:
        log.warning("The reference in the cache is damaged and is trained again: %s", error)
        return False
    log.info("The reference is in the cache: %s", path)
    return True


def _train(config: DictConfig, network: Segmenter, source: RecordSource, seen: Numbers) -> None:
    options = config.reference_training
    task = SupervisedTask(network, build(options.loss), build(options.optimizer), scheduler=build(options.scheduler))
    # On one device, however many the policy has: the other processes wait at the lock.
    trainer = Trainer(
        max_steps=options.steps,
        accelerator=config.trainer.accelerator,
        devices=1,
        precision=plain(config.trainer).get("precision", "32-true"),
        plugins=[LightningEnvironment()],
        callbacks=[Progress()],
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        limit_val_batches=0,
    )
    trainer.fit(task, datamodule=_masks_of(config, source, seen))


def _masks_of(config: DictConfig, source: RecordSource, seen: Numbers) -> DataModule:
    """Return loaders of the seen images alone, with the masks that reference_training.target names."""
    none = np.empty(0, np.uint32)
    transforms: dict[str, Pipeline] = build(config.transforms)
    return DataModule(
        source,
        transforms["train"],
        transforms["eval"],
        items=partial(SupervisedDataset, target=config.reference_training.target),
        split=Splits(seen, none, none, (len(seen), 0, 0)),
        batch_size=config.reference_training.batch_size,
        workers=config.datamodule.workers,
        seed=config.seed,
    )

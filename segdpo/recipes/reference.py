"""The first stage: a reference, trained once for each configuration of it and kept.

What is kept is named after all that it depends on, so that another learning rate is another file and a sweep over
losses finds the one that is there. A lock makes the second of two jobs that start together wait for the first.
"""

import logging
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.pytorch import Trainer
from omegaconf import DictConfig

from segdpo.data import DataModule, Numbers, Pipeline, RecordSource, Splits, SupervisedDataset
from segdpo.models import Segmenter, load_weights, save_weights
from segdpo.recipes.config import build, key_for, plain
from segdpo.recipes.fitting import header_for
from segdpo.training import Progress, SupervisedTask

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Reference:
    """The reference: its network, where its weights are, and the training images it has seen masks of."""

    network: Segmenter
    path: Path
    seen: Numbers
    trained: bool


def make_reference(config: DictConfig, source: RecordSource, splits: Splits) -> Reference:
    """Load the reference that the configuration describes; train it first if it is not there."""
    torch.manual_seed(config.seed)
    network: Segmenter = build(config.model, classes=len(source.classes))
    if config.reference_training.path is not None:
        load_weights(config.reference_training.path, network)
        return Reference(network, Path(config.reference_training.path), np.empty(0, np.uint32), trained=False)
    seen = images_of(splits.train, config.reference_training.images, config.seed)
    path = Path(config.cache) / "references" / f"{reference_key(config, seen)}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):
        trained = not path.exists()
        if trained:
            log.info("Training the reference on %d images (kept as %s).", len(seen), path)
            train_reference(config, network, source, seen)
            save_weights(path, network, header_for(config, source.classes))
        else:
            log.info("The reference is there: %s", path)
    load_weights(path, network)
    return Reference(network, path, seen, trained)


def reference_key(config: DictConfig, seen: Numbers) -> str:
    """Name all that the reference's weights depend on, the versions of the software included."""
    precision = plain(config.trainer).get("precision")
    return key_for(
        config, ("reference_training", "model", "transforms", "seed"), seen=seen.tolist(), precision=precision
    )


def images_of(train: Numbers, images: int | None, seed: int) -> Numbers:
    """Draw the training images whose masks the reference sees; None: all."""
    if images is None:
        return train
    if not 1 <= images <= len(train):
        raise ValueError(
            f"Expected reference_training.images to be from 1 to {len(train)}, the number of training images, "
            f"but got {images}."
        )
    drawn = np.random.default_rng(seed).permutation(train)[:images]
    return np.sort(drawn)


def train_reference(config: DictConfig, network: Segmenter, source: RecordSource, seen: Numbers) -> None:
    """Train the network on one mask an image, as the start says."""
    start = config.reference_training
    task = SupervisedTask(network, build(start.loss), build(start.optimizer), scheduler=build(start.scheduler))
    # On one device, whatever the policy gets: processes of a cluster wait at the lock meanwhile.
    trainer = Trainer(
        max_steps=start.steps,
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
    trainer.fit(task, datamodule=seen_masks(config, source, seen))


def seen_masks(config: DictConfig, source: RecordSource, seen: Numbers) -> DataModule:
    """Return loaders over the seen images alone, with the masks that the start names."""
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

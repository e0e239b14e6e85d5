"""The second stage: preferences between masks, those that the data came with or mined here."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig
from rich.progress import track
from torch import nn

from segdpo.data.mined import Mined
from segdpo.data.record_source import RecordSource, info_of
from segdpo.data.splits import Numbers, Splits
from segdpo.data.subset import Subset
from segdpo.models.weights import load_weights
from segdpo.story.configs import MISSING, Plain, build, plain

log = logging.getLogger(__name__)

WITH_WEIGHTS = "segdpo.pairs.prediction.with_weights"


def with_preferences(
    config: DictConfig, source: RecordSource, splits: Splits, reference: Path
) -> tuple[RecordSource, Splits]:
    """Return the records with preferences, and the splits with the training images that were selected to be judged."""
    network = {"_target_": f"{__name__}.loaded", "network": model_of(config, source), "path": str(reference)}
    selection = build(asking_the_reference(plain(config.selection), network))
    chosen: Sequence[int] = selection(Subset(source, splits.train.tolist()), seed=config.seed)
    judged = np.sort(splits.train[np.asarray(chosen, np.int64)])
    mask_source = build(asking_the_reference(plain(config.pairs), network))
    if mask_source is None:
        return source, replace(splits, train=judged)
    mined = Mined(
        source,
        mask_source,
        build(config.judge),
        build(config.rule),
        seed=config.seed,
        ranking=True,
        background=config.background,
    )
    # Mined at first sight and kept; done here, where there is a bar to watch.
    everything = np.concatenate([judged, splits.val, splits.test]).tolist()
    found = [info_of(mined, index, preferences=True) for index in track(everything, "preferences", transient=True)]
    log.info("Preferences for %d of %d images.", sum(bool(info.pairs) for info in found), len(found))
    return Subset(mined, everything), _renumbered(splits, judged)


def given() -> None:
    """Stand for the preferences that the data came with, where a yaml of conf/pairs names a source of masks."""


def asking_the_reference(node: Plain, network: Plain) -> Plain:
    """Put the reference, as `network` builds it, wherever a source of masks asks a network and names no weights.

    >>> node = {"predict": {"model": {"_target_": WITH_WEIGHTS, "path": MISSING}, "device": "cpu"}}
    >>> asking_the_reference(node, {"_target_": "my.reference"})
    {'predict': {'model': {'_target_': 'my.reference'}, 'device': 'cpu'}}
    """

    def visit(part: Any) -> Any:
        if isinstance(part, list):
            return [visit(one) for one in part]
        if not isinstance(part, dict):
            return part
        if part.get("_target_") == WITH_WEIGHTS and part.get("path") == MISSING:
            return network
        return {key: visit(value) for key, value in part.items()}

    return {key: visit(value) for key, value in node.items()}


def model_of(config: DictConfig, source: RecordSource) -> Plain:
    """Return the model's node with the data's classes filled in."""
    return {**plain(config.model), "classes": len(source.classes)}


def loaded(network: nn.Module, path: str) -> nn.Module:
    """Load the file's weights into the network and return it."""
    load_weights(path, network)
    return network


def _renumbered(splits: Splits, judged: Numbers) -> Splits:
    """Return the splits in the numbers of the mined data set: train, then val, then test."""
    ends = np.cumsum([len(judged), len(splits.val), len(splits.test)])
    train, val, test = np.split(np.arange(ends[-1], dtype=np.uint32), ends[:-1])
    return replace(splits, train=train, val=val, test=test)

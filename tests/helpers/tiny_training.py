"""A tiny network that is not the same in training as in evaluation, records of noise, and a short way to train."""

import warnings
from functools import partial

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from torch import nn

from segdpo import Anchor, PreferenceLoss, Score
from segdpo.data.datamodule import DataModule
from segdpo.data.record import Pair, Record
from segdpo.data.splits import split_by_fraction
from segdpo.data.transforms import Pipeline
from segdpo.losses import anchors, objectives


@pytest.fixture
def network():
    """Convolution, BatchNorm with statistics of its own, dropout, convolution: one channel of logits."""
    torch.manual_seed(3)
    parts = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout2d(0.3), nn.Conv2d(4, 1, 3, padding=1)
    )
    parts.train()(torch.randn(8, 3, 8, 8) * 2 + 1)
    return parts


class Noise:
    """Records of noise; image i has 1 + i % 3 pairs of weights of their own, and a ranking of 3."""

    classes = ("background", "object")

    def __init__(self, count=16, size=8, gold=True):
        self.count, self.size, self.gold = count, size, gold

    def __len__(self):
        return self.count

    def __getitem__(self, i):
        rng = np.random.default_rng(i)
        space = (self.size, self.size)
        masks = rng.integers(0, 2, (4, *space)).astype(np.uint8)
        masks[:, : i % 4, 0] = 255
        pairs = [(0, 1), (2, 1), (0, 3)][: 1 + i % 3]
        return Record(
            id=f"noise{i}",
            image=rng.integers(0, 256, (*space, 3)).astype(np.uint8),
            masks=masks,
            mask_names=("a", "b", "c", "d"),
            pairs=tuple(Pair(*pair, weight=0.5 + (i + k) % 3) for k, pair in enumerate(pairs)),
            ranking=(2, 0, 1),
            gold=rng.integers(0, 2, space).astype(np.uint8) if self.gold else None,
        )


@pytest.fixture
def noise():
    return Noise


@pytest.fixture
def data():
    """Make a data module over noise; the options are DataModule's."""

    def make(source=None, pipeline=None, val=0.25, test=0.0, **options):
        split = partial(split_by_fraction, val=val, test=test)
        given = {"split": split, "batch_size": 4} | options
        return DataModule(source or Noise(), pipeline or Pipeline(), Pipeline(), **given)

    return make


@pytest.fixture
def hinge():
    """dpo on the disagreement, with a hinge anchor on the image."""
    return PreferenceLoss(
        partial(objectives.dpo, beta=3.0),
        {"hinge": Anchor(2.0, partial(anchors.hinge, tau=0.2), Score())},
        score=Score(region="disagreement"),
    )


@pytest.fixture
def dpo():
    return PreferenceLoss(partial(objectives.dpo, beta=3.0), score=Score(region="disagreement"))


@pytest.fixture
def fit():
    """Train and return the trainer; warnings of segdpo are errors here as elsewhere, Lightning's advice is left out."""

    def run(task, datamodule, ckpt_path=None, **options):
        given = {
            "accelerator": "cpu",
            "max_steps": 4,
            "max_epochs": -1,
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "num_sanity_val_steps": 0,
            "log_every_n_steps": 1,
        }
        trainer = Trainer(**(given | options))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="lightning")
            trainer.fit(task, datamodule=datamodule, ckpt_path=ckpt_path, weights_only=True)
        return trainer

    return run


@pytest.fixture
def sgd():
    return partial(torch.optim.SGD, lr=0.1)

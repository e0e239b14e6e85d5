import re
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from segdpo.data.shapes import Shapes
from segdpo.preferences.mining import Recipe, mine_record

ROOT = Path(__file__).parents[2]
CONF = ROOT / "conf"
GROUPS = ("candidates", "judge", "questions", "selection")
YAMLS = [
    (group, path.stem)
    for group in GROUPS
    for path in sorted((CONF / group).glob("*.yaml"))
    if path.stem != "answered"  # for train.py alone: there is nothing to mine
]
# What a user has to say, so that each yaml can be tried without files of weights.
NEEDED = {
    "checkpoints": ["candidates.predicts.early.model.path=null", "candidates.predicts.late.model.path=null"],
    "mc_dropout": ["candidates.model.path=null"],
    ("candidates", "function"): ["candidates.function.path=tests_of_mine_conf.dark_and_bright"],
    ("judge", "function"): ["judge.function.path=tests_of_mine_conf.size"],
    ("judge", "reward_model"): ["judge.model._target_=tests_of_mine_conf.Brightness", "judge.model.path=null"],
    "entropy": ["selection.acquisition.predict.model.path=null"],
    "own_candidates": [
        f"candidates.sources.{name}.predict.model.path=null" for name in ("thresholds", "tta", "logit_noise")
    ],
    **{
        name: ["candidates.predict.model.path=null"]
        for name in ("thresholds", "class_biases", "tta", "logit_noise", "samples")
    },
}


def dark_and_bright(image, rng):
    return np.stack([image.mean(-1) > level for level in (80, 120, 160)])


def size(image, mask):
    return mask.mean()


class Brightness(torch.nn.Module):
    """A reward model without weights: how bright the image is under the mask."""

    def __init__(self, path, classes):
        super().__init__()

    def forward(self, image, masks, image_index):
        return (image.mean(1)[image_index] * (masks == 1)).mean((1, 2))


@pytest.fixture(autouse=True)
def _importable(monkeypatch):
    monkeypatch.setitem(sys.modules, "tests_of_mine_conf", sys.modules[__name__])


def composed(*overrides):
    with initialize_config_dir(str(CONF), version_base=None):
        return compose("mine", list(overrides))


@pytest.mark.parametrize(("group", "name"), YAMLS)
def test_every_yaml_works(group, name):
    needed = NEEDED.get((group, name), NEEDED.get(name, []))
    torch.manual_seed(0)  # the networks are untrained
    config = composed(f"{group}={name}", "data.count=3", *needed)
    recipe = Recipe(instantiate(config.candidates), instantiate(config.judge), instantiate(config.questions))
    assert sorted(instantiate(config.selection)(Shapes(3), seed=0)) == [0, 1, 2]
    record = Shapes(3)[0]
    outcome = mine_record(record, recipe)
    assert outcome.diversity
    if outcome.record is None:  # an untrained network may see the same everywhere
        assert outcome.reason in ("all candidates are the same", "no pair passes the rule")
        assert group == "candidates"
    else:
        assert outcome.record.masks.max() < 4
        assert all(pair.chosen != pair.rejected and 0 < pair.weight <= 1 for pair in outcome.record.pairs)


@pytest.mark.parametrize(
    "path",
    [CONF / "mine.yaml", *sorted((CONF / "predictor").glob("*.yaml"))]
    + [CONF / group / f"{name}.yaml" for group, name in YAMLS],
    ids=lambda path: path.stem,
)
def test_the_command_in_each_yaml_composes(path):
    lines = path.read_text().splitlines()
    assert lines[0].startswith("# ")
    comment = " ".join(line.removeprefix("#").strip() for line in lines if line.startswith("#")).replace("\\", "")
    commands = re.findall(r"python scripts/mine\.py ((?:\S*=\S+ ?)+)", comment)
    assert commands
    for command in commands:
        composed(*shlex.split(command))

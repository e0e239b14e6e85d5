import json
import re
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from rich.console import Console

from segdpo.data.shapes import Shapes
from segdpo.models.weights import save_weights
from segdpo.preferences.mining import Mining, mine_record
from segdpo.preferences.network import asks_network, with_network
from segdpo.recipes.mine import network_to_ask

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
    "part": ["selection.number=0", "selection.parts=1"],
    "checkpoints": ["candidates.weights.early=WEIGHTS", "candidates.weights.late=WEIGHTS"],
    ("candidates", "function"): ["candidates.function.path=tests_of_mine_conf.dark_and_bright"],
    ("judge", "function"): ["judge.function.path=tests_of_mine_conf.size"],
    ("judge", "reward_model"): ["judge.model._target_=tests_of_mine_conf.Brightness", "judge.model.path=null"],
}
ASKS_NETWORK = ("thresholds", "class_biases", "tta", "logit_noise", "samples", "mc_dropout", "own_candidates")


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


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A small FPN, which has dropout, as train.py writes it."""
    torch.manual_seed(0)
    model = {"_target_": "segdpo.models.smp_model", "architecture": "fpn", "encoder_name": "resnet18", "classes": 2}
    network = instantiate(model)
    description = {"model": model, "classes": ["background", "object"], "mean": [0.5], "std": [0.25]}
    path = tmp_path_factory.mktemp("weights") / "fpn.safetensors"
    save_weights(path, network, {"config": json.dumps(description)})
    return path


def composed(*overrides):
    with initialize_config_dir(str(CONF), version_base=None):
        return compose("mine", list(overrides))


@pytest.mark.parametrize(("group", "name"), YAMLS)
def test_every_yaml_works(group, name, weights):
    needed = [one.replace("WEIGHTS", str(weights)) for one in NEEDED.get((group, name), NEEDED.get(name, []))]
    config = composed(f"{group}={name}", "data.count=3", f"model.weights={weights}", *needed)
    candidates, selection = instantiate(config.candidates), instantiate(config.selection)
    network = network_to_ask(config, Shapes(3), Console(quiet=True))
    assert asks_network(candidates) == (name in ASKS_NETWORK)
    assert asks_network(selection) == (name == "entropy")
    mining = Mining(with_network(candidates, network), instantiate(config.judge), instantiate(config.questions))
    assert sorted(with_network(selection, network)(Shapes(3), seed=0)) == [0, 1, 2]
    record = Shapes(3)[0]
    outcome = mine_record(record, mining)
    assert outcome.diversity
    if outcome.record is None:  # an untrained network may see the same everywhere
        assert outcome.reason in ("all candidates are the same", "no pair to ask about")
        assert group == "candidates"
    else:
        assert outcome.record.masks.max() < 4
        assert all(pair.chosen != pair.rejected and 0 < pair.weight <= 1 for pair in outcome.record.pairs)


@pytest.mark.parametrize(
    "path",
    [CONF / "mine.yaml", *sorted((CONF / "engine").glob("*.yaml"))]
    + [CONF / group / f"{name}.yaml" for group, name in YAMLS],
    ids=lambda path: path.stem,
)
def test_the_command_in_each_yaml_composes(path):
    lines = path.read_text().splitlines()
    assert lines[0].startswith("# ")
    comment = " ".join(line.removeprefix("#").strip() for line in lines if line.startswith("#")).replace("\\", "")
    commands = re.findall(r"segdpo mine ((?:\S*=\S+ ?)+)", comment)
    assert commands
    for command in commands:
        composed(*shlex.split(command))


def test_the_commands_of_the_page_on_clusters_compose():
    commands = re.findall(r"^segdpo mine (.*)$", (ROOT / "docs/howto/clusters.md").read_text(), re.MULTILINE)
    engines = [composed(*shlex.split(command)).engine for command in commands]
    assert [engine.init.address for engine in engines] == ["auto", "auto", "local"]

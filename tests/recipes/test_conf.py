"""Every command that a comment of conf/ shows for segdpo train composes, and all that it names can be built."""

import re
import shlex

import pytest
from hydra.utils import get_object
from small import CONF, composed

from segdpo.recipes.config import check_at_start, plain

SHOWN = re.compile(r"^#\s+(?:srun )?segdpo train(.*?)(?:\s{2,}.*)?$")


def shown_commands():
    for path in sorted(CONF.rglob("*.yaml")):
        for line in path.read_text().splitlines():
            if found := SHOWN.match(line):
                yield pytest.param(found[1], id=f"{path.relative_to(CONF)}:{found[1].strip()}"[:80])


def first_choice(word):
    """Of a sweep, the first job: a=1,2 → a=1."""
    key, _, value = word.partition("=")
    return word if value.startswith(("[", "{", "'")) else f"{key}={value.split(',')[0]}"


@pytest.mark.parametrize("command", shown_commands())
def test_a_shown_command_composes(command, tmp_path):
    words = [w for w in shlex.split(command, comments=True) if w not in ("-m", "--help")]
    overrides = [first_choice(word) if "=" in word else word for word in words]
    overrides = [word for word in overrides if not word.startswith("hydra.")]
    known = {"my_package.MyNet": "torch.nn.Conv2d"}
    overrides = [word.replace(old, new) for word in overrides for old, new in known.items()]
    if "cluster=ray" in overrides:
        pytest.importorskip("hydra_plugins.hydra_ray_launcher")
    if "cluster=slurm" in overrides:
        pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    config = composed(*overrides, folder=tmp_path)
    check_at_start(config)
    for target in targets(plain(config)):
        get_object(target)


def targets(content):
    if isinstance(content, dict):
        yield from [content["_target_"]] if "_target_" in content and content["_target_"] != "???" else []
        content = list(content.values())
    for part in content if isinstance(content, list) else []:
        yield from targets(part)


def test_every_group_of_the_design_is_there():
    groups = {path.parent.name for path in CONF.rglob("*.yaml")}
    named = "task loss score model adapter reference data candidates trainer logger callbacks experiment hparams_search"
    assert set(named.split()) <= groups

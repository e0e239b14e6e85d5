import importlib.util
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from rich.console import Console

from segdpo.data.folder import read_folder
from segdpo.data.mining import Recipe, mine_record
from segdpo.data.pack import PackDataset
from segdpo.data.shapes import Shapes

ROOT = Path(__file__).parents[2]
CONF = ROOT / "conf"
SCRIPT = ROOT / "scripts" / "mine_pairs.py"
GROUPS = ("pairs", "judge", "rule", "selection")
YAMLS = [(group, path.stem) for group in GROUPS for path in sorted((CONF / group).glob("*.yaml"))]
# What a user has to say, so that each yaml can be tried without files of weights.
NEEDED = {
    "checkpoints": ["pairs.predicts.early.model.path=null", "pairs.predicts.late.model.path=null"],
    "mc_dropout": ["pairs.model.path=null"],
    ("pairs", "function"): ["pairs.function.path=tests_of_mine_pairs.dark_and_bright"],
    ("judge", "function"): ["judge.function.path=tests_of_mine_pairs.size"],
    "entropy": ["selection.acquisition.predict.model.path=null"],
    **{name: ["pairs.predict.model.path=null"] for name in ("thresholds", "class_biases", "tta", "logit_noise")},
}

specification = importlib.util.spec_from_file_location("mine_pairs", SCRIPT)
mine_pairs = importlib.util.module_from_spec(specification)
specification.loader.exec_module(mine_pairs)


def dark_and_bright(image, rng):
    return np.stack([image.mean(-1) > level for level in (80, 120, 160)])


def size(image, mask):
    return mask.mean()


@pytest.fixture(autouse=True)
def _importable(monkeypatch):
    monkeypatch.setitem(sys.modules, "tests_of_mine_pairs", sys.modules[__name__])


def composed(*overrides):
    with initialize_config_dir(str(CONF), version_base=None):
        return compose("mine", list(overrides))


@pytest.mark.parametrize(("group", "name"), YAMLS)
def test_every_yaml_works(group, name):
    needed = NEEDED.get((group, name), NEEDED.get(name, []))
    config = composed(f"{group}={name}", "data.count=3", *needed)
    recipe = Recipe(instantiate(config.pairs), instantiate(config.judge), instantiate(config.rule))
    assert instantiate(config.selection)(Shapes(3), seed=0) in (
        [0, 1, 2],
        [0, 2, 1],
        [1, 0, 2],
        [1, 2, 0],
        [2, 0, 1],
        [2, 1, 0],
    )
    record = Shapes(3)[0]
    outcome = mine_record(record, recipe)
    assert outcome.diversity
    if outcome.record is None:  # an untrained network may see the same everywhere
        assert outcome.reason in ("all candidates are the same", "no pair passes the rule")
        assert group == "pairs"
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
    commands = re.findall(r"python scripts/mine_pairs\.py ((?:\S*=\S+ ?)+)", comment)
    assert commands
    for command in commands:
        composed(*shlex.split(command))


def test_weights_must_be_named():
    with pytest.raises(Exception, match=r"pairs\.predict\.model\.path"):
        mine_pairs.mine_to_disk(composed("pairs=thresholds"), Console())


SETTINGS = ["data.count=150", "data.size=32", "pairs=mixture", "pairs.count=5", "rule=all_pairs", "rule.min_gap=0.05"]


def content(out):
    files = [path for path in [*out.rglob("*"), out.with_name(f"{out.name}.mining.jsonl")] if path.is_file()]
    return {str(path.relative_to(out.parent)).replace(out.name, "out", 1): path.read_bytes() for path in files}


def started(out):
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(SCRIPT), f"out={out}", *SETTINGS]
    return subprocess.Popen(command, cwd=out.parent, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def lines_of(journal):
    return journal.read_bytes().count(b"\n") if journal.exists() else 0


def test_killed_and_started_again_it_ends_with_the_same_bytes(tmp_path):
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    mine_pairs.mine_to_disk(composed(f"out={straight}", *SETTINGS), Console(quiet=True))
    journal = tmp_path / "killed.mining.jsonl"
    for enough in (5, 90):  # before the first shard is whole, and after
        process = started(killed)
        while lines_of(journal) < enough and process.poll() is None:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    process = started(killed)
    output = process.communicate()[0].decode()
    assert process.returncode == 0, output
    assert content(killed) == content(straight)
    ids = [PackDataset(killed).describe(k).id for k in range(len(PackDataset(killed)))]
    assert len(set(ids)) == len(ids)


def test_a_folder_holds_what_the_pack_holds(tmp_path):
    pack, folder = (
        mine_pairs.mine_to_disk(
            composed(f"out={tmp_path / kind}", f"format={kind}", "data.count=5"), Console(quiet=True)
        )
        for kind in ("pack", "folder")
    )
    assert repr(pack) == repr(folder)  # NaN equals nothing
    assert not (tmp_path / "folder.pack").exists()
    packed, read = PackDataset(tmp_path / "pack"), read_folder(tmp_path / "folder")
    assert len(packed) == len(read) == 5
    for first, second in zip(packed, read, strict=True):
        assert (first.id, first.pairs, first.mask_names, first.meta) == (
            second.id,
            second.pairs,
            second.mask_names,
            second.meta,
        )
        np.testing.assert_array_equal(first.masks, second.masks)
        np.testing.assert_array_equal(first.image, second.image)
    # Once more: nothing is left to do.
    again = mine_pairs.mine_to_disk(
        composed(f"out={tmp_path / 'folder'}", "format=folder", "data.count=5"), Console(quiet=True)
    )
    assert repr(again) == repr(folder)


def test_the_table_of_sources(tmp_path):
    summary = mine_pairs.mine_to_disk(
        composed(f"out={tmp_path / 'a'}", "data.count=5", "pairs=annotators"), Console(quiet=True)
    )
    console = Console(record=True, width=80, quiet=True)
    console.quiet = False
    with open(os.devnull, "w") as nowhere:
        console.file = nowhere
        console.print(mine_pairs.sources_table(summary.sources))
    text = console.export_text()
    for source in ("generous", "polygon", "missed_thin", "merged", "(together)"):
        assert re.search(re.escape(source) + r" +│ +5 │", text), text

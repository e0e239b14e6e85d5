"""From yaml to objects."""

import os

import pytest
import torch
from omegaconf import OmegaConf
from small import STARTED, composed

from segdpo.recipes.config import build, check_at_start, key_of, plain, read_config, stamp_of_files


def test_equal_content_has_one_key_in_any_order():
    assert key_of({"a": 1, "b": [2, 3]}) == key_of({"b": [2, 3], "a": 1})
    assert key_of({"a": 1}) != key_of({"a": 2})


def test_a_changed_file_changes_the_stamp(tmp_path):
    (tmp_path / "masks").mkdir()
    file = tmp_path / "masks" / "a.png"
    file.write_bytes(b"123")
    data = {"root": str(tmp_path), "classes": ["background", "object"]}
    before = stamp_of_files(data)
    assert stamp_of_files(data) == before
    os.utime(file, ns=(1, 1))
    assert stamp_of_files(data) != before


@pytest.mark.parametrize("word", ["mine", "./mine", "mine/masks"])
def test_a_change_is_seen_however_the_path_is_written(word, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine" / "masks").mkdir(parents=True)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / "mine" / "masks" / "linked").symlink_to(elsewhere)
    seen = [stamp_of_files({"root": word})]
    for file in ("mine/masks/a.png", "elsewhere/b.png"):
        (tmp_path / file).write_bytes(b"1")
        seen.append(stamp_of_files({"root": word}))
    assert len(set(seen)) == 3


def test_weights_beside_the_command_are_stamped_and_words_and_the_whole_folder_are_not(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "masks").mkdir()
    before = [stamp_of_files({name: "weights.pt"}) for name in ("path", "any")]
    same = [stamp_of_files(data) for data in ({"gold": "masks"}, {"root": "."}, {"root": ".."})]
    (tmp_path / "weights.pt").write_bytes(b"1")
    (tmp_path / "masks" / "a.png").write_bytes(b"1")
    assert not set(before) & {stamp_of_files({name: "weights.pt"}) for name in ("path", "any")}
    assert same == [stamp_of_files(data) for data in ({"gold": "masks"}, {"root": "."}, {"root": ".."})]


def test_what_no_yaml_can_say_is_bound_as_it_is():
    node = OmegaConf.create({"_target_": "torch.nn.Linear", "in_features": 2, "out_features": "${.in_features}"})
    assert build(node).out_features == 2
    assert build(node, out_features=5).out_features == 5


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("reference_training=checkpoint", r"reference_training\.path"),
        ("candidates=checkpoints", r"candidates\.weights\.early"),
        ("loss.anchors.nll.weight=[1]", "weight"),
        ("optimizer._target_=torch.optim.Adamm", "Adamm"),
        ("score.region=everywhere", "everywhere"),
        ("+loss.anchors.nll.term.tua=1", "tua"),
    ],
)
def test_mistakes_are_found_before_data_is_touched(override, said, tmp_path):
    config = composed(*STARTED, override, folder=tmp_path)
    with pytest.raises(Exception, match=said):
        check_at_start(config)


def test_everything_of_the_default_is_there(tmp_path):
    config = composed(folder=tmp_path)
    check_at_start(config)
    assert isinstance(build(config.optimizer)(torch.nn.Linear(1, 1).parameters()), torch.optim.Optimizer)
    assert plain(config.trainer)["default_root_dir"] == str(tmp_path / "run")


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("+loss.x={_target_: os.system, command: 'true'}", r"'os\.system'"),
        ("+loss.x={_target_: torch.hub.load, repo_or_dir: a}", r"'torch\.hub\.load'"),
        ("+loss.x='${oc.create:{_target_:os.system}}'", r"loss\.x asks 'oc\.create'"),
        ("+loss.x='${oc.decode:\"1\"}'", r"loss\.x asks 'oc\.decode'"),
    ],
)
def test_a_composed_configuration_calls_no_gadget_and_resolves_little(override, said, tmp_path):
    with pytest.raises(ValueError, match=said):
        check_at_start(composed(*STARTED, override, folder=tmp_path))


def test_a_run_configuration_of_many_megabytes_is_refused_unread(tmp_path):
    (tmp_path / "config.yaml").write_bytes(b"a: 1\n" + b"#" * 2**20)
    with pytest.raises(ValueError, match=r"config\.yaml: cannot be read .*at most 1048576 bytes but got 1048581"):
        read_config(tmp_path / "config.yaml")

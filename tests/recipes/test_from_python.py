"""segdpo.train: the run of the command, from Python."""

import logging

import hydra
import pytest
import torch
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import ConfigCompositionException
from small import CONF, SMALL

import segdpo

FAST = [*SMALL, "callbacks=none", "logger=none", "trainer.max_steps=2"]


def state():
    """Return what a run changes in its process, for a comparison."""
    root = logging.getLogger()
    return root.level, list(root.handlers), torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()


@pytest.mark.untraced
def test_two_runs_in_one_process(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own/data").mkdir(parents=True)
    (tmp_path / "own/data/cells.yaml").write_text("defaults: [shapes]\nkeep: true\n")
    before = state()
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):  # a program that uses Hydra itself
        first = segdpo.train(*FAST, **{"hydra.run.dir": "first", "loss": "sft", "freeze": ["network.bias"]})
        second = segdpo.train(*FAST, "data.size=48", config_dir="own", data="cells", **{"hydra.run.dir": "second"})
        assert hydra.compose("train").loss  # still there
    assert not GlobalHydra.instance().is_initialized()
    assert state() == before
    assert (first.folder, second.folder) == (tmp_path / "first", tmp_path / "second")
    assert first.measured["loss"] == "sft"
    assert first.measured["overrides"][-2:] == ["loss=sft", "freeze=[network.bias]"]
    assert (first.folder / "train.log").read_text()
    assert first.table.title == "loss=sft, seed=0"
    mask = second.policy.predict(torch.zeros(40, 30, 3, dtype=torch.uint8).numpy())
    assert (mask.shape, mask.dtype.name) == ((40, 30), "uint8")


@pytest.mark.untraced
def test_mistakes_are_exceptions(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigCompositionException, match=r"optimizer\.rate") as caught:
        segdpo.train("optimizer.rate=1")
    assert any("optimizer has: lr" in note for note in caught.value.__notes__)
    with pytest.raises(ConfigCompositionException, match="hinge_anchor"):
        segdpo.train(loss="hinge")
    with pytest.raises(ValueError, match=r"model\.classes=2"):
        segdpo.train(*FAST, "model.classes=7")
    assert not GlobalHydra.instance().is_initialized()

"""Resuming: what is compared with the checkpoint, what is counted on, and what the logged means cover."""

import sys
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.utilities.exceptions import SIGTERMException
from small import SMALL, composed

from segdpo.models.weights import read_tensors
from segdpo.recipes import run as run_module
from segdpo.recipes.resuming import TrainedOn, check_resumed
from segdpo.recipes.run import Clock, exit_statuses, run_recipe

# A constant rate: a schedule of more steps is another one.
SHORT = [*SMALL, "trainer.max_steps=9", "trainer.log_every_n_steps=4", "callbacks.last.every_n_train_steps=1"]
SHORT += ["callbacks.panels=null", "scheduler=constant"]

pytestmark = pytest.mark.untraced


class Stop(Callback):
    """Raises an error after some steps."""

    def __init__(self, step):
        self.step = step

    def on_train_batch_end(self, trainer, *args):
        if trainer.global_step == self.step:
            raise RuntimeError("stopped")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    run_recipe(composed(*SHORT, folder=folder))
    return folder


@pytest.fixture(scope="module")
def stopped(whole):
    """A run that stopped after the sixth step; its last checkpoint is of that step, the sixth of nine."""
    config = composed(*SHORT, f"cache={whole / 'cache'}", f"run_folder={whole / 'stopped'}")
    with pytest.raises(RuntimeError, match="stopped"):
        run_recipe(config, [Stop(7)])
    return whole / "stopped"


def resumed(run, *words, callbacks=()):
    options = [f"cache={run.parent / 'cache'}", f"run_folder={run}", "resume=last"]
    return run_recipe(composed(*SHORT, *options, *words), callbacks)


def test_another_training_is_refused_and_every_difference_named(stopped):
    words = ["loss=sft", "datamodule.batch_size=3", "optimizer=sgd", "data.seed=5", "reference_training.steps=3"]
    with pytest.raises(ValueError, match="another one") as caught:
        resumed(stopped, *words, "trainer.accumulate_grad_batches=2", "trainer.max_steps=20", "reference=cached")
    said = str(caught.value)
    for found in (
        r"the weights before the first step (",
        r"reference_training.steps (8 → 3)",
        r"the data (",
        r"data.seed (0 → 5)",
        r"datamodule.batch_size (4 → 3)",
        r"loss.objective._target_ ('segdpo.objectives.dpo' → 'segdpo.objectives.sft')",
        r"optimizer._target_ ('torch.optim.AdamW' → 'torch.optim.SGD')",
        r"trainer.accumulate_grad_batches (1 → 2)",
        "resume_force=true",
    ):
        assert found in said, found
    for free in ("max_steps", "reference._target_", "resume", "run_folder"):
        assert f"{free} (" not in said


def test_a_resumed_run_ends_as_an_uninterrupted_one_and_counts_all_seconds(whole, stopped):
    last = stopped / "checkpoints" / "last.ckpt"
    content = torch.load(last, weights_only=True)
    assert content["global_step"] == 6
    # As if the process before had taken long.
    torch.save(content | {"seconds": {"pairs": 1000.0, "policy": 2000.0, "total": 5000.0}}, last)
    summary = resumed(stopped)
    one, other = (read_tensors(folder / "policy.safetensors") for folder in (whole / "run", stopped))
    assert all(torch.equal(one[name], other[name]) for name in one)
    # The row of step 7 is the mean over the pairs of steps 4 to 7, whatever the interruption.
    assert (stopped / "metrics.csv").read_text() == (whole / "run" / "metrics.csv").read_text()
    assert 3000 < summary["frontier"]["seconds"] < 3500
    assert 2000 < summary["seconds"]["policy"] < 2500
    assert 5000 < summary["seconds"]["total"] < 6000


def test_force_goes_on_with_the_new_options_and_a_new_optimiser(stopped, caplog):
    """The checkpoint's learning rate would otherwise replace the new one."""
    words = ["reference_training.steps=3", "optimizer.lr=0", "trainer.max_steps=12", "resume_force=true"]
    before = torch.load(stopped / "checkpoints" / "last.ckpt", weights_only=True)
    with pytest.raises(RuntimeError, match="stopped"):
        resumed(stopped, *words, callbacks=[Stop(11)])
    assert "Resuming from" in caplog.text
    assert "optimizer.lr (0.01 → 0)" in caplog.text
    assert "start anew" in caplog.text
    after = torch.load(stopped / "checkpoints" / "last.ckpt", weights_only=True)
    assert after["global_step"] == 10
    assert after["optimizer_states"][0]["param_groups"][0]["lr"] == 0
    for name, tensor in before["state_dict"].items():
        if name.startswith("policy"):
            torch.testing.assert_close(after["state_dict"][name], tensor, rtol=0, atol=0)


def test_a_checkpoint_of_an_earlier_version_is_resumed_and_that_is_said(caplog):
    now = TrainedOn("a", "b", 1, {})
    assert check_resumed(Path("last.ckpt"), None, now, force=False) == []
    assert "last.ckpt does not say what it was trained on" in caplog.text


@pytest.mark.parametrize(
    ("stop", "status"), [(SIGTERMException(), 143), (SystemExit(1), 1), (SystemExit("why"), "why")]
)
def test_the_exit_status_is_that_of_the_signal(stop, status):
    with pytest.raises(SystemExit) as caught, exit_statuses():
        raise stop
    assert caught.value.code == status


def test_ctrl_c_in_training_has_its_exit_status():
    def stop():
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            sys.exit(1)  # as Lightning does

    with pytest.raises(SystemExit) as caught, exit_statuses():
        stop()
    assert caught.value.code == 130


def test_a_clock_adds_what_earlier_processes_took(monkeypatch):
    now = iter([10.0, 13.0, 18.0, 20.0])
    monkeypatch.setattr(run_module.time, "perf_counter", lambda: next(now))
    clock = Clock()
    clock.lap("pairs")
    clock.resume({"pairs": 100.0, "policy": 50.0, "total": 200.0})
    assert clock.seconds == {"pairs": 103.0, "policy": 50.0}
    assert clock.until_now("policy") == {"pairs": 103.0, "policy": 55.0, "total": 208.0}
    clock.lap("policy")
    assert clock.seconds == {"pairs": 103.0, "policy": 57.0}

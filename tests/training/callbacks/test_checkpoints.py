"""A checkpoint is whole or not there: full disks, Ctrl-C, files that a killed process left."""

import contextlib
import errno
import logging
import os
import signal
import subprocess
from pathlib import Path

import pytest
import torch
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.exceptions import SIGTERMException

from segdpo.training import AtomicCheckpointIO, LastCheckpoint, ResumeHint

CONTENT = {"weights": torch.arange(5000.0), "epoch": 3}


def files(folder):
    return sorted(path.name for path in folder.iterdir())


def break_write(monkeypatch, error):
    """Let writing get as far as the disk, and no further."""

    def fsync(descriptor):
        raise error

    monkeypatch.setattr(os, "fsync", fsync)


def test_what_is_saved_is_loaded(tmp_path):
    path = tmp_path / "checkpoints" / "last.ckpt"
    (tmp_path / "checkpoints").mkdir()
    # Left by a process that was killed while it wrote.
    (tmp_path / "checkpoints" / ".last.ckpt.123-abcd.tmp").write_bytes(b"half")
    AtomicCheckpointIO().save_checkpoint(CONTENT, path)
    loaded = AtomicCheckpointIO().load_checkpoint(path, weights_only=True)
    assert torch.equal(loaded["weights"], CONTENT["weights"])
    assert loaded["epoch"] == 3
    assert files(path.parent) == ["last.ckpt"]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_the_old_checkpoint_stays_whole(tmp_path, monkeypatch, error):
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint(CONTENT, path)
    before = path.read_bytes()
    break_write(monkeypatch, error)
    with pytest.raises(type(error)) as caught:
        AtomicCheckpointIO().save_checkpoint({"weights": torch.zeros(9)}, path)
    assert path.read_bytes() == before
    assert files(tmp_path) == ["last.ckpt"]
    if isinstance(error, OSError):
        assert caught.value.errno == errno.ENOSPC
        assert "the disk is full" in str(caught.value)


@pytest.fixture
def small_disk(tmp_path):
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip("only root may mount a small tmpfs")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_disk_that_is_really_full(small_disk):
    AtomicCheckpointIO().save_checkpoint(CONTENT, small_disk / "last.ckpt")
    before = (small_disk / "last.ckpt").read_bytes()
    with pytest.raises(OSError, match=r"last\.ckpt but the disk is full.*free 0\.[0-9] MB"):
        AtomicCheckpointIO().save_checkpoint({"weights": torch.arange(40_000.0)}, small_disk / "last.ckpt")
    assert (small_disk / "last.ckpt").read_bytes() == before
    assert files(small_disk) == ["last.ckpt"]


def checkpoints(folder):
    return LastCheckpoint(folder / "checkpoints", every_n_train_steps=2)


def interrupt():
    raise KeyboardInterrupt


def test_ctrl_c_names_the_checkpoint_and_a_resumed_run_ends_alike(fit, scripted, tmp_path, caplog):
    options = {"plugins": [AtomicCheckpointIO()], "enable_checkpointing": True}
    stopped = scripted()
    stopped.at_step[5] = interrupt
    with caplog.at_level(logging.WARNING), pytest.raises(SystemExit):
        fit(stopped, callbacks=[checkpoints(tmp_path), ResumeHint()], **options)
    last = tmp_path / "checkpoints" / "last.ckpt"
    (message,) = [record.getMessage() for record in caplog.records if record.name.startswith("segdpo")]
    assert message.startswith("Stopped by Ctrl-C after step 5. ")
    assert f"hydra.run.dir={tmp_path} resume={last}" in message
    assert torch.load(last, weights_only=True)["global_step"] == 4
    resumed = scripted()
    fit(resumed, callbacks=[checkpoints(tmp_path), ResumeHint()], ckpt_path=str(last), **options)
    assert resumed.weights == [-5.0, -6.0, -7.0, -8.0]
    assert files(last.parent) == ["last.ckpt"]


class Rows(Logger):
    """Keeps what is logged at which step."""

    name, version = "rows", ""

    def __init__(self):
        super().__init__()
        self.rows = []

    def log_hyperparams(self, *args, **options):
        """Nothing."""

    def log_metrics(self, metrics, step):
        self.rows.append((step, metrics))


@pytest.mark.parametrize("stop", ["step 1", "step 3", "validation"])
def test_sigterm_stops_after_the_checkpoint_of_the_step(fit, scripted, tmp_path, stop):
    """Four steps an epoch; a validation that is due or running ends first, and a resumed run does not repeat it."""

    def terminate():
        os.kill(os.getpid(), signal.SIGTERM)

    class InValidation(Callback):
        def on_validation_start(self, trainer, pl_module):
            terminate()

    options = {"plugins": [AtomicCheckpointIO()], "enable_checkpointing": True, "max_steps": 7}
    whole, rows = scripted(ious=[0.5, 0.6]), [Rows(), Rows(), Rows()]
    fit(whole, callbacks=[LastCheckpoint(tmp_path / "whole", 100)], logger=rows[0], **options)
    stopped, more = scripted(ious=[0.5, 0.6]), [InValidation()] if stop == "validation" else []
    if not more:
        stopped.at_step[int(stop[-1])] = terminate
    with pytest.raises(SIGTERMException):
        fit(stopped, callbacks=[LastCheckpoint(tmp_path / "cut", 100), *more], logger=rows[1], **options)
    last = tmp_path / "cut" / "last.ckpt"
    assert torch.load(last, weights_only=True)["global_step"] == (2 if stop == "step 1" else 4)
    resumed = scripted(ious=[0.5, 0.6])
    fit(resumed, callbacks=[LastCheckpoint(tmp_path / "cut", 100)], ckpt_path=str(last), logger=rows[2], **options)
    assert stopped.weights + resumed.weights == whole.weights
    assert rows[1].rows + rows[2].rows == rows[0].rows


def test_a_slurm_job_is_requeued_with_a_checkpoint_and_another_one_follows_sigterm(
    fit, scripted, tmp_path, monkeypatch
):
    scontrol = tmp_path / "bin" / "scontrol"
    scontrol.parent.mkdir()
    scontrol.write_text(f'#!/bin/sh\necho "$@" > {tmp_path / "asked"}\n')
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", f"{scontrol.parent}:{os.environ['PATH']}")
    for name, value in {"NTASKS": "1", "JOB_ID": "17", "JOB_NAME": "x", "PROCID": "0", "LOCALID": "0"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    task, options = scripted(), {"plugins": [AtomicCheckpointIO(), SLURMEnvironment()], "enable_checkpointing": True}
    task.at_step[2] = lambda: os.kill(os.getpid(), signal.SIGUSR1)
    task.at_step[5] = lambda: os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(SIGTERMException):
        fit(task, callbacks=[checkpoints(tmp_path)], **options)
    assert (tmp_path / "asked").read_text() == "requeue 17\n"
    assert torch.load(tmp_path / "hpc_ckpt_1.ckpt", weights_only=True)["global_step"] == 2
    assert torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 6


def test_a_full_disk_ends_training_with_a_message(fit, scripted, tmp_path, caplog, monkeypatch):
    task = scripted()
    task.at_step[3] = lambda: break_write(monkeypatch, OSError(errno.ENOSPC, "No space left on device"))
    options = {"plugins": [AtomicCheckpointIO()], "enable_checkpointing": True}
    with caplog.at_level(logging.WARNING), pytest.raises(OSError, match="disk is full"):
        fit(task, callbacks=[checkpoints(tmp_path), ResumeHint()], **options)
    assert "Stopped by the system after step 4. " in caplog.text
    assert f"resume={tmp_path}/checkpoints/last.ckpt" in caplog.text
    assert torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 2
    assert files(tmp_path / "checkpoints") == ["last.ckpt"]


def test_without_a_checkpoint_the_hint_says_so(fit, scripted, caplog, tmp_path):
    task = scripted()
    task.at_step[0] = interrupt
    # Weights alone are not enough to resume.
    best = ModelCheckpoint(dirpath=tmp_path, monitor="val/iou", save_weights_only=True)
    with caplog.at_level(logging.WARNING), contextlib.suppress(SystemExit):
        fit(task, callbacks=[best, ResumeHint()], enable_checkpointing=True)
    assert "No checkpoint" in caplog.text


def test_an_error_of_the_run_gets_no_hint(fit, scripted, caplog):
    task = scripted()

    def fail():
        raise ValueError("the batch is wrong")

    task.at_step[1] = fail
    with pytest.raises(ValueError, match="the batch is wrong"):
        fit(task, callbacks=[ResumeHint()])
    assert "Stopped" not in caplog.text
    assert not Path("checkpoints").exists()


def test_accumulated_gradients_are_not_cut_in_two(fit, scripted, tmp_path, monkeypatch):
    saved = []
    monkeypatch.setattr("lightning.pytorch.Trainer.save_checkpoint", lambda self, path: saved.append(self.global_step))
    fit(scripted(), callbacks=[checkpoints(tmp_path)], accumulate_grad_batches=3, batches=12, enable_checkpointing=True)
    # Steps 4 and 8 end their epochs and are saved after validation; each step once, not once a batch.
    assert saved == [2, 4, 6, 8]


def test_an_interval_of_0_steps_is_refused(tmp_path):
    with pytest.raises(ValueError, match="1 or more steps but got 0"):
        LastCheckpoint(tmp_path, every_n_train_steps=0)

"""A run killed by SIGKILL goes on to the weights of one that was never stopped, bit for bit."""

import os
import signal
import subprocess
import time

import pytest
import torch
from small import ROOT, command

from segdpo.models.weights import read_tensors

LONG = ["trainer.max_steps=40", "callbacks.last.every_n_train_steps=1", "hold_statistics=false"]
# A network with dropout and BatchNorm, so that random numbers and statistics have to go on too.
RESTLESS = ["model.network_factory._target_=small_network.Restless", "~model.network_factory.in_channels"]
RESTLESS += ["~model.network_factory.kernel_size", "~model.network_factory.padding"]


def start(folder, *overrides):
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests" / "story")])
    return subprocess.Popen(
        command(folder, *LONG, *RESTLESS, *overrides),
        cwd=folder.parent,
        env=os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process):
    _, said = process.communicate(timeout=200)
    assert process.returncode == 0, said[-2000:]


@pytest.mark.timeout(280)
def test_killed_and_started_again_it_ends_with_the_same_weights(tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    finish(start(whole))
    killed = start(cut)
    last = cut / "checkpoints" / "last.ckpt"
    while killed.poll() is None and not last.exists():
        time.sleep(0.05)
    time.sleep(0.3)
    os.kill(killed.pid, signal.SIGKILL)
    killed.communicate()
    assert not (cut / "policy.safetensors").exists(), "the run ended before it could be killed; make it longer"
    # Whatever the moment, the last checkpoint is a whole one.
    assert 0 < torch.load(last, weights_only=True)["global_step"] < 40
    finish(start(cut, "ckpt_path=last"))
    ended = [read_tensors(folder / "policy.safetensors") for folder in (whole, cut)]
    assert ended[0].keys() == ended[1].keys()
    for name, tensor in ended[0].items():
        assert torch.equal(tensor, ended[1][name]), name

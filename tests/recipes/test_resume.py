"""A run killed by SIGKILL resumes to the weights of one that was never stopped, bit for bit."""

import os
import signal
import time

import pytest
import torch
from small import words_for
from warm import Warm

from segdpo.models.weights import read_tensors

LONG = ["trainer.max_steps=40", "callbacks.last.every_n_train_steps=1", "hold_statistics=false"]
# A network with dropout and BatchNorm, so that random numbers and statistics have to go on too.
RESTLESS = ["model.network_factory._target_=small_network.Restless", "~model.network_factory.in_channels"]
RESTLESS += ["~model.network_factory.kernel_size", "~model.network_factory.padding"]


def start(folder, *overrides):
    return Warm(words_for(folder, *LONG, *RESTLESS, *overrides), folder.parent)


@pytest.mark.timeout(280)
def test_killed_and_started_again_it_ends_with_the_same_weights(tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    start(whole).finish()
    killed = start(cut).process
    last = cut / "checkpoints" / "last.ckpt"
    while killed.is_alive() and not last.exists():
        time.sleep(0.05)
    time.sleep(0.3)
    os.kill(killed.pid, signal.SIGKILL)
    killed.join()
    assert not (cut / "policy.safetensors").exists(), "the run ended before it could be killed; make it longer"
    # Whatever the moment, the last checkpoint is a whole one.
    assert 0 < torch.load(last, weights_only=True)["global_step"] < 40
    start(cut, "resume=last").finish()
    ended = [read_tensors(folder / "policy.safetensors") for folder in (whole, cut)]
    assert ended[0].keys() == ended[1].keys()
    for name, tensor in ended[0].items():
        assert torch.equal(tensor, ended[1][name]), name

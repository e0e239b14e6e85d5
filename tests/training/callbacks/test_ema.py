"""Lightning's moving average does what conf/callbacks/ema.yaml says of it: by hand, in checkpoints, after a resume."""

import pytest
import torch

from segdpo.training import AtomicCheckpointIO

AVERAGE = ("+callbacks=[last,ema]", "callbacks.ema.decay=0.5")
# The weight is −1, −2, …; the average takes the first as it is, then half of itself and half of the new one.
AVERAGES = {1: -1.0, 2: -1.5, 3: -2.25, 4: -3.125, 5: -4.0625, 6: -5.03125}


def test_the_average_is_validated_kept_and_left_at_the_end(fit, scripted, build, tmp_path):
    task = scripted()
    fit(
        task,
        callbacks=build(*AVERAGE, "callbacks.last.every_n_train_steps=3"),
        max_steps=6,
        batches=2,
        enable_checkpointing=True,
    )
    assert task.weights == [-1, -2, -3, -4, -5, -6]
    assert task.seen_in_validation == pytest.approx(AVERAGES[6])
    assert task.weight.item() == pytest.approx(AVERAGES[6])
    kept = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert kept["state_dict"]["weight"].item() == pytest.approx(AVERAGES[6])
    assert kept["current_model_state"]["weight"].item() == -6


def test_a_resumed_average_goes_on(fit, scripted, build, tmp_path):
    options = {"batches": 6, "enable_checkpointing": True, "plugins": [AtomicCheckpointIO()]}
    fit(scripted(), callbacks=build(*AVERAGE, "callbacks.last.every_n_train_steps=4"), max_steps=4, **options)
    resumed = scripted()
    last = str(tmp_path / "checkpoints" / "last.ckpt")
    fit(
        resumed,
        callbacks=build(*AVERAGE, "callbacks.last.every_n_train_steps=4"),
        max_steps=6,
        ckpt_path=last,
        **options,
    )
    assert resumed.weights == [-5, -6]
    assert resumed.weight.item() == pytest.approx(AVERAGES[6])

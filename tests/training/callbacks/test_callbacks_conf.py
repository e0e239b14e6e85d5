"""The yamls of conf/callbacks/ do what they say when they are put together."""

import pytest
import torch

from segdpo.training import AtomicCheckpointIO


def names(callbacks):
    return [type(callback).__name__ for callback in callbacks]


def test_names_are_put_together(build):
    everything = ["Progress", "ModelCheckpoint", "LastCheckpoint", "ResumeHint", "Displacement", "Panels"]
    assert names(build("+callbacks=default")) == everything
    assert names(build("+callbacks=default", "callbacks.panels=null")) == everything[:-1]
    more = build("+callbacks=[default,ema,early_stopping]")
    assert names(more) == [*everything, "EMAWeightAveraging", "EarlyStopping"]
    assert build("+callbacks=none") == []


@pytest.mark.parametrize("ious", [(0.3, 0.6, 0.5, 0.4), (0.3, 0.2, 0.1, 0.4)])
def test_best_is_the_best_and_last_is_the_last(fit, scripted, build, tmp_path, ious):
    callbacks = build("+callbacks=[best,last]", "callbacks.last.every_n_train_steps=3")
    fit(scripted(ious=ious), callbacks=callbacks, max_steps=8, batches=2, enable_checkpointing=True)
    stored = tmp_path / "checkpoints"
    assert sorted(path.name for path in stored.iterdir()) == ["best.ckpt", "last.ckpt"]
    best = torch.load(stored / "best.ckpt", weights_only=True)
    assert best["epoch"] == ious.index(max(ious))
    assert best["state_dict"]["weight"].item() == -2 * (best["epoch"] + 1)
    assert "optimizer_states" not in best
    last = torch.load(stored / "last.ckpt", weights_only=True)
    assert (last["global_step"], last["state_dict"]["weight"].item()) == (8, -8)  # each third step, and the last one


@pytest.mark.parametrize("every", [3, 4])
def test_best_outlives_a_resume(fit, scripted, build, tmp_path, every):
    overrides = ("+callbacks=[best,last]", f"callbacks.last.every_n_train_steps={every}")
    options = {"batches": 2, "enable_checkpointing": True, "plugins": [AtomicCheckpointIO()]}
    # With 4, the last checkpoint is of the end of the best epoch: it has to know of its validation.
    ious = (0.3, 0.6, 0.5, 0.4)
    fit(scripted(ious=ious), callbacks=build(*overrides), max_steps=6, **options)
    last = str(tmp_path / "checkpoints" / "last.ckpt")
    fit(scripted(ious=ious), callbacks=build(*overrides), max_steps=8, ckpt_path=last, **options)
    assert torch.load(tmp_path / "checkpoints" / "best.ckpt", weights_only=True)["epoch"] == 1


def test_training_stops_when_validation_has_not_got_better(fit, scripted, build):
    stopping = build("+callbacks=early_stopping", "callbacks.early_stopping.patience=2")
    # Best at validation 1; two that are no better follow.
    trainer = fit(scripted(ious=(0.3, 0.6, 0.5, 0.6, 0.9)), callbacks=stopping, max_steps=20, batches=2)
    assert trainer.global_step == 2 * 4

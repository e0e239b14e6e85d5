"""task=preference and task=supervised from the first image to summary.json, at a size for tests."""

import json

import numpy as np
import pytest
import torch
from small import SMALL, STARTED, composed

from segdpo.inference.open import open_segmenter
from segdpo.models.weights import read_tensors
from segdpo.recipes.config import build
from segdpo.recipes.reference import draw_images, train_or_load_reference
from segdpo.recipes.run import open_run, run_recipe


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("preference")
    torch.set_num_threads(1)
    return run_recipe(composed(*SMALL, folder=folder)), folder


def test_summary_says_what_was_measured(finished):
    summary, folder = finished
    assert json.loads((folder / "run" / "summary.json").read_text())["policy"] == summary["policy"]
    for network in ("reference", "policy"):
        for name in ("iou", "dice"):
            value = summary[network][name]
            assert value["low"] <= value["mean"] <= value["high"]
    difference = summary["difference"]["iou"]
    assert difference["mean"] == pytest.approx(summary["policy"]["iou"]["mean"] - summary["reference"]["iou"]["mean"])
    assert difference["n"] == 6
    assert summary["pairs"]["test"] == 6
    assert set(summary["seconds"]) == {"reference", "pairs", "policy", "comparison", "total"}


def test_run_folder_has_all_that_people_look_for(finished):
    folder = finished[1] / "run"
    for name in ("summary.json", "config.yaml", "metrics.csv", "curves.png", "panel.png", "policy.safetensors"):
        assert (folder / name).stat().st_size > 0, name
    assert (folder / "checkpoints" / "last.ckpt").exists()


def test_the_measured_policy_is_the_saved_one(finished):
    """IoU worked out again in NumPy from the saved weights."""
    summary, folder = finished
    network, description = open_segmenter(folder / "run")
    assert description["classes"] == ["background", "object"]
    config = composed(*SMALL, folder=folder)
    run = open_run(config)
    pipeline = build(config.transforms)["eval"]
    values = []
    for number in run.splits.test:
        record = run.source[int(number)]
        view = pipeline(record.image, record.gold[None], np.random.default_rng(0))
        with torch.no_grad():
            predicted = network(torch.from_numpy(view.image)[None])[0, 0].numpy() > 0
        gold = view.masks[0] == 1
        values.append((predicted & gold).sum() / (predicted | gold).sum())
    assert summary["policy"]["iou"]["mean"] == pytest.approx(np.mean(values), abs=1e-6)


def test_a_second_run_finds_the_reference_and_ends_the_same(finished, tmp_path):
    summary, folder = finished
    again = run_recipe(composed(*SMALL, f"cache={folder / 'cache'}", f"run_folder={tmp_path}"))
    assert again["policy"] == summary["policy"]
    files = [read_tensors(place / "policy.safetensors") for place in (folder / "run", tmp_path)]
    assert all(torch.equal(files[0][name], files[1][name]) for name in files[0])
    assert len(list((folder / "cache" / "references").glob("*.safetensors"))) == 1


def test_a_finished_run_made_longer_ends_as_one_that_was_long_from_the_start(finished, tmp_path):
    # Not with a schedule that falls to 0 at the last step: a longer one falls more slowly from its beginning.
    usual = [*SMALL, f"cache={finished[1] / 'cache'}", "scheduler=constant", "logger=none", "callbacks.panels=null"]
    longer = [*usual, "trainer.max_steps=11"]
    run_recipe(composed(*usual, f"run_folder={tmp_path / 'grown'}"))
    run_recipe(composed(*longer, f"run_folder={tmp_path / 'grown'}", "resume=last"))
    run_recipe(composed(*longer, f"run_folder={tmp_path / 'long'}"))
    grown, long = (read_tensors(tmp_path / name / "policy.safetensors") for name in ("grown", "long"))
    assert all(torch.equal(grown[name], long[name]) for name in long)


def test_another_configuration_is_another_reference(finished):
    folder = finished[1]
    config = composed(*SMALL, "reference_training.steps=3", folder=folder)
    run = open_run(config)
    assert train_or_load_reference(run).trained
    assert not train_or_load_reference(run).trained


def test_few_masks_leave_the_others_to_be_judged(tmp_path):
    few = [
        "reference_training=few_masks",
        "reference_training.images=5",
        "candidates=logit_noise",
        "candidates.amplitude=5",
    ]
    summary = run_recipe(composed(*SMALL, *few, "logger=none", folder=tmp_path))
    assert summary["pairs"]["train"] == 24 - 4 - 6 - 5


def test_images_are_drawn_from_the_training_split():
    train = np.array([3, 5, 8, 13, 21], np.uint32)
    drawn = draw_images(train, 3, seed=1)
    assert len(set(drawn.tolist())) == 3
    assert set(drawn.tolist()) <= set(train.tolist())
    assert draw_images(train, None, seed=1) is train
    with pytest.raises(ValueError, match=r"reference_training\.images to be from 1 to 5"):
        draw_images(train, 6, seed=1)


def test_classes_that_do_not_match_the_data_stop_at_once(tmp_path):
    with pytest.raises(ValueError, match=r"model\.classes=2 .*background, object.* but got 5"):
        run_recipe(composed(*SMALL, "model.classes=5", folder=tmp_path))


def test_a_missing_checkpoint_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.ckpt"):
        run_recipe(composed(*SMALL, "resume=nowhere.ckpt", folder=tmp_path))


def test_supervised_training(tmp_path):
    summary = run_recipe(composed(*SMALL, "task=supervised", folder=tmp_path))
    assert summary["policy"]["iou"]["n"] == 6
    assert "reference" not in summary
    path = f"reference_training.path={tmp_path}/run/policy.safetensors"
    config = composed(*STARTED, "reference_training=checkpoint", path, folder=tmp_path / "following")
    following = run_recipe(config)
    assert following["reference"]["iou"]["mean"] == pytest.approx(summary["policy"]["iou"]["mean"])


@pytest.mark.parametrize(
    "choices",
    [
        ["reference=cached", "datamodule.views=2"],
        ["reference=ema", "beta_schedule=adaptive"],
        ["reference=none", "loss=cpo"],
        ["trainer.precision=bf16-mixed"],
        ["trainer.precision=bf16-true"],
        ["data=shapes_multiclass", "loss=plackett_luce", "datamodule=ranking", "datamodule.items.length=3"],
        ["selection=entropy", "selection.budget=8", "candidates=mixture", "final=best"],
    ],
    ids=str,
)
def test_choices_that_meet_in_a_run(choices, finished, tmp_path):
    own = [f"cache={finished[1] / 'cache'}", f"run_folder={tmp_path}", "trainer.max_steps=3"]
    summary = run_recipe(composed(*SMALL, *choices, *own))
    assert 0 <= summary["policy"]["iou"]["mean"] <= 1
    assert summary["pairs"]["margin"] is not None


def test_preferences_that_the_data_came_with(finished, tmp_path):
    shapes = [option.replace("data.", "data.source.") for option in SMALL]
    config = composed(*shapes, "data=shapes_judged", "questions=answered", "judge=hd95", "logger=none", folder=tmp_path)
    given, (mined, _) = run_recipe(config), finished
    # The same masks and the same judge, wherever it sat.
    assert given["pairs"]["train"] == mined["pairs"]["train"]

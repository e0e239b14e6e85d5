"""The safety rule: by hand, on a policy that collapses, and by simulation of a judge that answers at random."""

import csv
import logging
import math

import numpy as np
import pytest
import torch
from small import SMALL, composed

from segdpo.models.weights import read_tensors
from segdpo.recipes.keep import HeldOut
from segdpo.recipes.run import run_recipe

GUARDED = [*(word for word in SMALL if not word.startswith("keep")), "callbacks=[best]", "logger=csv"]
# Ten validation images, and a learning rate at which plain DPO moves far from the reference and back.
COLLAPSING = [
    "scheduler=constant",
    *GUARDED,
    *("loss=dpo", "optimizer.lr=0.05", "trainer.max_steps=40", "datamodule.batch_size=5"),
    *("data.count=40", "datamodule.split.val=0.25", "reference_training.steps=40", "optimise=val/pairs/iou_gain"),
]


def held_out(chosen, margin, groups=None):
    names = [f"image {number}" for number in range(len(chosen))]
    gains = {"chosen_iou": np.asarray(chosen, float), "iou_margin": np.asarray(margin, float)}
    return HeldOut(gains, np.ones(len(chosen)), names, groups or names)


@pytest.fixture(scope="module")
def collapsed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("collapsed")
    torch.set_num_threads(1)
    return folder / "run", run_recipe(composed(*COLLAPSING, folder=folder))


@pytest.mark.untraced
def test_a_policy_that_collapsed_is_not_kept(collapsed):
    folder, summary = collapsed
    assert summary["difference"]["iou"]["mean"] < -0.1
    assert summary["pairs"]["margin"] > 1
    # The margin in IoU alone would keep it: the reference is more like the rejected masks.
    assert summary["held_out"]["iou_margin"]["bound"] > 0
    assert summary["held_out"]["chosen_iou"]["bound"] < 0
    assert summary["kept"] == {"rule": "safe", "network": "reference"}
    kept, reference, trained = (
        read_tensors(folder / f"{name}.safetensors") for name in ("policy", "reference", "trained_policy")
    )
    assert all(torch.equal(kept[name], reference[name]) for name in kept)
    assert not all(torch.equal(kept[name], trained[name]) for name in kept)


@pytest.mark.untraced
def test_the_monitor_picks_a_checkpoint_that_has_not_collapsed(collapsed):
    rows = [row for row in csv.DictReader((collapsed[0] / "metrics.csv").open()) if row["val/iou"]]
    best = max(rows, key=lambda row: float(row["val/pairs/iou_gain"]))
    ious = [float(row["val/iou"]) for row in rows]
    assert float(best["val/iou"]) == max(ious) > ious[-1] + 0.1


def test_the_margin_has_to_be_shown_and_the_chosen_masks_not_lost():
    up, down = np.array([0.02, 0.03, 0.01, 0.02, 0.04, 0.02]), np.array([-0.02, -0.03, -0.01, -0.02, -0.04, -0.02])
    assert held_out(up, up).shows_a_gain
    assert not held_out(up, down).shows_a_gain
    # Mean −.0233, standard error .00422, t 2.015: at least −.0318, and with 2.5 times as much −.0796.
    assert held_out(down, up).intervals["chosen_iou"].bound == pytest.approx(-0.0318, abs=1e-4)
    assert held_out(down, up).shows_a_gain
    assert not held_out(2.5 * down, up).shows_a_gain
    assert not held_out([0.0] * 6, [0.0] * 6).shows_a_gain


def test_few_images_show_nothing_and_judgements_of_one_patient_count_once():
    up = [0.02, 0.03, 0.01, 0.02]
    assert not held_out(up, up).shows_a_gain
    assert math.isnan(held_out(up, up).intervals["iou_margin"].bound)
    assert held_out(up * 2, up * 2).shows_a_gain
    assert not held_out(up * 2, up * 2, groups=["a", "b", "c", "d"] * 2).shows_a_gain
    assert held_out([], []).summary()["judgements"] == 0


def test_a_judge_that_answers_at_random_is_seldom_believed():
    """Whatever the policy predicts, a coin gives the margin either sign: at most about one in twenty is kept."""
    rng = np.random.default_rng(0)
    kept = 0
    for _ in range(400):
        size, sign = np.abs(rng.normal(0.05, 0.03, 30)), rng.choice([-1, 1], 30)
        kept += held_out(np.full(30, 0.02) + rng.normal(0, 0.01, 30), size * sign).shows_a_gain
    assert kept / 400 < 0.08


def test_too_few_judgements_are_said_before_training(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        summary = run_recipe(composed(*GUARDED, "trainer.max_steps=2", "logger=none", folder=tmp_path))
    assert any("4 validation images" in record.message and "keep=always" in record.message for record in caplog.records)
    assert summary["kept"]["network"] == "reference"


def test_an_unknown_rule_is_refused(tmp_path):
    with pytest.raises(ValueError, match="keep to be one of safe, always but got 'sometimes'"):
        run_recipe(composed(*GUARDED, "keep=sometimes", folder=tmp_path))

"""task=best_of: what it says of K masks against all subsets of them, and what it refuses."""

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
import torch
from small import SMALL, composed
from toy_records import record as toy

from segdpo.metrics.preferences import best_of_kl_bound
from segdpo.recipes.best_of import checked_sizes, draw_all, overlaps_of, single_mask_judge
from segdpo.recipes.compare import evaluated_network
from segdpo.recipes.frontier import View
from segdpo.recipes.reference import train_or_load_reference
from segdpo.recipes.run import open_run, run_recipe

SHORT = [*SMALL, "callbacks=none", "logger=none", "task=best_of", "best_of.samples=5", "best_of.k=[4,1,2]"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("best_of")
    config = composed(*SHORT, folder=folder)
    summary = run_recipe(config)
    run = open_run(composed(*SHORT, "judge=dice", folder=folder))
    network = evaluated_network(run, train_or_load_reference(run).network)
    return summary, draw_all(run, network, single_mask_judge(run.config), run.splits.test), folder


def test_every_size_is_the_mean_over_subsets(finished):
    summary, drawn, _ = finished
    points = summary["frontier"]["points"]
    assert [point["k"] for point in points] == [1, 2, 4]
    for point in points:
        # The same masks here judged by Dice, which orders masks of one class as IoU does.
        subsets = list(combinations(range(5), point["k"]))
        chosen = [[max(subset, key=lambda k: one.rewards[k]) for subset in subsets] for one in drawn]
        iou = np.mean([one.overlaps["iou"][picked].mean() for one, picked in zip(drawn, chosen, strict=True)])
        assert point["iou"]["mean"] == pytest.approx(iou, abs=1e-6)
        assert point["reward"]["mean"] == pytest.approx(iou, abs=1e-6)
        assert point["kl"]["mean"] == best_of_kl_bound(point["k"])


def test_masks_that_rightly_are_empty_are_right_beside_invented_ones(finished):
    run = open_run(composed(*SHORT, folder=finished[2]))
    record = toy(size=(8, 8))
    view = View(replace(record, gold=np.zeros((8, 8), np.uint8)), torch.zeros(1), torch.ones(1, 8, 8, dtype=torch.bool))
    masks = np.zeros((3, 8, 8), np.uint8)
    assert np.isnan(overlaps_of(run, view, masks)["iou"]).all()
    masks[1, 2:4] = 1
    assert overlaps_of(run, view, masks)["iou"].tolist() == [1, 0, 1]
    assert overlaps_of(run, view, masks)["dice"].tolist() == [1, 0, 1]


def test_the_summary_is_that_of_the_largest(finished):
    summary, drawn, folder = finished
    last = summary["frontier"]["points"][-1]
    assert summary["policy"]["iou"] == last["iou"]
    assert summary["frontier"]["reward"] == last["reward"]
    assert summary["loss"] == "best_of"
    # Under these names Hydra's choices would stand there as words, which no table can read.
    assert {name for name in ("reference", "pairs") if not isinstance(summary[name], dict)} == set()
    assert summary["metric"] == last["iou"]["mean"]
    plain = np.mean([one.greedy_overlaps["iou"] for one in drawn])
    assert summary["reference"]["iou"]["mean"] == pytest.approx(plain)
    assert summary["frontier"]["reference"]["reward"]["mean"] == pytest.approx(plain)
    sampled = np.mean([one.overlaps["iou"].mean() for one in drawn])
    assert summary["frontier"]["reference"]["reward_sampled"]["mean"] == pytest.approx(sampled, abs=1e-6)
    assert not (folder / "run" / "policy.safetensors").exists()


def test_masks_are_judged_by_the_judge_of_the_configuration(finished):
    """Dice = 2 IoU/(1 + IoU)."""
    for one in finished[1]:
        iou = one.overlaps["iou"]
        np.testing.assert_allclose(one.rewards, 2 * iou / (1 + iou), atol=1e-6)


@pytest.mark.parametrize("sizes", [[], [0], [1, 6]])
def test_sizes_that_cannot_be_are_named(sizes):
    with pytest.raises(ValueError, match=r"best_of\.k from 1 to best_of\.samples=5"):
        checked_sizes(sizes, 5)


@pytest.mark.parametrize(
    ("choice", "message"),
    [("judge=agreement", "a judge of single masks"), ("datamodule.split.test=0", "test images for task=best_of")],
)
def test_what_nothing_can_be_chosen_by_is_refused(choice, message, finished, tmp_path):
    with pytest.raises(ValueError, match=message):
        run_recipe(composed(*SHORT, choice, f"run_folder={tmp_path}", f"cache={finished[2] / 'cache'}"))

"""task=reward at a size for tests: 90 % of held-out pairs, its summary against NumPy, and the model as a judge."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats
from small import CONVOLUTION, STARTING, composed
from toy_records import record as toy

from segdpo.data.record import Pair
from segdpo.data.splits import Splits
from segdpo.models.reward_model import load_reward_model
from segdpo.models.weights import read_header
from segdpo.preferences import judges
from segdpo.preferences.mining import Mined
from segdpo.recipes.collect import Preferences
from segdpo.recipes.config import build
from segdpo.recipes.reward import make_model, scores_of
from segdpo.recipes.run import open_run, run_recipe

SHORT = [
    "task=reward",
    "reward_model.encoder_depth=2",
    "reward_test.attack.images=4",
    "reward_test.attack.steps=8",
    "data.count=60",
    "data.size=32",
    "trainer.max_steps=40",
    "trainer.accelerator=cpu",
    "optimizer.lr=1e-3",
    "callbacks=none",
    "logger=none",
    "threads=1",
]
NONE = np.empty(0, np.uint32)
CLEAR = [
    "candidates=corruptions",
    "candidates.count=4",
    "questions=all_pairs",
    "questions.min_gap=0.2",
    "candidates@reward_test.other=existing",
]


def run_with(folder, *choices):
    return run_recipe(composed(*SHORT, *choices, folder=folder))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reward")
    return folder, run_with(folder, *CLEAR)


def test_held_out_pairs_with_a_clear_gap(trained):
    _, summary = trained
    assert summary["reward_test"]["accuracy"]["mean"] >= 0.9
    assert summary["metric"] >= 0.9
    assert summary["pairs"]["accuracy"] == summary["reward_test"]["accuracy"]["mean"]


@torch.no_grad()
def test_the_summary_is_what_the_file_gives(trained):
    """Accuracy, calibration and rank correlations from the weights alone, mask by mask, in NumPy."""
    folder, summary = trained
    config = composed(*SHORT, *CLEAR, folder=folder)
    run = open_run(config)
    model = load_reward_model(folder / "run" / "reward_model.safetensors", classes=2)
    views = build(config.transforms)["eval"]
    mined = Mined(run.source, build(config.candidates), build(config.judge), build(config.questions), seed=0)
    rng = np.random.default_rng(0)

    def rewards(record, masks):
        seen = views(record.image, masks, rng)
        image = torch.from_numpy(seen.image)[None]
        return np.array([model(image, torch.from_numpy(mask[None])).item() for mask in seen.masks])

    shares, ahead, correlations = [], [], []
    for number in run.splits.test.tolist():
        record = mined[number]
        given = rewards(record, record.masks)
        margins = np.array([given[pair.chosen] - given[pair.rejected] for pair in record.pairs])
        shares += [(margins > 0).mean()] if len(margins) else []
        ahead += margins.tolist()
        own = run.source[number]
        quality = judges.iou(own, own.masks, rng)
        correlations.append(stats.kendalltau(quality, rewards(own, own.masks)).statistic)
    found = summary["reward_test"]
    # A pair of its own for each two different masks.
    masks = [len(mined[number].meta["scores"].split()) for number in run.splits.train.tolist()]
    assert summary["pairs"]["judgements"] == sum(count * (count - 1) // 2 for count in masks)
    assert found["pairs"] == len(ahead)
    assert found["accuracy"]["mean"] == pytest.approx(np.mean(shares), abs=1e-6)
    chance = 1 / (1 + np.exp(-np.array(ahead)))
    assert found["brier"] == pytest.approx(((1 - chance) ** 2).mean(), abs=1e-5)
    sure, right = np.maximum(chance, 1 - chance), chance > 0.5
    bins = np.minimum((sure * 15).astype(int), 14)
    gaps = [abs(right[bins == b].mean() - sure[bins == b].mean()) * (bins == b).mean() for b in np.unique(bins)]
    assert found["ece"] == pytest.approx(sum(gaps), abs=1e-4)
    assert found["other"]["kendall"]["mean"] == pytest.approx(np.nanmean(correlations), abs=1e-6)
    assert found["other"]["kendall"]["n"] + found["other"]["without"] == len(run.splits.test)


def test_the_attack_climbs_and_is_written_down(trained):
    folder, summary = trained
    attack = summary["reward_test"]["attack"]
    rows = list(csv.DictReader((folder / "run" / "attack.csv").open()))
    assert len(rows) == 4 * 9
    assert (folder / "run" / "attack.png").stat().st_size > 1000
    soft, reward, iou = (
        np.array([float(row[column]) for row in rows]).reshape(9, 4) for column in ("soft_reward", "reward", "iou")
    )
    assert (soft[-1] > soft[0] + 0.5).all(), "the gradient is not followed"
    assert attack["reward"]["start"]["mean"] == pytest.approx(reward[0].mean(), rel=1e-4)
    assert attack["iou"]["end"]["mean"] == pytest.approx(iou[-1].mean(), rel=1e-4)
    assert attack["iou"]["best"] == pytest.approx(iou.mean(1).max(), rel=1e-4)
    assert attack["iou"]["best_step"] == iou.mean(1).argmax()


def test_it_judges_in_the_place_of_gold(trained, tmp_path):
    """A policy trained on its preferences; and the header says what the weights are of."""
    folder, _ = trained
    path = folder / "run" / "reward_model.safetensors"
    assert json.loads(read_header(path)["reward_model"])["settings"]["encoder_depth"] == 2
    small = ["data.count=24", "data.size=32", "trainer.max_steps=2", "trainer.accelerator=cpu", "threads=1"]
    judge = ["judge=reward_model", f"judge.model.path={path}", "callbacks=none", "logger=none", *CONVOLUTION, *STARTING]
    summary = run_recipe(composed(*small, *judge, folder=tmp_path))
    assert summary["pairs"]["train"] > 0
    assert np.isfinite(summary["policy"]["iou"]["mean"])


@pytest.mark.parametrize(
    "choices",
    [
        ["datamodule=ranking", "reward_loss=plackett_luce", "reward_model=dense"],
        [
            "candidates=tta",
            "reference_training.steps=2",
            "reward_loss.margin_per_gap=2",
            "final=best",
            "callbacks=reward",
        ],
        ["data=shapes_multiclass", "reward_test.attack.images=0", "reward_test.other.start=nobody"],
    ],
    ids=lambda choices: choices[0],
)
def test_other_choices(choices, tmp_path):
    tiny = ["data.count=24", "trainer.max_steps=2", "datamodule.split.val=0.17", "datamodule.split.test=0.25"]
    depth = ["~reward_model.encoder_depth", "+reward_model.encoder_depth=3"] if "reward_model=dense" in choices else []
    summary = run_with(tmp_path, *tiny, *choices, *depth)
    assert summary["reward_test"]["pairs"] > 0
    assert summary["metric"] is not None
    other = summary["reward_test"]["other"]
    assert other["kendall"]["n"] + other["without"] + other["left_out"] == 6
    # No record has a mask of that name.
    assert (other["left_out"] == 6) is ("reward_test.other.start=nobody" in choices)
    assert ("attack" in summary["reward_test"]) is ("reward_test.attack.images=0" not in choices)


def test_what_does_not_fit_is_said(tmp_path):
    config = composed(*SHORT, "reward_model.classes=4", folder=tmp_path)
    with pytest.raises(ValueError, match=r"reward_model\.classes=2 for the classes of the data .* but got 4"):
        make_model(config, ("background", "object"))
    with pytest.raises(ValueError, match="rounds=1 for task=reward"):
        run_with(tmp_path, "rounds=2")
    given = [replace(toy(), pairs=(Pair(0, 1),))]
    splits = Splits(np.array([0], np.uint32), NONE, NONE, (1, 0, 0))
    with pytest.raises(ValueError, match=r"judge's scores of record .* preferences came without"):
        scores_of(Preferences(given, splits, splits.train))

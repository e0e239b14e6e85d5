"""Sweeps of several seeds over folds: runs with images, written by hand."""

import csv
import json

import numpy as np
import pytest
import yaml
from scipy import stats

from segdpo.reports import read_sweep

# Policy − reference of each image, [fold][seed][image].
CHANGES = [[[0.1, 0.3], [0.3, 0.1]], [[0.0, 0.2], [0.2, 0.4]], [[0.5, 0.3], [0.3, 0.1]]]


def write(folder, words, changes, fold):
    (folder / ".hydra").mkdir(parents=True)
    (folder / ".hydra/overrides.yaml").write_text(yaml.safe_dump(words))
    (folder / "evaluation").mkdir()
    lines = [f"image-{fold}-{number},{0.5 + change!r},0.5" for number, change in enumerate(changes)]
    (folder / "evaluation/images.csv").write_text("\n".join(["id,policy_iou,reference_iou", *lines, ""]))
    mean, wins = float(np.mean(changes)), float(np.mean([1.0 if change > 0 else 0.5 for change in changes]))
    summary = {
        "seed": dict(word.split("=") for word in words)["seed"],
        "reference": {"iou": {"mean": 0.5}},
        "policy": {"iou": {"mean": 0.5 + mean}},
        "difference": {"iou": {"mean": mean}, "win_rate": {"rate": wins}},
    }
    (folder / "summary.json").write_text(json.dumps(summary))


@pytest.fixture
def sweep(tmp_path):
    for loss, more in (("dpo", 0.0), ("sft", 0.05)):
        for fold, seeds in enumerate(CHANGES):
            for seed, changes in enumerate(seeds):
                words = [f"loss={loss}", f"seed={seed}", f"datamodule.split.fold={fold}"]
                shifted = [change + more * (1 + fold) for change in changes]
                write(tmp_path / f"{loss}{fold}{seed}", words, shifted, fold)
    return tmp_path


def test_several_seeds_over_folds_are_one_row_with_an_interval_over_folds(sweep):
    groups = {group.name: group for group in read_sweep(sweep).groups}
    assert set(groups) == {"dpo", "sft"}
    found = groups["dpo"].interval("difference")
    folds = np.array(CHANGES).mean((1, 2))
    low, high = stats.ttest_1samp(folds, 0).confidence_interval()
    np.testing.assert_allclose((found.mean, found.low, found.high, found.n), (folds.mean(), low, high, 3))


def test_beside_it_is_the_interval_over_all_images(sweep):
    table = read_sweep(sweep)
    assert "over images" in table.markdown().splitlines()[0]
    rows = list(csv.DictReader(table.csv().splitlines()))
    row = next(row for row in rows if (row["run"], row["seed"]) == ("dpo", "all"))
    assert float(row["over images mean"]) == pytest.approx(np.mean(CHANGES))
    assert row["over images n"] == "6"
    # Folds of one size: as over folds.
    assert float(row["over images low"]) == pytest.approx(float(row["difference low"]))
    assert 0 <= float(row["win rate low"]) <= float(row["win rate high"]) <= 1


def test_rows_are_compared_fold_by_fold(sweep):
    table = read_sweep(sweep, against="dpo")
    place = [group.name for group in table.groups].index("sft")
    found = table.comparisons[0].intervals[place]
    expected = stats.ttest_1samp([0.05, 0.1, 0.15], 0).confidence_interval()
    np.testing.assert_allclose((found.mean, found.low, found.high, found.n), (0.1, *expected, 3))


def test_without_images_the_option_names_the_fold_and_a_win_rate_is_cut(sweep):
    for path in sweep.rglob("images.csv"):
        path.unlink()
    groups = {group.name: group for group in read_sweep(sweep).groups}
    assert groups["dpo"].interval("difference").n == 3
    rate = groups["dpo"].interval("win rate")
    assert rate.high == 1.0
    assert rate.low > 0
    assert "over images" not in read_sweep(sweep).markdown()

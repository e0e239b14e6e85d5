"""The scripts and train.py, run as a user runs them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def run(*arguments, **options):
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, **options)


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep")
    done = run("train.py", "-m", "loss=sft,dpo", "seed=0,1", "steps=3", "threads=1", f"hydra.sweep.dir={folder}")
    assert done.returncode == 0, done.stderr
    return folder


def test_a_sweep_of_two_losses_and_two_seeds_is_four_runs(sweep):
    runs = [json.loads(path.read_text()) for path in sweep.rglob("summary.json")]
    assert sorted((run["loss"], run["seed"]) for run in runs) == [("dpo", 0), ("dpo", 1), ("sft", 0), ("sft", 1)]
    assert all(0 <= run["policy"]["iou"] <= 1 for run in runs)


def test_the_sweep_becomes_one_table(sweep):
    rows = run("scripts/collect_sweep.py", sweep).stdout.splitlines()
    assert len(rows) == 4
    assert {row.split("|")[1].strip() for row in rows[2:]} == {"`dpo`", "`sft`"}
    assert all(row.split("|")[7].strip() == "2" for row in rows[2:])


def test_a_folder_without_runs_is_named(tmp_path):
    done = run("scripts/collect_sweep.py", tmp_path)
    assert done.returncode == 2
    assert f"runs with a summary.json under {tmp_path} but found none" in done.stderr


def test_the_picture_is_drawn(tmp_path):
    done = run("scripts/draw_displacement.py", tmp_path / "picture.svg")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "picture.svg").read_text() == (ROOT / "docs" / "displacement.svg").read_text()


def test_a_misspelt_loss_lists_what_there_is():
    done = run("train.py", "loss=hinge")
    assert done.returncode != 0
    assert "hinge_anchor" in done.stderr


def test_a_misspelt_hyperparameter_is_found_before_anything_runs():
    done = run("train.py", "loss=dpo", "+loss.objective.betta=1")
    assert done.returncode != 0
    assert "dpo has no hyperparameter 'betta'" in done.stderr
    assert "IoU" not in done.stdout

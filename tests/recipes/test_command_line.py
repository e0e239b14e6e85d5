"""train.py as people call it: sweeps, several processes, Ctrl-C, mistakes in words."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from small import ROOT, SMALL, command, words_for
from warm import Warm

# For the processes that a run starts itself.
PATH = {"PYTHONPATH": str(ROOT)}
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", **PATH}


def test_a_sweep_of_two_losses_and_two_seeds_is_four_runs_and_one_table(tmp_path):
    words = [sys.executable, str(ROOT / "train.py"), "-m", *SMALL, "reference_training.steps=2", "trainer.max_steps=2"]
    words += [
        f"hydra.sweep.dir={tmp_path / 'sweep'}",
        f"cache={tmp_path / 'cache'}",
        "callbacks=none",
        "logger=none",
        "loss=dpo,hinge_anchor",
        "seed=0,1",
    ]
    # Not a Warm one, which would wait for joblib's workers at its end.
    done = subprocess.run(words, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    summaries = [json.loads(path.read_text()) for path in (tmp_path / "sweep").glob("*/summary.json")]
    assert {(s["loss"], s["seed"]) for s in summaries} == {
        (loss, seed) for loss in ("dpo", "hinge_anchor") for seed in (0, 1)
    }
    # Two jobs of one seed start together, and one reference serves both.
    assert len(list((tmp_path / "cache" / "references").glob("*.safetensors"))) == 2
    said = Warm([str(tmp_path / "sweep")], tmp_path, script="scripts/collect.py").finish()
    rows = [line.split("|") for line in said.splitlines() if line.startswith("|")]
    assert len(rows) == 4
    assert all(row[7].strip() == "2" for row in rows[2:])


def test_two_processes_end_as_one(tmp_path):
    words = words_for(tmp_path / "run", "trainer=ddp", "trainer.devices=2", "datamodule.batch_size=2")
    Warm(words, tmp_path, PATH).finish()
    Warm(words_for(tmp_path / "alone", "datamodule.batch_size=4"), tmp_path).finish()
    together, one = (json.loads((tmp_path / name / "summary.json").read_text()) for name in ("run", "alone"))
    assert together["policy"]["iou"]["mean"] == pytest.approx(one["policy"]["iou"]["mean"], abs=2e-3)
    for name in ("margin", "chosen_gain"):
        assert together["pairs"][name] == pytest.approx(one["pairs"][name], abs=1e-4)


def test_ctrl_c_names_the_checkpoint_to_resume_from(tmp_path):
    folder = tmp_path / "run"
    words = command(folder, "trainer.max_steps=5000", "callbacks.last.every_n_train_steps=1", "callbacks.panels=null")
    running = subprocess.Popen(
        words,
        cwd=tmp_path,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # Tests that run in the background of a shell inherit that Ctrl-C is ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    last = folder / "checkpoints" / "last.ckpt"
    while running.poll() is None and not last.exists():
        time.sleep(0.05)
    time.sleep(0.5)
    running.send_signal(signal.SIGINT)
    said, _ = running.communicate(timeout=180)
    assert running.returncode == 130
    assert f"resume={last}" in said
    assert not list(folder.rglob("*.tmp"))


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("loss=hinge", "hinge_anchor"),  # the choices are listed
        ("optimizer.learning_rate=1", "optimizer has: lr, weight_decay"),
        ("+loss.objective.betta=1", "dpo has no hyperparameter 'betta'"),
        ("model.classes=7", "Expected model.classes=2"),
        ("reference_training.images=900", "reference_training.images to be from 1 to"),
    ],
)
def test_mistakes_end_in_a_message(override, said, tmp_path):
    output = Warm(words_for(tmp_path / "run", override), tmp_path).finish(status=1)
    assert said in output
    assert "Traceback" not in output


def test_training_on_masks_alone_ends_with_its_table(tmp_path):
    """Without pairs and reference, Hydra's choices of both once stood where the table looks for figures."""
    said = Warm(words_for(tmp_path / "run", "task=supervised"), tmp_path).finish()
    assert "IoU" in said
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert "reference" not in summary

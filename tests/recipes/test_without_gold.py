"""Runs on data without gold, or with gold of a few images: what picks checkpoints, and what can be said at the end."""

import io
import json
import math

import pytest
from rich.console import Console
from small import SMALL, composed

from segdpo.recipes.monitor import with_monitor
from segdpo.recipes.run import open_run, run_recipe
from segdpo.reports import comparison_table, html_report

UNGOLDED = [
    *(word for word in SMALL if not word.startswith("keep")),
    "data._target_=gold_sources.shapes_with_gold_of",
    "judge=agreement",
    "datamodule.split.val=0.25",
    "logger=csv",
]


def table_of(summary):
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(comparison_table(summary))
    return " ".join(console.export_text().split())


@pytest.fixture(scope="module")
def ungolded(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ungolded")
    words = ["callbacks=[default,early_stopping]", "callbacks.panels.every_n_epochs=1", "final=best"]
    return folder, run_recipe(composed(*UNGOLDED, *words, folder=folder))


def test_held_out_judgements_pick_the_checkpoint(ungolded):
    folder, summary = ungolded
    assert summary["monitor"] == "val/pairs/iou_gain"
    assert math.isfinite(summary["metric"])
    assert (folder / "run/checkpoints/best.ckpt").exists()


def test_what_is_not_known_is_named_and_nothing_is_nan(ungolded):
    folder, summary = ungolded
    assert not {"policy", "reference", "difference"} & summary.keys()
    assert summary["held_out"]["judgements"] == 6
    text = table_of(summary)
    assert "none of 6 test images has gold" in text
    assert "nan" not in text.lower()
    for name in ("policy.safetensors", "curves.png", "panel.png", "panels/epoch_000.png"):
        assert (folder / "run" / name).stat().st_size > 0, name
    assert json.loads((folder / "run/summary.json").read_text())["monitor"] == summary["monitor"]


def test_the_report_of_a_run_says_what_is_known(ungolded):
    page = html_report([ungolded[0] / "run"])
    assert "IoU with gold is not known: none of 6 test images has gold" in page
    assert "IoU gained on held-out judgements" in page
    assert "evaluate.py" not in page.partition("What is missing")[2]
    assert ">nan" not in page.lower()


def test_gold_of_some_test_images_is_used(tmp_path):
    config = composed(*UNGOLDED, "+data.golden=[0,2,4,6,8,10,12,14,16,18,20,22]", folder=tmp_path)
    run = open_run(config)
    golden = len(run.with_gold(run.splits.test))
    summary = run_recipe(config)
    assert 0 < golden < len(run.splits.test)
    assert summary["gold"] == {"images": len(run.splits.test), "with_gold": golden}
    assert summary["difference"]["iou"]["n"] == golden
    # Three of six validation images are too few to pick checkpoints by.
    assert summary["monitor"] == "val/pairs/iou_gain"
    said = f"{golden} of {len(run.splits.test)} test images have gold"
    assert said in table_of(summary)
    assert said in html_report([tmp_path / "run"])


@pytest.mark.parametrize("target", ["chosen", "consensus"])
def test_finetuning_is_monitored_alike(target, tmp_path):
    summary = run_recipe(composed(*UNGOLDED, "task=finetune", f"finetune.target={target}", folder=tmp_path))
    assert math.isfinite(summary["metric"])
    assert summary["monitor"] == "val/pairs/iou_gain"


def test_a_monitor_of_ones_own_is_kept(tmp_path):
    config = composed(*UNGOLDED, "callbacks.best.monitor=val/pairs/accuracy", folder=tmp_path)
    run = open_run(config)
    found = with_monitor(config, len(run.splits.val), 0)
    assert (found.optimise, found.callbacks.best.monitor) == ("val/pairs/iou_gain", "val/pairs/accuracy")
    assert with_monitor(found, len(run.splits.val), 0) is found
    assert config.optimise == "auto"


def test_supervised_training_says_that_nothing_is_known(tmp_path, caplog):
    summary = run_recipe(composed(*UNGOLDED, "task=supervised", folder=tmp_path))
    assert any("None of 6 validation images has gold" in record.message for record in caplog.records)
    assert "none of 6 test images has gold" in table_of(summary)

"""Every experiment runs two steps."""

import os
from pathlib import Path

import pytest
from small import CONF, CONVOLUTION, composed

from segdpo.story.run import run_story

EXPERIMENTS = sorted(path.stem for path in (CONF / "experiment").glob("*.yaml"))
SHORT = [*CONVOLUTION, "start.steps=2", "trainer.max_steps=2", "trainer.accelerator=cpu", "threads=1"]
SHAPES = ["data.count=40", "data.size=32"]


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_two_steps(name, tmp_path):
    chosen = composed(f"experiment={name}", folder=tmp_path)
    own = SHAPES if "shapes" in chosen.data._target_ else []
    root = chosen.data.get("root")
    if root is not None and not Path(root).exists():
        pytest.skip(f"{root} is not here")
    summary = run_story(composed(*SHORT, *own, f"experiment={name}", folder=tmp_path))
    assert summary["difference"]["iou"]["n"] > 0
    assert os.path.exists(tmp_path / "run" / "panel.png")


@pytest.mark.parametrize("name", ["fast", "overfit", "profiler"])
def test_debugging(name, tmp_path):
    config = composed(*CONVOLUTION, *SHAPES, f"debug={name}", "start.steps=2", "threads=1", folder=tmp_path)
    if name != "fast":
        config.trainer.max_steps = 3
    summary = run_story(config)
    assert summary["seconds"]["policy"] > 0
    assert (name == "profiler") == any(tmp_path.rglob("*profile*"))

"""Every example runs, and does what its text says."""

import importlib
import math
from pathlib import Path

import pytest

pytestmark = pytest.mark.untraced
EXAMPLES = Path(__file__).parents[1] / "examples"


def load(name):
    return importlib.import_module(name)


def test_every_example_is_tested_here():
    tested = Path(__file__).read_text()
    assert all(f'load("{path.stem}")' in tested for path in EXAMPLES.glob("*.py"))


def test_plain_pytorch_improves_on_its_reference():
    example = load("plain_pytorch")
    result = example.run(example.default_loss(), steps=60)
    assert result.policy_iou > result.reference_iou + 0.05
    assert result.curves["chosen_gain"][0] == pytest.approx(0.0)  # measured before the first step's update
    assert result.curves["chosen_gain"][-1] > 0


def test_torchvision_deeplab_starts_at_ln_2():
    losses = load("torchvision_deeplab").run(steps=3)
    assert losses[0] == pytest.approx(math.log(2), abs=1e-5)
    assert losses[-1] < losses[0]


def test_monai_3d():
    pytest.importorskip("monai")
    losses = load("monai_3d").run(steps=4)
    assert losses[-1] < losses[0]


def test_own_lightning_improves():
    before, after = load("own_lightning").run(steps=60)
    assert before < 0.5
    assert after > 0.9

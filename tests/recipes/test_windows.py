"""With transforms=crop no network sees a whole image, in training, validation, test and comparison alike."""

from contextlib import contextmanager

import numpy as np
import pytest
import torch
from PIL import Image
from small import SMALL, composed
from torch import nn

from segdpo.recipes.run import run_recipe

CROPS = [
    *(word for word in SMALL if not word.startswith(("data.", "trainer.max_steps", "reference_training.steps"))),
    *("transforms=crop", "transforms.size=16", "trainer.max_steps=1", "reference_training.steps=1"),
]


@contextmanager
def shapes_seen():
    """Collect the shapes of what convolutions receive inside the `with`."""
    seen = set()
    hook = nn.modules.module.register_module_forward_pre_hook(
        lambda module, inputs: seen.add(tuple(inputs[0].shape)) if isinstance(module, nn.Conv2d) else None
    )
    try:
        yield seen
    finally:
        hook.remove()


@pytest.mark.untraced
@pytest.mark.parametrize(
    "task",
    [
        ["task=preference"],
        ["task=finetune", "finetune.target=chosen"],  # another task measures the test pairs
        ["task=supervised"],
        ["task=policy_gradient", "algorithm=grpo"],
    ],
)
def test_no_network_sees_a_whole_image(task, tmp_path):
    torch.set_num_threads(1)
    with shapes_seen() as seen:
        assert run_recipe(composed(*CROPS, *task, "data.count=10", "data.size=32", folder=tmp_path))
    assert max(max(shape[2:]) for shape in seen) == 16


@pytest.mark.untraced
def test_images_of_several_sizes_are_trained_on_in_crops(tmp_path):
    """Also smaller than the crop, and in one batch: the whole path, with candidates of the network and no judge."""
    images, gold = tmp_path / "data" / "images", tmp_path / "data" / "gold"
    images.mkdir(parents=True)
    gold.mkdir()
    rng = np.random.default_rng(0)
    for number in range(12):
        height, width = [(12, 40), (50, 37), (24, 14)][number % 3]
        mask = np.zeros((height, width), np.uint8)
        mask[3:9, 4:12] = 1
        pixels = (mask * 120)[..., None] + rng.integers(0, 100, (height, width, 3), np.uint8)
        Image.fromarray(pixels.astype(np.uint8)).save(images / f"{number:02}.png")
        Image.fromarray(mask).save(gold / f"{number:02}.png")
    own = ["data=plain", f"data.root={tmp_path / 'data'}", "candidates=own_candidates", "judge=agreement"]
    few = ["reference_training=few_masks", "reference_training.images=3"]
    with shapes_seen() as seen:
        summary = run_recipe(composed(*CROPS, *own, *few, "datamodule.batch_size=6", folder=tmp_path))
    assert max(max(shape[2:]) for shape in seen) == 16
    assert 0 <= summary["policy"]["iou"]["mean"] <= 1
    assert summary["held_out"]["images"] > 0

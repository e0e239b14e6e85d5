"""A network asked through the views it knows: what it sees, and where its logits lie in the image."""

import numpy as np
import pytest
import torch
from torch import nn

from segdpo.data.transforms import Pipeline, albumentations
from segdpo.files import DataError
from segdpo.preferences.network import Network


class FirstChannel(nn.Module):
    """Returns the first channel and remembers what it saw."""

    def forward(self, image):
        self.seen = image
        return image[:, :1]


def linear(values: np.ndarray, length: int) -> np.ndarray:
    """Resample the last axis to `length` as bilinear interpolation between pixel centres does."""
    centres = (np.arange(length) + 0.5) * values.shape[-1] / length - 0.5
    return np.stack([np.interp(centres, np.arange(values.shape[-1]), row) for row in values])


def test_a_network_sees_the_view_and_its_logits_come_back_to_the_image():
    blocks = np.random.default_rng(0).integers(0, 256, (4, 4), np.uint8)
    # Halving blocks of 2×2 by linear interpolation gives back the blocks.
    image = np.repeat(blocks.repeat(2, 0).repeat(2, 1)[:, :, None], 3, axis=2)
    model, views = FirstChannel(), Pipeline([albumentations.Resize(4, 4)], mean=[0.0], std=[1.0])
    logits = Network(model, views).predict(image[None])
    np.testing.assert_allclose(model.seen[0, 0], blocks / 255, atol=1e-6)
    expected = linear(linear(blocks / 255, 8).T, 8).T
    np.testing.assert_allclose(logits[0, 0], expected, atol=1e-6)


def test_what_a_view_fills_up_is_cut_off_and_nothing_is_resampled():
    image = np.random.default_rng(1).integers(0, 256, (2, 5, 7, 3), np.uint8)
    padded = albumentations.PadIfNeeded(
        min_height=None, min_width=None, pad_height_divisor=8, pad_width_divisor=8, position="top_left"
    )
    model = FirstChannel()
    logits = Network(model, Pipeline([padded], mean=[0.0], std=[1.0])).predict(image)
    assert model.seen.shape == (2, 3, 8, 8)
    np.testing.assert_allclose(logits[:, 0], image[..., 0] / 255, atol=1e-6)


def test_the_network_is_in_eval_mode_and_keeps_no_graph():
    model = nn.Sequential(nn.Conv2d(3, 1, 1), nn.Dropout(0.9))
    image = np.full((1, 4, 4, 3), 9, np.uint8)
    first, second = (Network(model, Pipeline()).predict(image) for _ in range(2))
    assert (first == second).all()
    assert not model.training
    assert not torch.from_numpy(first).requires_grad


def test_views_that_show_a_part_are_refused():
    views = Pipeline([albumentations.CenterCrop(4, 4)])
    with pytest.raises(DataError, match=r"transforms\.eval: .*cuts"):
        Network(FirstChannel(), views).predict(np.zeros((1, 8, 8, 3), np.uint8))

"""Networks: the images they get, the logits they return, and weights from files."""

import numpy as np
import pytest
import torch
from torch import nn

from segdpo.data.preparation import Preparation
from segdpo.data.transforms import Pipeline, albumentations
from segdpo.files import DataError
from segdpo.preferences.network import Network, masks_of, to_image, to_model_input


def rng(seed=0):
    return np.random.default_rng(seed)


class Channels(nn.Module):
    """Returns the input's own values as logits, and remembers what it was given."""

    def __init__(self, shrink=1):
        super().__init__()
        self.seen, self.shrink = None, shrink
        self.norm = nn.BatchNorm2d(3)

    def forward(self, images):
        self.seen = images
        return images[:, :, :: self.shrink, :: self.shrink]


def test_a_network_normalises_pads_and_crops():
    model = Channels().train()
    images = rng().integers(0, 256, (2, 33, 40, 3), dtype=np.uint8)
    logits = Network(model).predict(images)
    assert not model.training
    assert not model.norm.training
    assert model.seen.shape == (2, 3, 64, 64)
    expected = (images / 255 - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)
    np.testing.assert_allclose(logits, expected.transpose(0, 3, 1, 2), atol=1e-5)
    # Padding repeats the last row and column.
    np.testing.assert_array_equal(model.seen[:, :, 33:, :40], model.seen[:, :, 32:33, :40].expand(-1, -1, 31, -1))


@pytest.mark.parametrize("channels", [1, 3])
def test_a_network_sees_the_numbers_it_was_trained_on(channels):
    image = rng().integers(0, 256, (9, 7, channels), dtype=np.uint8)
    constants = {} if channels == 3 else {"mean": (0.4,), "std": (0.2,)}
    trained_on = Pipeline(**constants)(image, np.zeros((1, 9, 7), np.uint8), rng()).image
    np.testing.assert_array_equal(to_model_input(image, **constants).numpy(), trained_on)
    np.testing.assert_array_equal(to_image(trained_on, **constants), image)


def test_images_and_models_that_do_not_fit():
    with pytest.raises(ValueError, match=r"image of 3 channels.* but got 4; set mean and std"):
        to_model_input(np.zeros((4, 4, 4), np.uint8))
    with pytest.raises(ValueError, match=r"uint8 .* but got float64"):
        to_model_input(np.zeros((4, 4, 3)))
    with pytest.raises(ValueError, match=r"\[1, classes, 32, 32\] but got shape \(1, 3, 16, 16\)"):
        Network(Channels(shrink=2)).predict(np.zeros((1, 32, 32, 3), np.uint8))


class Fixed(nn.Module):
    """Returns the same logits, whatever it is given."""

    def __init__(self, logits):
        super().__init__()
        self.logits = logits

    def forward(self, images):
        return self.logits


@pytest.mark.parametrize(
    ("logits", "message"),
    [
        (torch.zeros(2, 32, 32), r"\[2, classes, 32, 32\] but got shape \(2, 32, 32\)"),
        (torch.zeros(1, 1, 32, 32), r"\[2, classes, 32, 32\] but got shape \(1, 1, 32, 32\)"),
        ({"out": torch.zeros(2, 1, 32, 32)}, "dict"),
        (torch.full((2, 1, 32, 32), torch.nan), "NaN or infinite"),
    ],
)
def test_predictions_that_are_none(logits, message):
    with pytest.raises(ValueError, match=message):
        Network(Fixed(logits)).predict(np.zeros((2, 4, 5, 3), np.uint8))


def test_masks_of_logits():
    binary = np.array([[[[-0.1, 0.1]]]], np.float32)
    assert masks_of(binary).tolist() == [[[0, 1]]]
    several = np.array([[[[0, 1]], [[2, 0]], [[1, 5]]]], np.float32)
    assert masks_of(several).tolist() == [[[1, 2]]]


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
    logits = Network(model, Preparation(views)).predict(image[None])
    np.testing.assert_allclose(model.seen[0, 0], blocks / 255, atol=1e-6)
    expected = linear(linear(blocks / 255, 8).T, 8).T
    np.testing.assert_allclose(logits[0, 0], expected, atol=1e-6)


def test_what_a_view_fills_up_is_cut_off_and_nothing_is_resampled():
    image = np.random.default_rng(1).integers(0, 256, (2, 5, 7, 3), np.uint8)
    padded = albumentations.PadIfNeeded(
        min_height=None, min_width=None, pad_height_divisor=8, pad_width_divisor=8, position="top_left"
    )
    model = FirstChannel()
    logits = Network(model, Preparation(Pipeline([padded], mean=[0.0], std=[1.0]))).predict(image)
    assert model.seen.shape == (2, 3, 8, 8)
    np.testing.assert_allclose(logits[:, 0], image[..., 0] / 255, atol=1e-6)


def test_the_network_is_in_eval_mode_and_keeps_no_graph():
    model = nn.Sequential(nn.Conv2d(3, 1, 1), nn.Dropout(0.9))
    image = np.full((1, 4, 4, 3), 9, np.uint8)
    first, second = (Network(model).predict(image) for _ in range(2))
    assert (first == second).all()
    assert not model.training
    assert not torch.from_numpy(first).requires_grad


def test_views_that_show_a_part_are_refused():
    views = Pipeline([albumentations.CenterCrop(4, 4)])
    with pytest.raises(DataError, match=r"transforms\.eval: .*cuts"):
        Network(FirstChannel(), Preparation(views)).predict(np.zeros((1, 8, 8, 3), np.uint8))


class Ramp(nn.Module):
    """Looks at single pixels, and remembers the sizes that it saw."""

    multiple = 1

    def __init__(self):
        super().__init__()
        self.seen = set()

    def forward(self, images):
        self.seen.add(tuple(images.shape[2:]))
        return 2 * images[:, :1] - 1


@pytest.mark.parametrize(
    ("window", "shape", "seen"),
    [
        (16, (40, 30), (16, 16)),
        (64, (40, 30), (40, 30)),
        (None, (1400, 1400), (1400, 1400)),
        (None, (1500, 1400), (1024, 1024)),
    ],
)
def test_inputs_larger_than_the_window_are_predicted_in_windows(window, shape, seen):
    model, image = Ramp(), rng().integers(0, 256, (1, *shape, 3), dtype=np.uint8)
    found = Network(model, Preparation(Pipeline(mean=[0.0], std=[1.0]), window=window)).predict(image)
    assert model.seen == {seen}
    np.testing.assert_allclose(found[0, 0], image[0, ..., 0] / 127.5 - 1, atol=1e-5)

from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from segdpo.data.record import Candidates, Record
from segdpo.data.transforms import Pipeline
from segdpo.preferences.candidates import checkpoints, class_biases, distinct, existing, from_function, thresholds
from segdpo.preferences.prediction import logits_of, masks_of, predict_with, to_image, to_model_input, with_weights


def record_of(image):
    return Record("a", image, np.zeros((0, *image.shape[:2]), np.uint8), ())


def rng(seed=0):
    return np.random.default_rng(seed)


RAMP = record_of(np.tile(np.arange(0, 256, 5, dtype=np.uint8)[None, :, None], (3, 1, 3)))


def predict_ramp(images):
    """Give a pixel of value v the probability v/255."""
    p = np.clip(images[..., 0] / 255, 1e-6, 1 - 1e-6)
    return np.log(p / (1 - p)).astype(np.float32)[:, None]


def predict_three(images):
    generator = np.random.default_rng(int(images.sum()))
    return generator.normal(size=(len(images), 3, *images.shape[1:3])).astype(np.float32)


def test_thresholds_cut_the_probability():
    found = thresholds(RAMP, rng(), predict=predict_ramp, probabilities=(0.25, 0.5, 0.9))
    assert found.names == ("thresholds-0.25", "thresholds-0.5", "thresholds-0.9")
    for mask, height in zip(found.masks, (0.25, 0.5, 0.9), strict=True):
        np.testing.assert_array_equal(mask, RAMP.image[..., 0] / 255 > height)


def test_thresholds_are_for_binary_models_and_probabilities():
    with pytest.raises(ValueError, match="3 channels; use class_biases"):
        thresholds(RAMP, rng(), predict=predict_three)
    with pytest.raises(ValueError, match="probabilities"):
        thresholds(RAMP, rng(), predict=predict_ramp, probabilities=(0.5, 1.0))


def test_class_biases_start_from_the_prediction_and_favour_classes():
    found = class_biases(RAMP, rng(1), predict=predict_three, count=6, bias=2.0)
    np.testing.assert_array_equal(found.masks[0], predict_three(RAMP.image[None])[0].argmax(0))
    again = class_biases(RAMP, rng(1), predict=predict_three, count=6, bias=2.0)
    np.testing.assert_array_equal(found.masks, again.masks)
    assert len(distinct(found).masks) == 6
    still = class_biases(RAMP, rng(), predict=predict_three, count=4, bias=0.0, temperature=0.0)
    assert len(distinct(still).masks) == 1


def test_class_biases_of_a_binary_model_move_its_threshold():
    # Without temperature, a bias moves one threshold: each mask is the ramp cut at some height.
    found = class_biases(RAMP, rng(), predict=predict_ramp, count=8, bias=1.0, temperature=0.0)
    for mask in found.masks:
        np.testing.assert_array_equal(mask, np.sort(mask, axis=1))
    np.testing.assert_array_equal(found.masks[0], RAMP.image[..., 0] > 127)


def test_checkpoints_are_one_mask_a_model():
    found = checkpoints(RAMP, rng(), predicts={"early": predict_ramp, "late": lambda images: -predict_ramp(images)})
    assert found.names == ("checkpoints-early", "checkpoints-late")
    np.testing.assert_array_equal(found.masks[0], RAMP.image[..., 0] > 127)
    np.testing.assert_array_equal(found.masks[1], RAMP.image[..., 0] <= 127)


def test_any_function_gives_candidates():
    found = from_function(RAMP, rng(), function=lambda image, rng: np.stack([image[..., 0] > 9, image[..., 0] > 99]))
    assert found.masks.dtype == np.uint8
    assert found.masks.sum((1, 2)).tolist() == [3 * 50, 3 * 32]


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        (np.zeros((3, 52)), r"masks \[K, 3, 52\] for record 'a' but got shape \(3, 52\)"),
        (np.full((1, 3, 52), 0.5), "integer class ids .* but got float64"),
        (np.full((1, 3, 52), 256), "from 0 to 254, or 255 for ignore"),
        (np.full((1, 3, 52), -1), "from 0 to 254"),
    ],
)
def test_a_function_that_gives_no_masks(masks, message):
    with pytest.raises(ValueError, match=message):
        from_function(RAMP, rng(), function=lambda image, rng: masks)


def test_existing_masks_by_name():
    masks = np.arange(3, dtype=np.uint8)[:, None, None] * np.ones((3, 2, 2), np.uint8)
    record = Record("a", np.zeros((2, 2, 3), np.uint8), masks, ("crowd1", "expert1", "crowd2"))
    assert existing(record, rng()).names == record.mask_names
    found = existing(record, rng(), start="crowd")
    assert found.names == ("crowd1", "crowd2")
    assert found.masks[:, 0, 0].tolist() == [0, 2]


def test_distinct_keeps_the_first_of_equals():
    masks = np.array([0, 1, 0, 2, 1], np.uint8)[:, None, None] * np.ones((5, 2, 2), np.uint8)
    found = distinct(Candidates(masks, ("a", "b", "c", "d", "e")))
    assert found.names == ("a", "b", "d")
    assert found.masks[:, 0, 0].tolist() == [0, 1, 2]


def test_candidates_must_be_masks_with_names():
    with pytest.raises(ValueError, match="uint8 class ids of shape"):
        Candidates(np.zeros((2, 4, 4), np.int64), ("a", "b"))
    with pytest.raises(ValueError, match="1 names for 2 masks"):
        Candidates(np.zeros((2, 4, 4), np.uint8), ("a",))


class Channels(nn.Module):
    """Returns the input's own values as logits, and remembers what it was given."""

    def __init__(self, shrink=1):
        super().__init__()
        self.seen, self.shrink = None, shrink
        self.norm = nn.BatchNorm2d(3)

    def forward(self, images):
        self.seen = images
        return images[:, :, :: self.shrink, :: self.shrink]


def test_predict_with_normalises_pads_and_crops():
    model = Channels().train()
    images = rng().integers(0, 256, (2, 33, 40, 3), dtype=np.uint8)
    logits = predict_with(model, multiple=32)(images)
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
    with pytest.raises(ValueError, match=r"classes, 32, 32\] but got \(1, 3, 16, 16\); wrap it"):
        predict_with(Channels(shrink=2))(np.zeros((1, 32, 32, 3), np.uint8))


def test_predictions_that_are_none():
    images = np.zeros((2, 4, 5, 3), np.uint8)
    with pytest.raises(ValueError, match=r"\[2, …, 4, 5\] but got shape \(2, 4, 5\)"):
        logits_of(lambda images: np.zeros((2, 4, 5)), images)
    with pytest.raises(ValueError, match="finite logits"):
        logits_of(lambda images: np.full((2, 1, 4, 5), np.nan), images)


def test_masks_of_logits():
    binary = np.array([[[[-0.1, 0.1]]]], np.float32)
    assert masks_of(binary).tolist() == [[[0, 1]]]
    several = np.array([[[[0, 1]], [[2, 0]], [[1, 5]]]], np.float32)
    assert masks_of(several).tolist() == [[[1, 2]]]


def test_weights_from_a_file(tmp_path):
    trained, fresh = nn.Conv2d(3, 1, 1), partial(nn.Conv2d, 3, 1, 1)
    torch.save(trained.state_dict(), tmp_path / "bare.pt")
    lightning = {"state_dict": {f"network.{name}": value for name, value in trained.state_dict().items()} | {"x": 1}}
    torch.save(lightning, tmp_path / "lightning.ckpt")
    for model in (
        with_weights(fresh(), tmp_path / "bare.pt"),
        with_weights(fresh(), tmp_path / "lightning.ckpt", prefix="network."),
    ):
        torch.testing.assert_close(model.weight, trained.weight)
    untouched = fresh()
    assert with_weights(untouched, None) is untouched
    with pytest.raises(RuntimeError, match="Missing key"):
        with_weights(fresh(), tmp_path / "lightning.ckpt", prefix="net.")

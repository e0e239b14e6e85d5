from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from segdpo.data.record import Candidates, Record
from segdpo.data.transforms import Pipeline
from segdpo.preferences.candidates import (
    checkpoints,
    class_biases,
    distinct,
    existing,
    from_function,
    mixture,
    thresholds,
)
from segdpo.preferences.network import (
    Network,
    asks_network,
    masks_of,
    to_image,
    to_model_input,
    with_network,
    with_weights,
)
from segdpo.preferences.selection import disagreement, entropy, everything, most_promising


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


RAMP_NETWORK, THREE_CLASSES = SimpleNamespace(predict=predict_ramp), SimpleNamespace(predict=predict_three)


def test_thresholds_cut_the_probability():
    found = thresholds(RAMP, rng(), network=RAMP_NETWORK, probabilities=(0.25, 0.5, 0.9))
    assert found.names == ("thresholds-0.25", "thresholds-0.5", "thresholds-0.9")
    for mask, height in zip(found.masks, (0.25, 0.5, 0.9), strict=True):
        np.testing.assert_array_equal(mask, RAMP.image[..., 0] / 255 > height)


def test_thresholds_are_for_binary_models_and_probabilities():
    with pytest.raises(ValueError, match="3 channels; use class_biases"):
        thresholds(RAMP, rng(), network=THREE_CLASSES)
    with pytest.raises(ValueError, match="probabilities"):
        thresholds(RAMP, rng(), network=RAMP_NETWORK, probabilities=(0.5, 1.0))


def test_class_biases_start_from_the_prediction_and_favour_classes():
    found = class_biases(RAMP, rng(1), network=THREE_CLASSES, count=6, bias=2.0)
    np.testing.assert_array_equal(found.masks[0], predict_three(RAMP.image[None])[0].argmax(0))
    again = class_biases(RAMP, rng(1), network=THREE_CLASSES, count=6, bias=2.0)
    np.testing.assert_array_equal(found.masks, again.masks)
    assert len(distinct(found).masks) == 6
    still = class_biases(RAMP, rng(), network=THREE_CLASSES, count=4, bias=0.0, temperature=0.0)
    assert len(distinct(still).masks) == 1


def test_class_biases_of_a_binary_model_move_its_threshold():
    # Without temperature, a bias moves one threshold: each mask is the ramp cut at some height.
    found = class_biases(RAMP, rng(), network=RAMP_NETWORK, count=8, bias=1.0, temperature=0.0)
    for mask in found.masks:
        np.testing.assert_array_equal(mask, np.sort(mask, axis=1))
    np.testing.assert_array_equal(found.masks[0], RAMP.image[..., 0] > 127)


def test_checkpoints_are_one_mask_a_model():
    late = SimpleNamespace(predict=lambda images: -predict_ramp(images))
    found = checkpoints(RAMP, rng(), networks={"early": RAMP_NETWORK, "late": late})
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


def test_a_network_normalises_pads_and_crops():
    model = Channels().train()
    images = rng().integers(0, 256, (2, 33, 40, 3), dtype=np.uint8)
    logits = Network(model, multiple=32).predict(images)
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


def own_source(record, rng, *, network):
    return Candidates(masks_of(network.predict(record.image[None])), ("own-0",))


@pytest.mark.parametrize(
    ("function", "asks"),
    [
        (existing, False),
        (partial(existing, start="a"), False),
        (thresholds, True),
        (own_source, True),
        (partial(thresholds, probabilities=(0.5,)), True),
        (partial(thresholds, network=RAMP_NETWORK), False),
        (partial(mixture, sources={"a": existing}, count=2), False),
        (partial(mixture, sources={"a": existing, "b": own_source}, count=2), True),
        (everything, False),
        (partial(most_promising, budget=1, acquisition=partial(entropy)), True),
        (partial(most_promising, budget=1, acquisition=partial(disagreement, mask_source=existing)), False),
        (partial(most_promising, budget=1, acquisition=partial(disagreement, mask_source=own_source)), True),
        (np.add, False),
    ],
)
def test_who_asks_a_network(function, asks):
    assert asks_network(function) == asks


def test_a_network_is_passed_to_those_who_ask_one():
    assert with_network(existing, RAMP_NETWORK) is existing
    given = partial(thresholds, network=RAMP_NETWORK)
    assert with_network(given, THREE_CLASSES) is given
    nested = partial(mixture, sources={"inner": partial(mixture, sources={"own": own_source}, count=1)}, count=1)
    found = with_network(nested, RAMP_NETWORK)(RAMP, rng())
    np.testing.assert_array_equal(found.masks[0], RAMP.image[..., 0] > 127)
    assert found.names == ("inner-0",)
    acquire = partial(disagreement, mask_source=partial(thresholds, probabilities=(0.2, 0.6)))
    select = partial(most_promising, budget=1, acquisition=acquire)
    assert with_network(select, RAMP_NETWORK)([RAMP], seed=0) == [0]
    # Above .2 lie 41 of 52 values of the ramp, above .6 20.
    expected = 1 - (RAMP.image[..., 0] > 0.6 * 255).sum() / (RAMP.image[..., 0] > 0.2 * 255).sum()
    assert with_network(acquire, RAMP_NETWORK)(RAMP, rng()) == pytest.approx(expected)


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

"""Sources of candidates, who is given a network, and mixtures."""

from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.special import expit, softmax
from torch import nn

from segdpo.data import Pipeline, Preparation
from segdpo.data.record import Candidates, Record
from segdpo.preferences.candidates import (
    VIEWS,
    checkpoints,
    class_biases,
    distinct,
    existing,
    from_function,
    logit_noise,
    mc_dropout,
    mixture,
    samples,
    smooth_noise,
    thresholds,
    turned_views,
)
from segdpo.preferences.network import (
    Network,
    asks_network,
    masks_of,
    with_network,
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


def test_thresholds_of_several_classes_weigh_the_background_against_the_likeliest_other_class():
    heights = (0.1, 0.5, 0.8)
    found = thresholds(RAMP, rng(), network=THREE_CLASSES, probabilities=heights)
    p = softmax(predict_three(RAMP.image[None])[0].astype(np.float64), axis=0)
    likeliest = p[1:].max(0)
    for mask, height in zip(found.masks, heights, strict=True):
        expected = np.where(likeliest / (p[0] + likeliest) > height, 1 + p[1:].argmax(0), 0)
        np.testing.assert_array_equal(mask, expected)
    np.testing.assert_array_equal(found.masks[1], p.argmax(0))


def test_thresholds_are_probabilities():
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
        (partial(most_promising, budget=1, acquisition=partial(disagreement, candidates=existing)), False),
        (partial(most_promising, budget=1, acquisition=partial(disagreement, candidates=own_source)), True),
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
    acquire = partial(disagreement, candidates=partial(thresholds, probabilities=(0.2, 0.6)))
    select = partial(most_promising, budget=1, acquisition=acquire)
    assert with_network(select, RAMP_NETWORK)([RAMP], seed=0) == [0]
    # Above .2 lie 41 of 52 values of the ramp, above .6 20.
    expected = 1 - (RAMP.image[..., 0] > 0.6 * 255).sum() / (RAMP.image[..., 0] > 0.2 * 255).sum()
    assert with_network(acquire, RAMP_NETWORK)(RAMP, rng()) == pytest.approx(expected)


IMAGE = np.zeros((24, 24, 3), np.uint8)
BLANK = Record("a", IMAGE, np.zeros((0, 24, 24), np.uint8), ())


def constant(*logits):
    """A network that says the same of every pixel."""
    values = np.array(logits, np.float32)[None, :, None, None]
    return SimpleNamespace(predict=lambda images: np.broadcast_to(values, (1, len(logits), *images.shape[1:3])))


@pytest.mark.parametrize("smoothness", [0.0, 3.0])
@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_every_pixel_has_its_probability(smoothness, temperature):
    drawn = samples(
        BLANK,
        np.random.default_rng(0),
        network=constant(0.8),
        count=400,
        temperature=temperature,
        smoothness=smoothness,
    )
    assert drawn.masks.shape == (400, 24, 24)
    assert drawn.names[-1] == "samples-399"
    of_masks = drawn.masks.reshape(400, -1).mean(1)
    # Masks are independent of each other, whatever their pixels are.
    error = of_masks.std() / np.sqrt(400)
    assert of_masks.mean() == pytest.approx(expit(0.8 / temperature), abs=5 * error)
    alike = (drawn.masks[:, :, 1:] == drawn.masks[:, :, :-1]).mean()
    share = expit(0.8 / temperature)
    apart = share**2 + (1 - share) ** 2
    assert alike > apart + 0.1 if smoothness else abs(alike - apart) < 0.01


def test_several_classes():
    drawn = samples(BLANK, np.random.default_rng(1), network=constant(1.0, 0.0, -1.0), count=100)
    shares = np.bincount(drawn.masks.ravel(), minlength=3) / drawn.masks.size
    np.testing.assert_allclose(shares, softmax([1.0, 0.0, -1.0]), atol=0.01)


def test_the_generator_alone_decides():
    first, again, other = (samples(BLANK, np.random.default_rng(s), network=constant(0.0)).masks for s in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


@pytest.mark.parametrize(("option", "value"), [("count", 0), ("temperature", 0.0), ("smoothness", -1.0)])
def test_options_out_of_range_are_named(option, value):
    with pytest.raises(ValueError, match=option):
        samples(BLANK, np.random.default_rng(0), network=constant(0.0), **{option: value})


def answering(predict):
    return SimpleNamespace(predict=predict)


def noise_record(height=5, width=8):
    image = rng().integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Record("a", image, np.zeros((0, height, width), np.uint8), ())


def network(dropout=True, classes=1):
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, classes, 1)]
    return nn.Sequential(*layers[:3], nn.Dropout2d(0.5), layers[3]) if dropout else nn.Sequential(*layers)


@pytest.mark.parametrize("classes", [1, 3])
def test_mc_dropout_draws_masks_from_the_generator_it_is_given(classes):
    model = network(classes=classes)
    found = mc_dropout(noise_record(), rng(1), network=Network(model), count=6)
    assert found.names[-1] == "mc_dropout-5"
    assert found.masks.shape == (6, 5, 8)
    assert found.masks.max() < max(2, classes)
    assert len(distinct(found).masks) > 1
    torch.rand(3)  # someone else's draw changes nothing
    np.testing.assert_array_equal(
        found.masks, mc_dropout(noise_record(), rng(1), network=Network(model), count=6).masks
    )
    assert (found.masks != mc_dropout(noise_record(), rng(2), network=Network(model), count=6).masks).any()


def test_mc_dropout_leaves_no_trace():
    model = network()
    asked = Network(model)
    model.train()
    model[0].eval()
    modes = [module.training for module in model.modules()]
    seen = []
    model[1].register_forward_hook(lambda module, inputs, output: seen.append(module.training))
    model[3].register_forward_hook(lambda module, inputs, output: seen.append(module.training))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    random_state = torch.get_rng_state()
    mc_dropout(noise_record(), rng(), network=asked, count=2)
    assert seen == [False, True] * 2  # BatchNorm in eval mode, dropout on
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), random_state)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


def test_mc_dropout_wants_dropout():
    model = network(dropout=False).train()
    with pytest.raises(ValueError, match="Sequential has none"):
        mc_dropout(noise_record(), rng(), network=Network(model))
    assert not any(module.training for module in model.modules())


def test_stochastic_depth_is_dropout_too():
    class DropPath(nn.Module):
        def forward(self, x):
            return x + torch.randn_like(x) if self.training else x

    model = nn.Sequential(nn.Conv2d(3, 1, 1), DropPath())
    assert len(distinct(mc_dropout(noise_record(), rng(), network=Network(model), count=4)).masks) == 4


def test_views_are_turned_back_exactly():
    # What looks at each pixel alone must see the same whichever way the image is turned.
    found = turned_views(
        noise_record(5, 8), rng(), network=answering(lambda images: images[..., :1].transpose(0, 3, 1, 2) - 127.5)
    )
    assert found.names == tuple(f"tta-{view}" for view in VIEWS)
    for mask in found.masks:
        np.testing.assert_array_equal(mask, noise_record(5, 8).image[..., 0] > 127)


def test_each_view_is_the_one_it_is_named_after():
    def first_pixel(images):
        logits = np.full((len(images), 1, *images.shape[1:3]), -1, np.float32)
        logits[:, 0, 0, 0] = 1
        return logits

    found = turned_views(noise_record(5, 8), rng(), network=answering(first_pixel))
    places = {name: tuple(np.argwhere(mask)[0].tolist()) for name, mask in zip(found.names, found.masks, strict=True)}
    assert places == {
        "tta-as_is": (0, 0),
        "tta-turn_90": (0, 7),
        "tta-turn_180": (4, 7),
        "tta-turn_270": (4, 0),
        "tta-flip_x": (0, 7),
        "tta-turn_90_flip_x": (4, 7),
        "tta-flip_y": (4, 0),
        "tta-turn_270_flip_x": (0, 0),
    }


def test_views_are_predicted_in_two_batches_and_come_in_the_order_asked_for():
    shapes = []

    def predict(images):
        shapes.append(images.shape)
        return np.zeros((len(images), 4, *images.shape[1:3]), np.float32)

    found = turned_views(noise_record(5, 8), rng(), network=answering(predict), views=("turn_90", "flip_x", "as_is"))
    assert found.names == ("tta-turn_90", "tta-flip_x", "tta-as_is")
    assert sorted(shapes) == [(1, 8, 5, 3), (2, 5, 8, 3)]
    with pytest.raises(ValueError, match="views to be one of as_is"):
        turned_views(noise_record(), rng(), network=answering(predict), views=("flip_z",))


def test_noise_has_unit_variance_and_the_correlation_it_says():
    length = 4.0
    field = smooth_noise(rng(), (700, 700), length)
    assert field.mean() == pytest.approx(0, abs=0.05)
    assert field.std() == pytest.approx(1, abs=0.03)
    for distance in (2, 4, 8):
        expected = np.exp(-(distance**2) / (2 * length**2))
        assert np.mean(field[distance:] * field[:-distance]) == pytest.approx(expected, abs=0.04)
        assert np.mean(field[:, distance:] * field[:, :-distance]) == pytest.approx(expected, abs=0.04)


def test_noise_is_the_same_at_borders_and_for_tiny_images():
    generator = rng()
    fields = np.stack([smooth_noise(generator, (3, 5), 2.0) for _ in range(4000)])
    np.testing.assert_allclose(fields.std(0), 1, atol=0.06)


def test_logit_noise_moves_what_is_unsure_and_keeps_what_is_sure():
    def predict(images):
        logits = np.zeros((len(images), 1, *images.shape[1:3]), np.float32)
        logits[..., :20] = 30
        logits[..., 40:] = -30
        return logits

    record = noise_record(48, 60)
    found = logit_noise(record, rng(), network=answering(predict), count=5, amplitude=2.0, length=3.0)
    assert found.names == tuple(f"logit_noise-{k}" for k in range(5))
    np.testing.assert_array_equal(found.masks[0], predict(record.image[None])[0, 0] > 0)
    assert (found.masks[:, :, :20] == 1).all()
    assert (found.masks[:, :, 40:] == 0).all()
    unsure = found.masks[1:, :, 20:40]
    assert 0.3 < unsure.mean() < 0.7
    # Smooth: neighbours agree far more often than pixels drawn on their own would.
    assert (unsure[:, :, 1:] == unsure[:, :, :-1]).mean() > 0.8
    assert len(distinct(found).masks) == 5


def test_logit_noise_of_several_classes_is_each_its_own():
    found = logit_noise(
        noise_record(40, 40),
        rng(),
        network=answering(lambda images: np.zeros((1, 3, 40, 40), np.float32)),
        count=20,
        length=1.5,
    )
    shares = np.bincount(found.masks[1:].ravel(), minlength=3) / found.masks[1:].size
    np.testing.assert_allclose(shares, 1 / 3, atol=0.05)


def test_noise_out_of_range():
    for wrong in ({"amplitude": 0.0}, {"length": -1.0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            logit_noise(noise_record(), rng(), network=answering(lambda images: np.zeros((1, 1, 5, 8))), **wrong)


SMALL = Record("a", np.zeros((1, 4, 3), np.uint8), np.zeros((0, 1, 4), np.uint8), ())


def source(name, count, first=0):
    masks = np.arange(first, first + count, dtype=np.uint8)[:, None, None] * np.ones((1, 1, 4), np.uint8)
    return lambda record, rng: Candidates(masks, tuple(f"{name}-{k}" for k in range(count)))


def test_masks_of_all_sources_when_there_are_few():
    mixed = mixture(SMALL, rng(), sources={"few": source("tta", 2), "many": source("mc", 3, 10)}, count=9)
    assert mixed.names == ("few-0", "few-1", "many-0", "many-1", "many-2")
    assert mixed.masks[:, 0, 0].tolist() == [0, 1, 10, 11, 12]


def test_sources_are_drawn_by_weight_whatever_number_of_masks_they_offer():
    draw = partial(mixture, SMALL, sources={"few": source("x", 2), "many": source("x", 20)}, count=1)
    first = np.mean([draw(rng(seed), weights={"few": 3, "many": 1}).names[0].startswith("few") for seed in range(2000)])
    assert first == pytest.approx(0.75, abs=4 * np.sqrt(0.75 * 0.25 / 2000))
    assert draw(rng(5)).names == draw(rng(5)).names


def test_a_source_of_weight_zero_is_not_called_and_no_other_notices():
    def noisy(record, rng):
        return Candidates(rng.integers(0, 9, (3, 1, 4)).astype(np.uint8), ("n-0", "n-1", "n-2"))

    def broken(record, rng):
        raise AssertionError

    alone = mixture(SMALL, rng(), sources={"off": broken, "on": noisy}, weights={"off": 0, "on": 1}, count=3)
    beside = mixture(SMALL, rng(), sources={"off": source("x", 1), "on": noisy}, count=9)
    np.testing.assert_array_equal(alone.masks, beside.masks[1:])


def test_sources_that_offer_nothing():
    nothing = source("x", 0)
    mixed = mixture(SMALL, rng(), sources={"none": nothing, "one": source("x", 1)}, count=3)
    assert mixed.names == ("one-0",)
    assert mixture(SMALL, rng(), sources={"none": nothing}, count=3).masks.shape == (0, 1, 4)


def test_weights_that_do_not_fit():
    with pytest.raises(ValueError, match=r"for each source \(a, b\) but got weights for a, c"):
        mixture(SMALL, rng(), sources={"a": source("a", 1), "b": source("b", 1)}, weights={"a": 1, "c": 1}, count=1)
    with pytest.raises(ValueError, match=r"weights\.a to be finite and at least 0"):
        mixture(SMALL, rng(), sources={"a": source("a", 1)}, weights={"a": -1.0}, count=1)


class Linear(nn.Module):
    """Logits that are linear in the pixel's values, behind dropout."""

    def __init__(self, channels, outputs):
        super().__init__()
        torch.manual_seed(outputs)
        self.layers = nn.Sequential(nn.Conv2d(channels, 16, 3, padding=1), nn.Dropout(0.5), nn.Conv2d(16, outputs, 1))

    def forward(self, images):
        return 4 * self.layers(images)


OWN = {
    "thresholds": partial(thresholds, probabilities=(0.3, 0.5, 0.7)),
    "class_biases": partial(class_biases, count=5),
    "tta": turned_views,
    "logit_noise": partial(logit_noise, count=5),
    "samples": partial(samples, count=5, smoothness=2.0),
    "mc_dropout": partial(mc_dropout, count=5),
}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("outputs", [1, 2, 3, 11])
@pytest.mark.parametrize("name", [*OWN, "checkpoints", "own_candidates"])
def test_every_source_works_for_any_number_of_classes_and_for_grey_images(name, outputs, channels):
    record = record_of(rng(3).integers(0, 256, (18, 25, channels), np.uint8))
    constants = {"mean": (0.4,), "std": (0.2,)} if channels == 1 else {}
    network = Network(Linear(channels, outputs), Preparation(Pipeline(**constants), channels))
    mixed = partial(mixture, sources={key: OWN[key] for key in ("thresholds", "tta", "logit_noise")}, count=6)
    source = {**OWN, "own_candidates": mixed, "checkpoints": partial(checkpoints, networks={"a": network})}[name]
    found = with_network(source, network)(record, rng())
    classes = 2 if outputs == 1 else outputs
    assert found.masks.dtype == np.uint8
    assert found.masks.shape[1:] == (18, 25)
    there = np.unique(found.masks)
    assert there.max() < classes
    assert len(there) > classes / 2
    assert len(distinct(found).masks) > 1 or name == "checkpoints"

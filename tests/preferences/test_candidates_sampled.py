from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from segdpo.data.record import Record
from segdpo.preferences.candidates import VIEWS, distinct, logit_noise, mc_dropout, smooth_noise, turned_views
from segdpo.preferences.network import Network


def rng(seed=0):
    return np.random.default_rng(seed)


def answering(predict):
    return SimpleNamespace(predict=predict)


def record_of(height=5, width=8):
    image = rng().integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Record("a", image, np.zeros((0, height, width), np.uint8), ())


def network(dropout=True, classes=1):
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, classes, 1)]
    return nn.Sequential(*layers[:3], nn.Dropout2d(0.5), layers[3]) if dropout else nn.Sequential(*layers)


@pytest.mark.parametrize("classes", [1, 3])
def test_mc_dropout_draws_masks_from_the_generator_it_is_given(classes):
    model = network(classes=classes)
    found = mc_dropout(record_of(), rng(1), network=Network(model), count=6)
    assert found.names[-1] == "mc_dropout-5"
    assert found.masks.shape == (6, 5, 8)
    assert found.masks.max() < max(2, classes)
    assert len(distinct(found).masks) > 1
    torch.rand(3)  # someone else's draw changes nothing
    np.testing.assert_array_equal(found.masks, mc_dropout(record_of(), rng(1), network=Network(model), count=6).masks)
    assert (found.masks != mc_dropout(record_of(), rng(2), network=Network(model), count=6).masks).any()


def test_mc_dropout_leaves_no_trace():
    model = network()
    asked = Network(model)
    model.train()
    model[1].eval()
    modes = [module.training for module in model.modules()]
    seen = []
    model[1].register_forward_hook(lambda module, inputs, output: seen.append(module.training))
    model[3].register_forward_hook(lambda module, inputs, output: seen.append(module.training))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    random_state = torch.get_rng_state()
    mc_dropout(record_of(), rng(), network=asked, count=2)
    assert seen == [False, True] * 2  # BatchNorm in eval mode, dropout on
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), random_state)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


def test_mc_dropout_wants_dropout():
    model = network(dropout=False).train()
    with pytest.raises(ValueError, match="Sequential has none"):
        mc_dropout(record_of(), rng(), network=Network(model))
    assert not any(module.training for module in model.modules())


def test_stochastic_depth_is_dropout_too():
    class DropPath(nn.Module):
        def forward(self, x):
            return x + torch.randn_like(x) if self.training else x

    model = nn.Sequential(nn.Conv2d(3, 1, 1), DropPath())
    assert len(distinct(mc_dropout(record_of(), rng(), network=Network(model), count=4)).masks) == 4


def test_views_are_turned_back_exactly():
    # What looks at each pixel alone must see the same whichever way the image is turned.
    found = turned_views(
        record_of(5, 8), rng(), network=answering(lambda images: images[..., :1].transpose(0, 3, 1, 2) - 127.5)
    )
    assert found.names == tuple(f"tta-{view}" for view in VIEWS)
    for mask in found.masks:
        np.testing.assert_array_equal(mask, record_of(5, 8).image[..., 0] > 127)


def test_each_view_is_the_one_it_is_named_after():
    def first_pixel(images):
        logits = np.full((len(images), 1, *images.shape[1:3]), -1, np.float32)
        logits[:, 0, 0, 0] = 1
        return logits

    found = turned_views(record_of(5, 8), rng(), network=answering(first_pixel))
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

    found = turned_views(record_of(5, 8), rng(), network=answering(predict), views=("turn_90", "flip_x", "as_is"))
    assert found.names == ("tta-turn_90", "tta-flip_x", "tta-as_is")
    assert sorted(shapes) == [(1, 8, 5, 3), (2, 5, 8, 3)]
    with pytest.raises(ValueError, match="views to be one of as_is"):
        turned_views(record_of(), rng(), network=answering(predict), views=("flip_z",))


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

    record = record_of(48, 60)
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
        record_of(40, 40),
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
            logit_noise(record_of(), rng(), network=answering(lambda images: np.zeros((1, 1, 5, 8))), **wrong)

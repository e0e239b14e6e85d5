"""candidates=samples: pixels have the network's own probabilities, drawn from the generator that is given."""

from types import SimpleNamespace

import numpy as np
import pytest
from scipy.special import expit, softmax

from segdpo.data.record import Record
from segdpo.preferences.candidates import samples

IMAGE = np.zeros((24, 24, 3), np.uint8)
RECORD = Record("a", IMAGE, np.zeros((0, 24, 24), np.uint8), ())


def constant(*logits):
    """A network that says the same of every pixel."""
    values = np.array(logits, np.float32)[None, :, None, None]
    return SimpleNamespace(predict=lambda images: np.broadcast_to(values, (1, len(logits), *images.shape[1:3])))


@pytest.mark.parametrize("smoothness", [0.0, 3.0])
@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_every_pixel_has_its_probability(smoothness, temperature):
    drawn = samples(
        RECORD,
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
    drawn = samples(RECORD, np.random.default_rng(1), network=constant(1.0, 0.0, -1.0), count=100)
    shares = np.bincount(drawn.masks.ravel(), minlength=3) / drawn.masks.size
    np.testing.assert_allclose(shares, softmax([1.0, 0.0, -1.0]), atol=0.01)


def test_the_generator_alone_decides():
    first, again, other = (samples(RECORD, np.random.default_rng(s), network=constant(0.0)).masks for s in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


@pytest.mark.parametrize(("option", "value"), [("count", 0), ("temperature", 0.0), ("smoothness", -1.0)])
def test_options_out_of_range_are_named(option, value):
    with pytest.raises(ValueError, match=option):
        samples(RECORD, np.random.default_rng(0), network=constant(0.0), **{option: value})

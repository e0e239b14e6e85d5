"""Drawn masks: each pixel's chances are exact whatever the noise, and only smooth noise ties neighbours together."""

import pytest
import torch

from segdpo.scores.distribution import sample

COUNT = 3000


def chances_of(logits, temperature):
    logits = logits / temperature
    return torch.cat([-logits, logits], 1).mul(0.5).softmax(1) if logits.shape[1] == 1 else logits.softmax(1)


@pytest.mark.parametrize("smoothness", [0.0, 1.5])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_pixel_keeps_its_chances(channels, temperature, smoothness):
    generator = torch.Generator().manual_seed(1)
    logits = 2 * torch.randn(1, channels, 4, 5, generator=generator)
    many = logits.expand(COUNT // 2, -1, -1, -1)
    masks = sample(many, 2, temperature=temperature, smoothness=smoothness, generator=generator)
    expected = chances_of(logits, temperature)[0]
    for number, chance in enumerate(expected):
        share = (masks == number).float().mean(0)
        error = (chance * (1 - chance) / COUNT).sqrt()
        assert ((share - chance).abs() <= 4.5 * error + 1e-9).all()


@pytest.mark.parametrize("channels", [1, 3])
def test_smooth_noise_makes_neighbours_agree(channels):
    logits = torch.zeros(1500, channels, 6, 24)
    near, far = {}, {}
    for smoothness in (0.0, 2.0):
        drawn = sample(logits, 1, smoothness=smoothness, generator=torch.Generator().manual_seed(2))
        # Of class 0 against the rest: correlation of a pixel with the next one, and with one 12 pixels on.
        one = (drawn == 0).float()
        one = (one - one.mean(0)) / one.std(0)
        near[smoothness] = float((one[..., :-1] * one[..., 1:]).mean())
        far[smoothness] = float((one[..., :-12] * one[..., 12:]).mean())
    assert abs(near[0.0]) < 0.03
    assert near[2.0] > 0.5
    assert max(map(abs, far.values())) < 0.05


def test_the_correlation_is_the_gaussian_that_was_asked_for():
    """Sign correlation of a Gaussian field with correlation r is 2/π · arcsin r (Sheppard, 1899)."""
    drawn = sample(torch.zeros(2000, 1, 8, 32), 1, smoothness=2.0, generator=torch.Generator().manual_seed(3))
    signs = drawn.float() * 2 - 1
    for step in (1, 2, 4):
        correlation = torch.exp(torch.tensor(-(step**2) / (2 * 2.0**2)))
        expected = 2 / torch.pi * torch.asin(correlation)
        assert float((signs[..., :-step] * signs[..., step:]).mean()) == pytest.approx(float(expected), abs=0.02)


def test_masks_of_an_image_stand_together_and_come_again_with_the_seed():
    logits = torch.stack([torch.full((1, 3, 3), 40.0), torch.full((1, 3, 3), -40.0)])
    masks = sample(logits, 2)
    assert masks.dtype == torch.uint8
    assert masks.flatten(1).float().mean(1).tolist() == [1, 1, 0, 0]
    logits = torch.zeros(2, 4, 3, 3, 3)
    first, again = (sample(logits, 3, smoothness=1.0, generator=torch.Generator().manual_seed(5)) for _ in range(2))
    assert first.shape == (6, 3, 3, 3)
    assert torch.equal(first, again)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"count": 0}, "count to be finite and at least 1"),
        ({"temperature": 0.0}, "temperature to be finite and above 0"),
        ({"smoothness": -1.0}, "smoothness to be finite and at least 0"),
    ],
)
def test_what_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        sample(torch.zeros(1, 1, 2, 2), options.pop("count", 1), **options)


def test_logits_that_are_no_numbers_are_named():
    with pytest.raises(ValueError, match=r"finite logits to sample masks from"):
        sample(torch.full((1, 1, 2, 2), torch.nan), 1)

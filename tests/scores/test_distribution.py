"""Distributions over masks: against torch.distributions in float64, by Monte Carlo; samples with correlated noise."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributions import Bernoulli, Categorical, kl_divergence

from segdpo.scores.distribution import entropy, kl, log_prob, predicted_classes, sample

SPACES = [(4, 5), (3, 4, 5)]


def logits_of(channels, space=(4, 5), images=3, seed=0, scale=3.0):
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(images, channels, *space, generator=generator, dtype=torch.float64)


def distribution(logits):
    """The distribution of torch.distributions for the same logits."""
    if logits.shape[1] == 1:
        return Bernoulli(logits=logits[:, 0])
    return Categorical(logits=logits.movedim(1, -1))


@pytest.mark.parametrize("space", SPACES, ids=str)
@pytest.mark.parametrize("channels", [1, 2, 5])
def test_against_torch_distributions(channels, space):
    logits, other = logits_of(channels, space), logits_of(channels, space, seed=1)
    ours, theirs = distribution(logits), distribution(other)
    masks = torch.randint(0, max(2, channels), (7, *space), generator=torch.Generator().manual_seed(2))
    index = torch.tensor([0, 2, 1, 1, 0, 2, 2])
    expected = distribution(logits[index]).log_prob(masks.double())
    torch.testing.assert_close(log_prob(logits, masks.byte(), index), expected, atol=1e-12, rtol=1e-9)
    torch.testing.assert_close(log_prob(logits, masks[:3]), ours.log_prob(masks[:3].double()), atol=1e-12, rtol=1e-9)
    torch.testing.assert_close(entropy(logits), ours.entropy(), atol=1e-12, rtol=1e-9)
    torch.testing.assert_close(kl(logits, other), kl_divergence(ours, theirs), atol=1e-10, rtol=1e-9)
    modes = logits[:, 0] > 0 if channels == 1 else logits.argmax(1)
    assert torch.equal(predicted_classes(logits), modes.byte())


@pytest.mark.parametrize("channels", [1, 3])
def test_kl_and_entropy_are_means_over_samples(channels):
    logits, other = logits_of(channels, images=1, scale=1.0), logits_of(channels, images=1, seed=1, scale=1.0)
    count = 4000
    masks = sample(logits.expand(count, -1, -1, -1), 1, generator=torch.Generator().manual_seed(3))
    index = torch.zeros(count, dtype=torch.long)
    own, theirs = log_prob(logits, masks, index), log_prob(other, masks, index)
    for values, exact in ((-own, entropy(logits)), (own - theirs, kl(logits, other))):
        error = values.std(0) / count**0.5
        assert ((values.mean(0) - exact[0]).abs() <= 4.5 * error).all()


@settings(max_examples=40, deadline=None)
@given(channels=st.sampled_from([1, 2, 4]), seed=st.integers(0, 10**6), scale=st.sampled_from([0.1, 3.0, 40.0]))
def test_probabilities_of_all_classes_sum_to_one(channels, seed, scale):
    logits = logits_of(channels, (2, 3), images=2, seed=seed, scale=scale)
    classes = max(2, channels)
    every = torch.arange(classes).repeat_interleave(2).view(-1, 1, 1).expand(-1, 2, 3)
    chances = log_prob(logits, every, torch.arange(2).repeat(classes)).exp().view(classes, 2, 2, 3).sum(0)
    torch.testing.assert_close(chances, torch.ones_like(chances))
    divergence = kl(logits, logits_of(channels, (2, 3), images=2, seed=seed + 1, scale=scale))
    assert (divergence >= -1e-9).all()
    assert (entropy(logits) >= 0).all()
    assert (entropy(logits) <= torch.tensor(float(classes)).log() + 1e-9).all()
    assert (kl(logits, logits) == 0).all()


def test_ignored_pixels_have_no_gradient():
    logits = logits_of(3).requires_grad_()
    masks = torch.randint(0, 3, (3, 4, 5), dtype=torch.uint8)
    masks[:, 0] = 255
    found = log_prob(logits, masks)
    assert (found[:, 0] == 0).all()
    found.sum().backward()
    assert (logits.grad[:, :, 0] == 0).all()
    assert (logits.grad[:, :, 1:] != 0).all()


@pytest.mark.parametrize("channels", [1, 3])
def test_half_precision_gives_float32(channels):
    logits = logits_of(channels).bfloat16()
    masks = torch.ones(3, 4, 5, dtype=torch.uint8)
    assert log_prob(logits, masks).dtype == torch.float32
    torch.testing.assert_close(log_prob(logits, masks), log_prob(logits.float(), masks))


def test_masks_and_logits_that_do_not_fit():
    logits = logits_of(3)
    with pytest.raises(ValueError, match=r"masks has class 3 but the model predicts 3 classes"):
        log_prob(logits, torch.full((3, 4, 5), 3))
    with pytest.raises(ValueError, match=r"4 pairs for 3 images; .* image_index"):
        log_prob(logits, torch.zeros(4, 4, 5, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"Expected reference_logits of the shape of logits"):
        kl(logits, logits[:1])


COUNT = 3000


def chances_of(logits, temperature):
    logits = logits / temperature
    return torch.cat([-logits, logits], 1).mul(0.5).softmax(1) if logits.shape[1] == 1 else logits.softmax(1)


@pytest.mark.parametrize("smoothness", [0.0, 1.5])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("channels", [1, 3])
def test_samples_have_the_probabilities_of_every_pixel(channels, temperature, smoothness):
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


def test_the_correlation_of_samples_is_the_gaussian():
    """Sign correlation of a Gaussian field with correlation r is 2/π · arcsin r (Sheppard, 1899)."""
    drawn = sample(torch.zeros(2000, 1, 8, 32), 1, smoothness=2.0, generator=torch.Generator().manual_seed(3))
    signs = drawn.float() * 2 - 1
    for step in (1, 2, 4):
        correlation = torch.exp(torch.tensor(-(step**2) / (2 * 2.0**2)))
        expected = 2 / torch.pi * torch.asin(correlation)
        assert float((signs[..., :-step] * signs[..., step:]).mean()) == pytest.approx(float(expected), abs=0.02)


def test_masks_of_an_image_follow_each_other_and_depend_on_the_seed():
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
def test_sampling_options_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        sample(torch.zeros(1, 1, 2, 2), options.pop("count", 1), **options)


def test_logits_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match=r"finite logits to sample masks from"):
        sample(torch.full((1, 1, 2, 2), torch.nan), 1)

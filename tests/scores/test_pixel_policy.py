"""Pixel distributions: against torch.distributions in float64, by Monte Carlo, and what they refuse."""

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
    """What torch makes of the same logits, pixel by pixel."""
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
def test_the_chances_of_all_classes_are_one_in_sum(channels, seed, scale):
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


def test_ignored_pixels_have_no_say():
    logits = logits_of(3).requires_grad_()
    masks = torch.randint(0, 3, (3, 4, 5), dtype=torch.uint8)
    masks[:, 0] = 255
    found = log_prob(logits, masks)
    assert (found[:, 0] == 0).all()
    found.sum().backward()
    assert (logits.grad[:, :, 0] == 0).all()
    assert (logits.grad[:, :, 1:] != 0).all()


@pytest.mark.parametrize("channels", [1, 3])
def test_half_precision_comes_out_as_float32(channels):
    logits = logits_of(channels).bfloat16()
    masks = torch.ones(3, 4, 5, dtype=torch.uint8)
    assert log_prob(logits, masks).dtype == torch.float32
    torch.testing.assert_close(log_prob(logits, masks), log_prob(logits.float(), masks))


def test_what_is_refused():
    logits = logits_of(3)
    with pytest.raises(ValueError, match=r"masks has class 3 but the model predicts 3 classes"):
        log_prob(logits, torch.full((3, 4, 5), 3))
    with pytest.raises(ValueError, match=r"4 pairs for 3 images; .* image_index"):
        log_prob(logits, torch.zeros(4, 4, 5, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"Expected reference_logits of the shape of logits"):
        kl(logits, logits[:1])

"""The gradient of a rollout's loss, on an image of 2 × 2 pixels: all 16 masks enumerated, and by Monte Carlo."""

from dataclasses import replace
from functools import partial
from itertools import product

import pytest
import torch

from segdpo.data.batches import Batch
from segdpo.losses.policy_gradient import clipped_surrogate, group_advantages, leave_one_out, reinforce
from segdpo.rl.algorithm import Algorithm, Divergence
from segdpo.rl.rewards import iou
from segdpo.rl.rollout import Rollout, advantages_of, loss_of, penalised, roll_out
from segdpo.scores.distribution import kl, log_prob

LOGITS = torch.tensor([[[[0.3, -1.1], [0.8, 2.0]]]], dtype=torch.float64)
REFERENCE = torch.tensor([[[[-0.4, 0.2], [1.5, 1.0]]]], dtype=torch.float64)
MASKS = torch.tensor(list(product((0, 1), repeat=4)), dtype=torch.uint8).view(16, 2, 2)
REWARDS = torch.rand(16, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
RATIOS = ("pixel", "mask", "mask_mean")
PIXELS = 4


def algorithm_of(baseline=leave_one_out, **options):
    return Algorithm("test", options.pop("surrogate", partial(clipped_surrogate)), baseline=baseline, **options)


def chances(logits):
    """p(mask) of all 16."""
    return log_prob(logits.expand(16, -1, -1, -1), MASKS).flatten(1).sum(1).exp()


def exact_gradient():
    logits = LOGITS.clone().requires_grad_()
    (chances(logits) * REWARDS).sum().backward()
    return logits.grad[0, 0]


def rollout_of(masks, advantages, logits=LOGITS, rewards=None):
    """One image for each row of masks [n, K, 2, 2]."""
    count = len(masks)
    return Rollout(
        image=torch.zeros(count, 3, 2, 2),
        valid=torch.ones(count, 2, 2, dtype=torch.bool),
        logits=logits.expand(count, -1, -1, -1),
        reference_logits=REFERENCE.expand(count, -1, -1, -1),
        masks=masks,
        rewards=torch.zeros(masks.shape[:2], dtype=torch.float64) if rewards is None else rewards,
        advantages=advantages,
    )


def gradients(rollout, algorithm, at=LOGITS, coefficient=0.0):
    """d loss / d logits of each image on its own, as if the loss were that of a sum over pixels."""
    logits = at.expand(len(rollout.image), -1, -1, -1).clone().requires_grad_()
    loss_of(rollout, logits, None, algorithm, coefficient).total.backward()
    return logits.grad[:, 0] * len(rollout.image) * PIXELS


@pytest.mark.parametrize("surrogate", [partial(clipped_surrogate), reinforce], ids=["clipped", "reinforce"])
@pytest.mark.parametrize("ratio", RATIOS)
def test_over_all_pairs_of_masks_the_gradient_is_exact(ratio, surrogate):
    algorithm = algorithm_of(ratio=ratio, masks=2, surrogate=surrogate)
    first, second = torch.cartesian_prod(torch.arange(16), torch.arange(16)).unbind(1)
    rewards = torch.stack([REWARDS[first], REWARDS[second]], 1)
    rollout = rollout_of(torch.stack([MASKS[first], MASKS[second]], 1), advantages_of(rewards, None, algorithm))
    weight = (chances(LOGITS)[first] * chances(LOGITS)[second])[:, None, None]
    assert float(weight.sum()) == pytest.approx(1)
    expected = (weight * -gradients(rollout, algorithm)).sum(0)
    torch.testing.assert_close(expected, exact_gradient(), atol=1e-12, rtol=1e-9)


@pytest.mark.parametrize(
    ("baseline", "share"), [(leave_one_out, 1.0), (partial(group_advantages, divide_by_std=False), 0.75)]
)
def test_drawn_masks_have_that_gradient_within_their_standard_error(baseline, share):
    """A group's own mean as the baseline takes (K − 1)/K of the gradient: of K = 4, three quarters."""
    torch.manual_seed(7)
    count, table = 5000, {tuple(mask.flatten().tolist()): value for mask, value in zip(MASKS, REWARDS, strict=True)}

    def reward(request):
        return torch.stack([table[tuple(mask)] for mask in request.masks.flatten(1).tolist()])

    algorithm = algorithm_of(baseline, masks=4)
    valid = torch.ones(count, 2, 2, dtype=torch.bool)
    batch = Batch(torch.zeros(count, 3, 2, 2), valid, torch.zeros(count), ["a"] * count, None)
    logits = LOGITS.expand(count, -1, -1, -1)
    rollout = roll_out(batch, logits, None, None, algorithm, reward, classes=2, kl_coefficient=0.0)
    found = -gradients(rollout, algorithm)
    error = found.std(0) / count**0.5
    assert ((found.mean(0) - share * exact_gradient()).abs() <= 4 * error).all()
    assert (error < 0.1 * exact_gradient().abs().max()).all(), "too few masks to say anything"


@pytest.mark.parametrize("ratio", RATIOS)
def test_the_divergence_in_the_reward_is_that_in_the_loss(ratio):
    """Over all masks both have the gradient of the exact divergence, and by the same coefficient."""
    coefficient = 0.7
    algorithm = algorithm_of(ratio=ratio, divergence=Divergence(reward=coefficient))
    every = rollout_of(MASKS[:, None], torch.zeros(16, 1, dtype=torch.float64))
    rollout = replace(every, advantages=penalised(every, coefficient, ratio))
    in_reward = (chances(LOGITS)[:, None, None] * gradients(rollout, algorithm)).sum(0)
    logits = LOGITS.clone().requires_grad_()
    (coefficient * kl(logits, REFERENCE).sum()).backward()
    torch.testing.assert_close(in_reward, logits.grad[0, 0], atol=1e-12, rtol=1e-9)


@pytest.mark.parametrize("estimator", ["exact", "k1", "k3"])
def test_divergences_in_the_loss_have_the_right_gradient_off_policy_too(estimator):
    now = LOGITS + torch.tensor([[0.2, -0.3], [0.1, 0.4]], dtype=torch.float64)
    algorithm = algorithm_of(divergence=Divergence(loss=0.5, estimator=estimator))
    every = rollout_of(MASKS[:, None], torch.zeros(16, 1, dtype=torch.float64))
    found = (chances(LOGITS)[:, None, None] * gradients(every, algorithm, at=now, coefficient=0.5)).sum(0)
    logits = now.clone().requires_grad_()
    (0.5 * kl(logits, REFERENCE).sum()).backward()
    torch.testing.assert_close(found, logits.grad[0, 0], atol=1e-12, rtol=1e-9)


def test_ratio_is_1_and_nothing_has_moved_at_the_first_step():
    every = rollout_of(MASKS[:, None], torch.ones(16, 1, dtype=torch.float64))
    loss = loss_of(every, LOGITS.expand(16, -1, -1, -1), None, algorithm_of(), 0.0)
    assert float(loss.ratio) == 1
    assert float(loss.kl_to_old) == 0
    assert float(loss.clip_fraction) == 0


def test_pixels_that_only_fill_up_have_no_part():
    masks = MASKS[:, None].repeat(1, 2, 1, 1)
    wide = torch.cat([masks, torch.ones_like(masks)], -1)
    narrow = rollout_of(masks, torch.rand(16, 2, dtype=torch.float64), rewards=torch.rand(16, 2, dtype=torch.float64))
    filled = torch.full((16, 1, 2, 2), 9.0, dtype=torch.float64)
    padded = Rollout(
        image=torch.zeros(16, 3, 2, 4),
        valid=torch.cat([narrow.valid, ~narrow.valid], -1),
        logits=torch.cat([narrow.logits, filled], -1),
        reference_logits=torch.cat([narrow.reference_logits, -filled], -1),
        masks=wide,
        rewards=narrow.rewards,
        advantages=narrow.advantages,
    )
    now = LOGITS.expand(16, -1, -1, -1) + 0.1
    for ratio in RATIOS:
        algorithm = algorithm_of(ratio=ratio, entropy=0.1, divergence=Divergence(loss=0.3, estimator="k3"))
        small = loss_of(narrow, now, torch.zeros(16, 2, 2), algorithm, 0.3)
        large = loss_of(padded, torch.cat([now, -filled], -1), torch.zeros(16, 2, 4), algorithm, 0.3)
        assert set(small.parts) == {"surrogate", "divergence", "entropy", "value"}
        torch.testing.assert_close(large.total, small.total)
        torch.testing.assert_close(large.parts, small.parts)
        for name in ("kl_to_old", "ratio", "clip_fraction"):
            torch.testing.assert_close(getattr(large, name), getattr(small, name))


def test_values_are_held_against_rewards():
    rewards = torch.tensor([[0.2, 0.6]], dtype=torch.float64)
    rollout = rollout_of(MASKS[None, :2], torch.zeros(1, 2, dtype=torch.float64), rewards=rewards)
    algorithm = Algorithm("test", reinforce, value=lambda **_: None)
    for values in (torch.tensor([0.5]), torch.full((1, 2, 2), 0.5)):
        found = loss_of(rollout, LOGITS, values, algorithm, 0.0).parts["value"]
        assert float(found) == pytest.approx((0.5 * 0.3**2 + 0.5 * 0.1**2) / 2)
    held = advantages_of(rewards, torch.full((1, 2, 2), 0.5, dtype=torch.float64), algorithm)
    assert held.shape == (1, 2, 2, 2)
    torch.testing.assert_close(held[0, :, 0, 0], torch.tensor([-0.3, 0.1], dtype=torch.float64))


def test_a_temperature_draws_from_and_trains_the_same_policy():
    """With T, the surrogate's gradient is that of E[R] under softmax(z/T), and the ratio still starts at 1."""
    algorithm = algorithm_of(masks=2, temperature=2.0)
    first, second = torch.cartesian_prod(torch.arange(16), torch.arange(16)).unbind(1)
    rewards = torch.stack([REWARDS[first], REWARDS[second]], 1)
    rollout = rollout_of(torch.stack([MASKS[first], MASKS[second]], 1), advantages_of(rewards, None, algorithm))
    weight = (chances(LOGITS / 2)[first] * chances(LOGITS / 2)[second])[:, None, None]
    found = (weight * -gradients(rollout, algorithm)).sum(0)
    logits = LOGITS.clone().requires_grad_()
    (chances(logits / 2) * REWARDS).sum().backward()
    torch.testing.assert_close(found, logits.grad[0, 0], atol=1e-12, rtol=1e-9)


def test_rewards_reach_the_right_masks():
    gold = torch.stack([MASKS[3], MASKS[12]])
    batch = Batch(torch.zeros(2, 3, 2, 2), torch.ones(2, 2, 2, dtype=torch.bool), torch.zeros(2), ["a", "b"], gold)
    rollout = roll_out(
        batch, torch.zeros(2, 1, 2, 2), None, None, algorithm_of(masks=5), iou, classes=2, kl_coefficient=0.0
    )
    for image, truth in enumerate(gold):
        for mask, reward in zip(rollout.masks[image], rollout.rewards[image], strict=True):
            union = (mask | truth).sum()
            assert float(reward) == pytest.approx(float((mask & truth).sum() / union if union else 1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"baseline": None}, "either a baseline .* or a value head .* but got neither"),
        ({"value": lambda **_: None}, "either a baseline .* or a value head .* but got both"),
        ({"masks": 1}, r"algorithm\.masks of at least 2 for test, .* got 1"),
        ({"ratio": "image"}, r"algorithm\.ratio to be one of pixel, mask, mask_mean"),
        ({"temperature": 0.5, "divergence": Divergence(reward=0.1)}, r"algorithm\.temperature=1 for a divergence in"),
        ({"epochs": 0}, r"algorithm\.epochs to be finite and at least 1"),
    ],
)
def test_settings_that_make_no_sense(options, message):
    with pytest.raises(ValueError, match=message):
        algorithm_of(**options)


def test_divergences_that_make_no_sense():
    with pytest.raises(ValueError, match=r"divergence\.estimator to be one of exact, k1, k3 but got 'k2'"):
        Divergence(estimator="k2")
    with pytest.raises(ValueError, match=r"a coefficient to adapt to divergence\.target but"):
        Divergence(target=5.0)

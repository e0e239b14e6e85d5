"""Surrogates and advantages: tables made by hand, identities, and TRL's own GRPO arithmetic."""

from collections import defaultdict
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from segdpo.losses.policy_gradient import (
    adaptive_coefficient,
    clipped_surrogate,
    cut_off,
    group_advantages,
    kl_k1,
    kl_k3,
    leave_one_out,
    normalised,
    per_ratio,
    reinforce,
)

# ratio, advantage → loss and d loss / d log p, at clip .2 and clip_higher .5; worked out on paper.
TABLE = [
    (1.0, 2.0, -2.0, -2.0),
    (1.4, 2.0, -2.8, -2.8),
    (1.6, 2.0, -3.0, 0.0),
    (0.5, 2.0, -1.0, -1.0),
    (1.0, -2.0, 2.0, 2.0),
    (1.6, -2.0, 3.2, 3.2),
    (0.9, -2.0, 1.8, 1.8),
    (0.5, -2.0, 1.6, 0.0),
    (1.3, 0.0, 0.0, 0.0),
]


@pytest.mark.parametrize(("ratio", "advantage", "loss", "gradient"), TABLE)
def test_the_clipped_surrogate_by_hand(ratio, advantage, loss, gradient):
    old = torch.tensor([-1.7], dtype=torch.float64)
    log_prob = (old + np.log(ratio)).requires_grad_()
    held = torch.tensor([advantage], dtype=torch.float64)
    found = clipped_surrogate(log_prob, old, held, clip=0.2, clip_higher=0.5)
    found.sum().backward()
    assert float(found.detach()) == pytest.approx(loss)
    assert float(log_prob.grad) == pytest.approx(gradient)
    assert bool(cut_off(found.detach(), log_prob, old, held)) is (gradient == 0 and advantage != 0)
    # Unclipped, the loss is −rA and so is its gradient.
    assert float(reinforce(log_prob, old, held).detach()) == pytest.approx(-ratio * advantage)


def test_without_clip_higher_both_sides_are_equal():
    old, log_prob = torch.zeros(2), torch.tensor([1.3, 0.7]).log()
    found = clipped_surrogate(log_prob, old, torch.tensor([1.0, -1.0]), clip=0.2)
    torch.testing.assert_close(found, torch.tensor([-1.2, 0.8]))


def trl_loss(log_prob, old, reference, advantages, inside, *, clip, higher, beta):
    """Call `GRPOTrainer._compute_loss` unbound; pixels are its tokens, masks its completions."""
    trainer = pytest.importorskip("trl.trainer.grpo_trainer").GRPOTrainer
    accelerator = SimpleNamespace(
        device=torch.device("cpu"), gather=lambda x: x, gather_for_metrics=lambda x: x, reduce=lambda x, reduction: x
    )
    stand_in = SimpleNamespace(
        aux_loss_enabled=False,
        _get_per_token_logps_and_entropies=lambda *args, **kwargs: (log_prob, torch.zeros_like(log_prob), None),
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        importance_sampling_level="token",
        beta=beta,
        args=SimpleNamespace(use_bias_correction_kl=True, delta=None),
        loss_type="grpo",
        epsilon_low=clip,
        epsilon_high=higher,
        use_vllm=False,
        model=SimpleNamespace(training=False),
        current_gradient_accumulation_steps=1,
        _entropy_bonus_enabled=False,
        _metrics={"eval": defaultdict(list)},
        accelerator=accelerator,
    )
    tokens = torch.zeros_like(log_prob, dtype=torch.long)
    inputs = {
        "prompt_ids": tokens[:, :1],
        "prompt_mask": torch.ones_like(tokens[:, :1]),
        "completion_ids": tokens,
        "completion_mask": inside.long(),
        "advantages": advantages,
        "old_per_token_logps": old,
        "ref_per_token_logps": reference,
    }
    return trainer._compute_loss(stand_in, None, inputs), stand_in._metrics["eval"]


def test_trl_gives_the_same_loss_gradient_and_clip_fraction():
    rng = torch.Generator().manual_seed(0)
    old, reference = (-2 * torch.rand(6, 20, generator=rng, dtype=torch.float64) for _ in range(2))
    log_prob = (old + 0.4 * torch.randn(6, 20, generator=rng, dtype=torch.float64)).requires_grad_()
    inside = torch.rand(6, 20, generator=rng) > 0.3
    rewards = torch.rand(2, 3, generator=rng, dtype=torch.float64)
    advantages = group_advantages(rewards).flatten()
    theirs, metrics = trl_loss(log_prob, old, reference, advantages, inside, clip=0.2, higher=0.28, beta=0.3)
    expected = torch.autograd.grad(theirs, log_prob)[0]

    surrogate = clipped_surrogate(log_prob, old, advantages, clip=0.2, clip_higher=0.28)
    ours = surrogate + 0.3 * (log_prob - old).exp() * kl_k3(reference - log_prob)
    share = inside / inside.sum(1, keepdim=True)
    total = (ours * share).sum(1).mean()
    torch.testing.assert_close(total, theirs)
    torch.testing.assert_close(torch.autograd.grad(total, log_prob)[0], expected)
    cut = cut_off(surrogate, log_prob, old, advantages)
    assert float(cut[inside].double().mean()) == pytest.approx(metrics["clip_ratio/region_mean"][0], abs=1e-6)


def test_divergences_of_samples_are_unbiased():
    p, q = torch.tensor([0.3, 0.7], dtype=torch.float64), torch.tensor([0.6, 0.4], dtype=torch.float64)
    exact = (p * (p / q).log()).sum()
    for estimator in (kl_k1, kl_k3):
        torch.testing.assert_close((p * estimator((q / p).log())).sum(), exact)
    assert (kl_k3(torch.linspace(-3, 3, 13)) >= 0).all()


def test_ratios_of_pixels_and_masks():
    log_prob = torch.tensor([[[-1.0, -2.0], [-3.0, -4.0]]])
    inside = torch.tensor([[[True, True], [True, False]]])
    assert per_ratio(log_prob, inside, "pixel").tolist() == [[[-1.0, -2.0], [-3.0, 0.0]]]
    assert per_ratio(log_prob, inside, "mask").tolist() == [-6.0]
    assert per_ratio(log_prob, inside, "mask_mean").tolist() == [-2.0]
    with pytest.raises(ValueError, match="ratio to be one of pixel, mask, mask_mean but got 'image'"):
        per_ratio(log_prob, inside, "image")


def test_group_advantages_by_numpy():
    rewards = np.random.default_rng(0).random((3, 5))
    centred = rewards - rewards.mean(1, keepdims=True)
    found = group_advantages(torch.from_numpy(rewards))
    np.testing.assert_allclose(found, centred / (rewards.std(1, ddof=1, keepdims=True) + 1e-4), rtol=1e-9)
    np.testing.assert_allclose(group_advantages(torch.from_numpy(rewards), divide_by_std=False), centred, atol=1e-12)
    others = [[rewards[i, k] - np.delete(rewards[i], k).mean() for k in range(5)] for i in range(3)]
    np.testing.assert_allclose(leave_one_out(torch.from_numpy(rewards)), others, atol=1e-12)
    whole = normalised(torch.from_numpy(rewards))
    np.testing.assert_allclose(whole, (rewards - rewards.mean()) / (rewards.std(ddof=1) + 1e-4), rtol=1e-9)


@pytest.mark.parametrize("advantages", [group_advantages, leave_one_out, normalised])
@pytest.mark.parametrize("value", [0.1, 0.7301, 123.4])
def test_a_constant_reward_gives_advantages_of_zero(advantages, value):
    rewards = torch.full((2, 7), value)
    assert (advantages(rewards) == 0).all()
    log_prob = torch.zeros(14, 3, 3, requires_grad=True)
    clipped_surrogate(log_prob, log_prob.detach(), advantages(rewards).flatten()).sum().backward()
    assert (log_prob.grad == 0).all()


@pytest.mark.parametrize("advantages", [group_advantages, leave_one_out])
def test_one_mask_an_image_is_no_group(advantages):
    with pytest.raises(ValueError, match=r"at least 2 masks an image .* but got 1; set algorithm\.masks=4"):
        advantages(torch.rand(3, 1))


def test_the_adaptive_coefficient_turns_the_right_way():
    assert adaptive_coefficient(0.2, kl=6.0, target=6.0) == 0.2
    assert adaptive_coefficient(1.0, kl=6.6, target=6.0) == pytest.approx(1.01)
    assert adaptive_coefficient(1.0, kl=600.0, target=6.0) == pytest.approx(1.02)
    assert adaptive_coefficient(1.0, kl=0.0, target=6.0) == pytest.approx(0.98)
    with pytest.raises(ValueError, match="target to be finite and above 0"):
        adaptive_coefficient(1.0, kl=1.0, target=0.0)


def test_what_is_refused():
    ones = torch.ones(2, 3, 3)
    with pytest.raises(ValueError, match=r"an advantage a mask, \[2\], or one a pixel, \[2, 3, 3\], but got \[3\]"):
        clipped_surrogate(ones, ones, torch.ones(3))
    with pytest.raises(ValueError, match=r"clip_higher to be finite and at least 0\.2 but got 0\.1"):
        clipped_surrogate(ones, ones, torch.ones(2), clip=0.2, clip_higher=0.1)
    with pytest.raises(ValueError, match="Expected log_prob of the shape of old_log_prob"):
        reinforce(ones, ones[:1], torch.ones(2))

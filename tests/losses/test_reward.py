"""Losses of reward models against NumPy in float64, closed forms, and scipy's minimiser of the same likelihood."""

from functools import partial
from itertools import permutations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import optimize

from segdpo.losses.reward import RewardLoss, bradley_terry, centring, plackett_luce

CHOSEN = np.array([0.5, -1.25, 0.0, 30.0, -30.0])
REJECTED = np.array([-0.5, 2.0, 0.0, -30.0, 30.0])
# WINS[i, j]: how often mask i was preferred to mask j.
WINS = np.array([[0, 7, 9, 6], [3, 0, 5, 8], [1, 5, 0, 2], [4, 2, 6, 0]])
# Orders of three masks, best first, and how often each came.
ORDERS = {(0, 1, 2): 8, (0, 2, 1): 4, (1, 0, 2): 5, (2, 1, 0): 2, (1, 2, 0): 1}


def doubles(values):
    return torch.tensor(np.asarray(values), dtype=torch.float64)


def plackett_luce_in_numpy(rewards):
    return sum(np.log(np.exp(rewards[k:] - rewards[k]).sum()) for k in range(len(rewards)))


@pytest.mark.parametrize("margin", [0.0, 0.75, np.array([0.0, 0.5, 1.0, 2.0, 4.0])], ids=str)
def test_bradley_terry(margin):
    """−log σ(x) = log(1 + e^{−x})."""
    expected = np.logaddexp(0, -(CHOSEN - REJECTED - margin))
    given_margin = doubles(margin) if isinstance(margin, np.ndarray) else margin
    values = bradley_terry(doubles(CHOSEN), doubles(REJECTED), margin=given_margin)
    np.testing.assert_allclose(values.numpy(), expected, rtol=1e-12)


def test_literals():
    even = torch.zeros(1, dtype=torch.float64)
    assert bradley_terry(even, even).item() == pytest.approx(0.693147180559945309, rel=1e-14)
    # A margin of ln 3: σ(−ln 3) = 1/4.
    assert bradley_terry(even, even, margin=np.log(3)).item() == pytest.approx(np.log(4), rel=1e-14)
    np.testing.assert_array_equal(centring(doubles([1.0, 2.0]), doubles([-1.0, 1.5])).numpy(), [0, 12.25])
    # Weights 3, 2, 1 of an urn: P = 3/6 · 2/3.
    assert plackett_luce(doubles(np.log([[3, 2, 1]]))).item() == pytest.approx(np.log(3), rel=1e-14)


def test_plackett_luce_of_two_is_bradley_terry():
    rewards = doubles(np.stack([CHOSEN, REJECTED], 1))
    pairs = bradley_terry(doubles(CHOSEN), doubles(REJECTED))
    np.testing.assert_allclose(plackett_luce(rewards).numpy(), pairs.numpy(), rtol=1e-12, atol=1e-15)


def test_all_orders_are_one_event():
    orders = doubles(list(permutations([0.5, -1.25, 2.0, 0.0])))
    assert (-plackett_luce(orders)).exp().sum().item() == pytest.approx(1, rel=1e-12)


@given(st.lists(st.lists(st.booleans(), min_size=4, max_size=4), min_size=1, max_size=3), st.integers(0, 1000))
def test_masks_left_out_are_as_if_they_were_not_there(kept, seed):
    rewards = np.random.default_rng(seed).normal(0, 3, (len(kept), 4))
    rewards[~np.array(kept)] = np.nan
    given_rewards = doubles(rewards).requires_grad_()
    values = plackett_luce(given_rewards, torch.tensor(kept))
    expected = [plackett_luce_in_numpy(row[own]) for row, own in zip(rewards, np.array(kept), strict=True)]
    np.testing.assert_allclose(values.detach().numpy(), expected, rtol=1e-10, atol=1e-12)
    values.sum().backward()
    assert given_rewards.grad.isfinite().all()
    assert not given_rewards.grad.numpy()[~np.array(kept)].any()


def test_gradients_far_out_are_finite():
    """At ±10⁴ a softmax is a choice: each mask in the wrong place pulls by exactly 1 for every choice it spoils."""
    rewards = doubles([[-1e4, 0.0, 1e4]]).requires_grad_()
    plackett_luce(rewards).sum().backward()
    np.testing.assert_allclose(rewards.grad.numpy(), [[-1, -1, 2]], atol=1e-12)


def minimised(loss, size):
    """Rewards that minimise a torch function of them, by Newton-like steps in float64."""
    rewards = torch.zeros(size, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [rewards], max_iter=500, tolerance_grad=1e-12, tolerance_change=1e-14, line_search_fn="strong_wolfe"
    )

    def closure():
        optimizer.zero_grad()
        value = loss(rewards)
        value.backward()
        return value

    optimizer.step(closure)
    return rewards.detach().numpy()


def test_bradley_terry_finds_what_scipy_finds():
    """Four masks, counted wins; centring takes out the one constant that differences leave open."""
    winner, loser = np.nonzero(WINS)
    counts = WINS[winner, loser]
    loss = RewardLoss(bradley_terry, centring=0.05)

    def in_numpy(rewards):
        ahead = rewards[winner] - rewards[loser]
        values = np.logaddexp(0, -ahead) + 0.05 * (rewards[winner] + rewards[loser]) ** 2
        return (counts * values).sum() / counts.sum()

    pairs = torch.from_numpy(np.stack([winner, loser], 1))
    ours = minimised(lambda rewards: loss(rewards[pairs], weight=torch.from_numpy(counts)).total, 4)
    theirs = optimize.minimize(in_numpy, np.zeros(4), method="BFGS", options={"gtol": 1e-10}).x
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    assert np.ptp(ours) > 0.5


def test_two_masks_in_closed_form():
    """Preferred 9 times of 12: R_0 − R_1 = ln 9/3."""
    weight = doubles([9.0, 3.0])
    loss = RewardLoss(bradley_terry, centring=0.01)
    found = minimised(lambda r: loss(torch.stack([r, r.flip(0)]), weight=weight).total, 2)
    # Both sum to 0, so the centring term takes nothing from the difference.
    np.testing.assert_allclose(found, [np.log(3) / 2, -np.log(3) / 2], atol=1e-7)


def test_plackett_luce_finds_what_scipy_finds():
    orders, counts = np.array(list(ORDERS)), np.array(list(ORDERS.values()), float)
    loss = RewardLoss(plackett_luce, centring=0.05)

    def in_numpy(rewards):
        values = [plackett_luce_in_numpy(rewards[order]) + 0.05 * (2 * rewards.mean()) ** 2 for order in orders]
        return (counts * values).sum() / counts.sum()

    rows = torch.from_numpy(orders)
    ours = minimised(lambda rewards: loss(rewards[rows], weight=doubles(counts)).total, 3)
    theirs = optimize.minimize(in_numpy, np.zeros(3), method="BFGS", options={"gtol": 1e-10}).x
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    assert np.ptp(ours) > 0.5


def test_the_whole_loss():
    """Objective with margins by the judge's gap, centring and weights, by hand."""
    rewards = np.array([[1.0, 0.5], [0.0, 2.0], [3.0, -1.0]])
    gap, weight = np.array([0.1, 0.2, 0.5]), np.array([2.0, 0.0, 1.0])
    loss = RewardLoss(bradley_terry, centring=0.5, margin_per_gap=3.0)
    terms = loss(doubles(rewards), weight=doubles(weight), gap=doubles(gap))
    objective = np.log1p(np.exp(-(rewards[:, 0] - rewards[:, 1] - 3 * gap)))
    centre = rewards.sum(1) ** 2
    np.testing.assert_allclose(terms.parts["objective"].numpy(), objective, rtol=1e-12)
    np.testing.assert_allclose(terms.parts["centring"].numpy(), centre, rtol=1e-12)
    values = objective + 0.5 * centre
    assert terms.total.item() == pytest.approx((2 * values[0] + values[2]) / 3, rel=1e-12)
    assert loss(doubles(rewards), gap=doubles(gap)).total.item() == pytest.approx(values.mean(), rel=1e-12)


NAN = torch.tensor([[0.0, 1.0], [0.0, float("nan")]])
WRONG = {
    "NaN": (bradley_terry, {}, NAN, {}, "1 of 4 are NaN or infinite, the first that of mask 1 in list 1"),
    "a ranking for pairs": (bradley_terry, {}, torch.zeros(1, 3), {}, "rankings of 3 masks; choose reward_loss=plack"),
    "one mask": (plackett_luce, {}, torch.zeros(2, 1), {}, "at least 2 masks"),
    "no gap": (bradley_terry, {"margin_per_gap": 1.0}, torch.zeros(1, 2), {}, "judge's gap of each pair"),
    "weights": (bradley_terry, {}, torch.zeros(2, 2), {"weight": torch.ones(3)}, r"weight of the shape of the lists"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_said(case):
    objective, options, rewards, more, message = WRONG[case]
    with pytest.raises(ValueError, match=message):
        RewardLoss(objective, **options)(rewards, **more)


def test_a_loss_that_cannot_be_is_refused_when_it_is_built():
    with pytest.raises(ValueError, match="margin_per_gap=0 for an objective of rankings but got 2"):
        RewardLoss(partial(plackett_luce), margin_per_gap=2.0)
    with pytest.raises(ValueError, match="centring to be finite and at least 0"):
        RewardLoss(bradley_terry, centring=-1.0)
    with pytest.raises(ValueError, match=r"rewards \[images, masks\], best first"):
        plackett_luce(torch.zeros(3))
    with pytest.raises(ValueError, match="margin of the shape of chosen"):
        bradley_terry(torch.zeros(2), torch.zeros(2), margin=torch.zeros(1))

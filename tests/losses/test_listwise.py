"""Plackett–Luce over rankings of K masks, worked out position by position in float64 NumPy."""

from functools import partial
from itertools import permutations

import numpy as np
import pytest
import torch

from segdpo import Anchor, PairScores, PreferenceLoss
from segdpo.losses import anchors, listwise

BETAS = pytest.mark.parametrize("beta", [0.125, 1.0, 10.0])
SIZES = pytest.mark.parametrize("size", [2, 3, 5])

# Dyadic, so that float32 holds them and their differences exactly. Columns are masks, best first.
POLICY = np.array(
    [
        [-0.25, -0.5, -1.5, -2.0, -4.0],  # the policy agrees with the ranking
        [-4.0, -2.0, -1.5, -0.5, -0.25],  # … has it the wrong way round
        [-1.0, -1.0, -1.0, -1.0, -1.0],  # … likes all the same
        [0.0, -1e4, -0.5, -1e4, 1e4],  # … is far out
        [1e4, 1e4, 0.0, -1e4, -1e4],
    ]
)
REFERENCE = np.array(
    [
        [-0.5, -0.75, -0.5, -1.0, -2.0],
        [-0.5, -0.75, -0.5, -1.0, -2.0],
        [-1.0, -1.0, -1.0, -1.0, -1.0],
        [0.0, 0.0, 0.0, 0.0, 0.0],
        [-0.25, 0.0, 0.0, 0.0, 0.25],
    ]
)


def ranking(scores, dtype=torch.float64):
    """PairScores of a ranking; chosen and rejected are its best and its worst mask."""
    ranked = torch.as_tensor(scores, dtype=dtype)
    return PairScores(ranked[:, 0], margin=ranked[:, 0] - ranked[:, -1], ranked=ranked)


def plackett_luce_in_numpy(gain):
    """−Σ_k log(e^{g_k} / Σ_{j≥k} e^{g_j}) = Σ_k log Σ_{j≥k} e^{g_j − g_k}, by two loops.

    Each sum holds e^0; beyond e^{700} the greatest exponent is taken out first.
    """
    values = np.zeros(len(gain))
    for row, g in enumerate(gain):
        for k in range(len(g)):
            above = g[k:] - g[k]
            greatest = above.max()
            values[row] += greatest + np.log(np.sum(np.exp(above - greatest)))
    return values


def plackett_luce_gradient_in_numpy(gain):
    """∂/∂g_m = Σ_{k≤m} (softmax of g_k … g_K at m) − 1: mask m competes in every choice up to its own."""
    gradient = np.full(gain.shape, -1.0)
    for row, g in enumerate(gain):
        for k in range(len(g)):
            competing = np.exp(g[k:] - g[k:].max())
            gradient[row, k:] += competing / competing.sum()
    return gradient


@SIZES
@BETAS
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_value(size, beta, dtype, tolerance):
    """The loss of each list; numbers of the size of the largest β·gain cancel in it, and set the absolute accuracy."""
    policy, reference = POLICY[:, :size], REFERENCE[:, :size]
    gain = beta * (policy - reference)
    values = listwise.plackett_luce(ranking(policy, dtype), ranking(reference, dtype), beta=beta)
    assert values.dtype == dtype
    allowed = tolerance * (np.abs(plackett_luce_in_numpy(gain)) + np.maximum(1.0, np.abs(gain).max(1)))
    assert (np.abs(values.double().numpy() - plackett_luce_in_numpy(gain)) <= allowed).all()
    assert (values >= 0).all()


@SIZES
@BETAS
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-14), (torch.float32, 1e-6)])
def test_gradient(size, beta, dtype, tolerance):
    """β times the gradient in the gain, finite at ±10⁴ as well.

    A softmax of numbers of size g is known to about g times the rounding error.
    """
    policy = torch.tensor(POLICY[:, :size], dtype=dtype, requires_grad=True)
    reference = REFERENCE[:, :size]
    listwise.plackett_luce(ranking(policy, dtype), ranking(reference, dtype), beta=beta).sum().backward()
    assert policy.grad.isfinite().all()
    gain = beta * (POLICY[:, :size] - reference)
    allowed = beta * tolerance * np.maximum(10.0, np.abs(gain).max(1, keepdims=True))
    assert (np.abs(policy.grad.double().numpy() - beta * plackett_luce_gradient_in_numpy(gain)) <= allowed).all()


@pytest.mark.parametrize(
    ("gains", "literal"),
    [
        ([0, 0], 0.693147180559945309),  # ln 2!
        ([5, 5, 5], 1.791759469228055001),  # ln 3!: all orders alike, wherever they stand
        ([0, 0, 0, 0, 0], 4.787491742782045994),  # ln 5!
        # weights 3, 2, 1: P = 3/6 · 2/3, so ln 3
        (np.log([3, 2, 1]), 1.098612288668109691),
        # weights 1, 2, 3: P = 1/6 · 2/5, so ln 15
        (np.log([1, 2, 3]), 2.708050201102210066),
        # weights 8, 4, 2, 1, 1: P = 8/16 · 4/8 · 2/4 · 1/2 = 1/16
        (np.log([8, 4, 2, 1, 1]), 2.772588722239781238),
    ],
)
def test_literals(gains, literal):
    """Weights e^{βr} drawn from an urn without putting back; β = 1 and a reference of zeros."""
    gains = np.array([gains], dtype=np.float64)
    value = listwise.plackett_luce(ranking(gains), ranking(np.zeros_like(gains)), beta=1.0)
    np.testing.assert_allclose(value.numpy(), [literal], rtol=1e-12)


@SIZES
def test_probabilities_of_all_orders_sum_to_one(size):
    """e^{−loss} is the probability of an order, and some order must come."""
    gains = np.array(list(permutations([0.5, -1.25, 2.0, 0.0, -0.75][:size])))
    values = listwise.plackett_luce(ranking(gains), ranking(np.zeros_like(gains)), beta=1.5)
    np.testing.assert_allclose(np.exp(-values.numpy()).sum(), 1.0, rtol=1e-12)


@SIZES
def test_a_constant_of_the_list_cancels(size):
    """Scores are known up to a constant of their list, under the policy and under the reference."""
    policy, reference = POLICY[:3, :size], REFERENCE[:3, :size]
    shift = np.array([[3.0], [-64.0], [0.5]])
    plain = listwise.plackett_luce(ranking(policy), ranking(reference), beta=2.0)
    shifted = listwise.plackett_luce(ranking(policy + shift), ranking(reference - 2 * shift), beta=2.0)
    np.testing.assert_allclose(shifted.numpy(), plain.numpy(), rtol=1e-12)


def test_best_mask_peels_off():
    """Peeling the best mask off leaves the loss of the rest: PL(1…K) = choice of the best + PL(2…K)."""
    gain = POLICY[:2] - REFERENCE[:2]
    whole = listwise.plackett_luce(ranking(gain), ranking(np.zeros_like(gain)), beta=1.0).numpy()
    rest = listwise.plackett_luce(ranking(gain[:, 1:]), ranking(np.zeros_like(gain[:, 1:])), beta=1.0).numpy()
    best = np.log(np.exp(gain).sum(1)) - gain[:, 0]
    np.testing.assert_allclose(whole, best + rest, rtol=1e-12)


def test_in_a_preference_loss_with_an_anchor():
    """One value a list; an anchor reads the best mask of each."""
    policy, reference = POLICY[:3], REFERENCE[:3]
    loss = PreferenceLoss(
        partial(listwise.plackett_luce, beta=1.0), anchors={"nll": Anchor(weight=0.5, term=anchors.nll)}
    )
    terms = loss(ranking(policy), ranking(reference))
    expected = plackett_luce_in_numpy(policy - reference)
    np.testing.assert_allclose(terms.parts["objective"].numpy(), expected, rtol=1e-12)
    np.testing.assert_array_equal(terms.parts["nll"].numpy(), -policy[:, 0])
    np.testing.assert_allclose(terms.total.item(), np.mean(expected - 0.5 * policy[:, 0]), rtol=1e-12)

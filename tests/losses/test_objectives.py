"""Every objective against its formula, worked out here in float64 NumPy without a look at the code under test.

`scores.h` is h = (s⁺_θ − s⁻_θ) − (s⁺_ref − s⁻_ref); `scores.r_chosen`, `scores.r_rejected` are r± = s±_θ − s±_ref.
"""

from functools import partial

import numpy as np
import pytest

from segdpo.losses import objectives

BETAS = pytest.mark.parametrize("beta", [0.125, 1.0, 10.0])


@BETAS
def test_dpo(agrees, scores, minus_log_sigmoid, beta):
    """−log σ(βh)."""
    agrees(partial(objectives.dpo, beta=beta), scores, minus_log_sigmoid(beta * scores.h))


@BETAS
@pytest.mark.parametrize("epsilon", [0.1, 0.45])
def test_dpo_with_label_smoothing(agrees, scores, minus_log_sigmoid, beta, epsilon):
    """cDPO: a share ε of the labels is flipped, so (1−ε)·[−log σ(βh)] + ε·[−log σ(−βh)]."""
    x = beta * scores.h
    expected = (1 - epsilon) * minus_log_sigmoid(x) + epsilon * minus_log_sigmoid(-x)
    agrees(partial(objectives.dpo, beta=beta, label_smoothing=epsilon), scores, expected)


@BETAS
@pytest.mark.parametrize("epsilon", [0.1, 0.4])
def test_robust_dpo(agrees, scores, minus_log_sigmoid, beta, epsilon):
    """[−(1−ε) log σ(βh) + ε log σ(−βh)] / (1−2ε).

    With log σ(−x) = log σ(x) − x the numerator is −(1−2ε) log σ(x) − εx, so the loss is −log σ(x) − εx/(1−2ε): negative
    for a wide enough margin, as an unbiased estimate of a small number must sometimes be.
    """
    x = beta * scores.h
    expected = minus_log_sigmoid(x) - epsilon * x / (1 - 2 * epsilon)
    agrees(partial(objectives.robust_dpo, beta=beta, label_smoothing=epsilon), scores, expected, absolute=1.0)


@BETAS
def test_ipo(agrees, scores, beta):
    """(h − 1/(2β))²."""
    agrees(partial(objectives.ipo, beta=beta), scores, np.square(scores.h - 0.5 / beta))


@BETAS
def test_slic(agrees, scores, beta):
    """max(0, 1 − βh)."""
    agrees(partial(objectives.slic, beta=beta), scores, np.maximum(0.0, 1.0 - beta * scores.h))


@BETAS
@pytest.mark.parametrize("lam", [0.01, 0.5, 0.99])
def test_bdpo(agrees, scores, minus_log_sigmoid, beta, lam):
    """−log σ(βr⁺ − β log(λe^{r⁻} + 1−λ)).

    The mixture λπ_θ + (1−λ)π_ref stands for the policy on the rejected mask; over π_ref it is λe^{r⁻} + (1−λ). e^{10⁴}
    overflows, so for r⁻ > 0 the greater part is taken out: r⁻ + log(λ + (1−λ)e^{−r⁻}).
    """
    r = scores.r_rejected
    inside = np.where(r > 0, lam + (1 - lam) * np.exp(-np.abs(r)), lam * np.exp(-np.abs(r)) + 1 - lam)
    mixed = np.maximum(r, 0.0) + np.log(inside)
    expected = minus_log_sigmoid(beta * (scores.r_chosen - mixed))
    agrees(partial(objectives.bdpo, beta=beta, lam=lam), scores, expected, absolute=10.0)


@BETAS
@pytest.mark.parametrize("lam", [0.5, 50.0])
def test_dpop(agrees, scores, minus_log_sigmoid, beta, lam):
    """−log σ(β[h − λ max(0, −r⁺)]): the penalty stands inside β and counts only where the chosen mask fell."""
    fallen = np.maximum(0.0, -scores.r_chosen)
    agrees(partial(objectives.dpop, beta=beta, lam=lam), scores, minus_log_sigmoid(beta * (scores.h - lam * fallen)))


@BETAS
def test_cpo(agrees, scores, minus_log_sigmoid, beta):
    """−log σ(β(s⁺ − s⁻)), the reference left out."""
    expected = minus_log_sigmoid(beta * (scores.chosen - scores.rejected))
    agrees(partial(objectives.cpo, beta=beta), scores, expected)


@BETAS
@pytest.mark.parametrize("gamma", [0.0, 0.5])
def test_simpo(agrees, scores, minus_log_sigmoid, beta, gamma):
    """−log σ(β(s̄⁺ − s̄⁻) − γ): γ stands outside β."""
    expected = minus_log_sigmoid(beta * (scores.chosen - scores.rejected) - gamma)
    agrees(partial(objectives.simpo, beta=beta, gamma=gamma), scores, expected)


@pytest.mark.parametrize("lam", [0.0, 0.25, 1.0])
def test_orpo(agrees, likelihoods, lam):
    """−s̄⁺ − λ log σ(log-odds(y⁺) − log-odds(y⁻)), log-odds(y) = log p/(1−p), p = e^{s̄}.

    With odds o = p/(1−p), σ(log o⁺ − log o⁻) = o⁺/(o⁺ + o⁻), so −log σ = log(1 + o⁻/o⁺), and
    log(o⁻/o⁺) = s̄⁻ − s̄⁺ + log(1 − e^{s̄⁺}) − log(1 − e^{s̄⁻}).
    """
    plus, minus = likelihoods.chosen, likelihoods.rejected
    odds_against = minus - plus + np.log(-np.expm1(plus)) - np.log(-np.expm1(minus))
    expected = -plus + lam * np.logaddexp(0.0, odds_against)
    agrees(partial(objectives.orpo, lam=lam), likelihoods, expected)


@pytest.mark.parametrize(
    ("chosen", "rejected", "expected"),
    [
        (0.0, -1.0, 0.0),  # certain of the chosen mask: infinite odds for it, nothing left to lose
        (0.0, 0.0, np.log(2)),  # certain of both: even odds
    ],
)
def test_orpo_of_a_certain_mask(agrees, four_scores, chosen, rejected, expected):
    """log(1 − e^0) = −∞ must not reach the loss or its gradient."""
    agrees(partial(objectives.orpo, lam=1.0), four_scores([(chosen, rejected, 0, 0)]), [expected], absolute=1.0)


def test_orpo_of_a_certain_rejected_mask_is_finite(four_scores):
    """The formula gives infinity; the value has to stay finite."""
    policy, _ = four_scores([(-1e4, 0, 0, 0), (-1, 0, 0, 0)]).pairs()
    values = objectives.orpo(policy, lam=1.0)
    assert values.isfinite().all()
    assert (values > -policy.chosen).all()


@BETAS
@pytest.mark.parametrize(("scale", "rate"), [(0.9, 0.4), (1.0, 0.25)])
def test_arpo(agrees, ordinary, minus_log_sigmoid, beta, scale, rate):
    """−log σ(β(s̄⁺ − τs̄⁻)), τ = min(1, scale·e^{rate·z} − 1), z = abs(s̄⁺ − s̄⁻).

    By default τ(0) = −0.1 and τ = 1 from z = ln(2/0.9)/0.4 ≈ 2.0 on; from there it is cpo.
    """
    z = np.abs(ordinary.chosen - ordinary.rejected)
    tau = np.minimum(1.0, scale * np.exp(rate * z) - 1.0)
    expected = minus_log_sigmoid(beta * (ordinary.chosen - tau * ordinary.rejected))
    term = partial(objectives.arpo, beta=beta, scale=scale, rate=rate)
    agrees(term, ordinary, expected, absolute=beta)


@BETAS
@pytest.mark.parametrize(
    "rows",
    [
        [(-0.25, -4.0), (-3.0, -0.5), (-60.0, -0.5), (-0.5, -60.0)],
        [(-300.0, -0.5), (-0.5, -300.0), (-1e4, -0.5), (-0.5, -1e4)],
    ],
    ids=["apart", "far_apart"],
)
def test_arpo_of_masks_apart_is_cpo(agrees, four_scores, minus_log_sigmoid, beta, rows):
    """τ = 1 long before e^{0.4z} overflows, so neither value nor gradient may know of the overflow."""
    four = four_scores([(*row, 0, 0) for row in rows])
    agrees(partial(objectives.arpo, beta=beta), four, minus_log_sigmoid(beta * (four.chosen - four.rejected)))


def test_arpo_defaults(four_scores, minus_log_sigmoid):
    """z = 0 gives τ = 0.9 − 1 = −0.1; s⁺ = s⁻ = −1 and β = 1 give −log σ(−1 − 0.1)."""
    policy, _ = four_scores([(-1, -1, 0, 0)]).pairs()
    np.testing.assert_allclose(objectives.arpo(policy, beta=1.0), minus_log_sigmoid([-1.1]), rtol=1e-12)


def test_sft(agrees, scores):
    """NLL(y⁺) = −s⁺."""
    agrees(objectives.sft, scores, -scores.chosen)


@pytest.mark.parametrize(
    ("term", "row", "literal"),
    [
        # σ(0) = ½: ln 2
        (partial(objectives.dpo, beta=3.0), (-1, -2, -1, -2), 0.693147180559945309),
        # h = 1.25 − 0.5 = ¾: ln(1 + e^−1.5) with β = 2
        (partial(objectives.dpo, beta=2.0), (-0.25, -1.5, -0.5, -1.0), 0.201413277982752410),
        # the same pair, ε = 0.1: ln(1 + e^−1.5) + 0.1·1.5
        (partial(objectives.dpo, beta=2.0, label_smoothing=0.1), (-0.25, -1.5, -0.5, -1.0), 0.351413277982752410),
        # … and robust: ln(1 + e^−1.5) − 0.1·1.5/0.8
        (
            partial(objectives.robust_dpo, beta=2.0, label_smoothing=0.1),
            (-0.25, -1.5, -0.5, -1.0),
            0.013913277982752410,
        ),
        # (¾ − 1)²
        (partial(objectives.ipo, beta=0.5), (-0.25, -1.5, -0.5, -1.0), 0.0625),
        # 1 − ½·¾
        (partial(objectives.slic, beta=0.5), (-0.25, -1.5, -0.5, -1.0), 0.625),
        # r⁺ = ln 3, r⁻ = ln 5, λ = ½: mixture 3, so σ(ln 3 − ln 3) = ½
        (partial(objectives.bdpo, beta=1.0, lam=0.5), (np.log(3), np.log(5), 0, 0), 0.693147180559945309),
        # h = 0, r⁺ = −1, λ = 2, β = 1: ln(1 + e²)
        (partial(objectives.dpop, beta=1.0, lam=2.0), (-2, -2, -1, -1), 2.126928011042972496),
        # β·1 = ln 3: σ = ¾, ln 4/3
        (partial(objectives.cpo, beta=np.log(3)), (-1, -2, 0, 0), 0.287682072451780927),
        # 2·1 − 2 = 0
        (partial(objectives.simpo, beta=2.0, gamma=2.0), (-1, -2, 0, 0), 0.693147180559945309),
        # p⁺ = ½ (odds 1), p⁻ = ¼ (odds ⅓): ln 2 + ln(1 + ⅓) = ln 8/3
        (partial(objectives.orpo, lam=1.0), (-np.log(2), -np.log(4), 0, 0), 0.980829253011726236),
        # τ = 1·e^{ln(3/2)·1} − 1 = ½, so s⁺ − τs⁻ = −1 + 1 = 0
        (partial(objectives.arpo, beta=1.0, scale=1.0, rate=np.log(1.5)), (-1, -2, 0, 0), 0.693147180559945309),
    ],
)
def test_literals(agrees, four_scores, term, row, literal):
    """Values that a reader can check with a pencil."""
    agrees(term, four_scores([row]), [literal], absolute=1.0)

"""Every anchor, and every whole loss with one, against its formula in float64 NumPy.

r± = s±_θ − s±_ref and h = r⁺ − r⁻ come from the fixtures; nothing here looks at the code under test.
"""

from functools import partial

import numpy as np
import pytest
import torch

from segdpo import Anchor, PreferenceLoss
from segdpo.losses import anchors, objectives

BETAS = pytest.mark.parametrize("beta", [0.125, 1.0, 10.0])
TAUS = pytest.mark.parametrize("tau", [0.0, 1.0, 8.0])


def sums(four):
    """(s⁺_θ + s⁺_ref, s⁻_ref + s⁻_θ), the two numbers that the linear and the log-sum-exp anchor read."""
    return four.chosen + four.reference_chosen, four.reference_rejected + four.rejected


def test_linear(agrees, scores):
    """−(s⁺_θ + s⁺_ref) + (s⁻_ref + s⁻_θ)."""
    chosen, rejected = sums(scores)
    agrees(anchors.linear, scores, rejected - chosen)


def test_log_sum_exp(agrees, scores):
    """log(e^{−(s⁺_θ + s⁺_ref)} + e^{s⁻_ref + s⁻_θ}).

    With m the greater exponent and d ≥ 0 the distance to the other, m + log(1 + e^{−d}): finite where e^{10⁴} is not.
    """
    chosen, rejected = sums(scores)
    greater, distance = np.maximum(-chosen, rejected), np.abs(chosen + rejected)
    agrees(anchors.log_sum_exp, scores, greater + np.log1p(np.exp(-distance)), absolute=1.0)


@TAUS
def test_hinge(agrees, scores, tau):
    """max(0, τ − s⁺_θ) + max(0, s⁻_θ + τ)."""
    expected = np.maximum(0.0, tau - scores.chosen) + np.maximum(0.0, scores.rejected + tau)
    agrees(partial(anchors.hinge, tau=tau), scores, expected)


@BETAS
@TAUS
def test_calibrated_hinge(agrees, scores, beta, tau):
    """max(0, τ − βr⁺): blind to the rejected mask."""
    expected = np.maximum(0.0, tau - beta * scores.r_chosen)
    agrees(partial(anchors.calibrated_hinge, beta=beta, tau=tau), scores, expected)


@BETAS
def test_calibration(agrees, scores, beta):
    """(r⁺ − 1/(2β))² + (r⁻ + 1/(2β))²; c = ½ of the published loss is the anchor's weight."""
    target = 0.5 / beta
    expected = (scores.r_chosen - target) ** 2 + (scores.r_rejected + target) ** 2
    agrees(partial(anchors.calibration, beta=beta), scores, expected)


def test_nll(agrees, scores):
    """NLL(y⁺) = −s⁺_θ."""
    agrees(anchors.nll, scores, -scores.chosen)


def test_hold_returns_the_kl_to_the_reference():
    """α·KL has its α from the Anchor and its KL from the scores; the term itself is the identity, gradient too."""
    kl = torch.tensor([0.0, 0.25, 1e4], dtype=torch.float64, requires_grad=True)
    values = anchors.hold(kl)
    values.sum().backward()
    assert values.tolist() == [0.0, 0.25, 1e4]
    assert kl.grad.tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("term", "row", "literal"),
    [
        # −(−1 − 3) + (−4 − 2)
        (anchors.linear, (-1, -2, -3, -4), -2.0),
        # exponents −(0) = 0 and 0: ln 2
        (anchors.log_sum_exp, (1, -2, -1, 2), 0.693147180559945309),
        # exponents 1 − 0 and −1: 1 + ln(1 + e^−2), and ln(1 + e²) = 2 + ln(1 + e^−2)
        (anchors.log_sum_exp, (-1, -1, 0, 0), 2.126928011042972496 - 1),
        # (2 − 1½) + (−½ + 2)
        (partial(anchors.hinge, tau=2.0), (1.5, -0.5, 0, 0), 2.0),
        # 1 − 2·(−1 + 1¼)
        (partial(anchors.calibrated_hinge, beta=2.0, tau=1.0), (-1, 9, -1.25, 9), 0.5),
        # r⁺ = 1, r⁻ = −2, target ½: ¼ + 2¼
        (partial(anchors.calibration, beta=1.0), (-1, -4, -2, -2), 2.5),
        (anchors.nll, (-0.25, -7, 0, 0), 0.25),
    ],
)
def test_literals(agrees, four_scores, term, row, literal):
    """Values that a reader can check with a pencil."""
    agrees(term, four_scores([row]), [literal], absolute=1.0)


WHOLE = {
    # name: (objective, anchor's term, its α, objective in NumPy, anchor in NumPy); f = FourScores, nls(x) = −log σ(x)
    "linear_anchor": (
        partial(objectives.dpo, beta=0.5),
        Anchor(weight=0.25, term=anchors.linear),
        lambda f, nls: nls(0.5 * f.h),
        lambda f: f.reference_rejected + f.rejected - f.chosen - f.reference_chosen,
    ),
    "lse_anchor": (
        partial(objectives.dpo, beta=0.5),
        Anchor(weight=2.0, term=anchors.log_sum_exp),
        lambda f, nls: nls(0.5 * f.h),
        lambda f: np.logaddexp(-f.chosen - f.reference_chosen, f.reference_rejected + f.rejected),
    ),
    "hinge_anchor": (
        partial(objectives.dpo, beta=0.5),
        Anchor(weight=10.0, term=partial(anchors.hinge, tau=3.0)),
        lambda f, nls: nls(0.5 * f.h),
        lambda f: np.maximum(0, 3 - f.chosen) + np.maximum(0, f.rejected + 3),
    ),
    "cal_hinge": (
        partial(objectives.dpo, beta=0.5),
        Anchor(weight=0.5, term=partial(anchors.calibrated_hinge, beta=0.5, tau=1.0)),
        lambda f, nls: nls(0.5 * f.h),
        lambda f: np.maximum(0, 1 - 0.5 * f.r_chosen),
    ),
    "cal_dpo": (  # the published one: β only in the targets, −log σ(h) without it
        partial(objectives.dpo, beta=1.0),
        Anchor(weight=0.5, term=partial(anchors.calibration, beta=0.25)),
        lambda f, nls: nls(f.h),
        lambda f: (f.r_chosen - 2) ** 2 + (f.r_rejected + 2) ** 2,
    ),
    "dpo_nll": (
        partial(objectives.dpo, beta=0.5),
        Anchor(weight=1.5, term=anchors.nll),
        lambda f, nls: nls(0.5 * f.h),
        lambda f: -f.chosen,
    ),
    "cpo": (
        partial(objectives.cpo, beta=0.5),
        Anchor(weight=1.0, term=anchors.nll),
        lambda f, nls: nls(0.5 * (f.chosen - f.rejected)),
        lambda f: -f.chosen,
    ),
    "arpo": (
        partial(objectives.arpo, beta=0.5),
        Anchor(weight=0.5, term=anchors.nll),
        lambda f, nls: nls(
            0.5 * (f.chosen - np.minimum(1, 0.9 * np.exp(0.4 * np.abs(f.chosen - f.rejected)) - 1) * f.rejected)
        ),
        lambda f: -f.chosen,
    ),
}


@pytest.mark.parametrize("name", WHOLE)
def test_whole_losses(ordinary, minus_log_sigmoid, name):
    """total = mean over pairs of objective + α·anchor; parts = both, per pair, without α."""
    objective, anchor, objective_in_numpy, anchor_in_numpy = WHOLE[name]
    terms = PreferenceLoss(objective, anchors={"anchor": anchor})(*ordinary.pairs())
    pushed, held = objective_in_numpy(ordinary, minus_log_sigmoid), anchor_in_numpy(ordinary)
    assert set(terms.parts) == {"objective", "anchor"}
    np.testing.assert_allclose(terms.parts["objective"].numpy(), pushed, rtol=1e-12)
    np.testing.assert_allclose(terms.parts["anchor"].numpy(), held, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(terms.total.item(), np.mean(pushed + anchor.weight * held), rtol=1e-12)


def test_hold_anchor(ordinary, minus_log_sigmoid):
    """Dpo + α · KL, with the KL computed by the caller."""
    kl = np.array([0.0, 0.5, 0.25, 2.0, 1e-3])
    loss = PreferenceLoss(partial(objectives.dpo, beta=0.5), anchors={"hold": Anchor(weight=30.0, term=anchors.hold)})
    terms = loss(*ordinary.pairs(), kl_to_reference=torch.tensor(kl))
    np.testing.assert_array_equal(terms.parts["hold"].numpy(), kl)
    expected = np.mean(minus_log_sigmoid(0.5 * ordinary.h) + 30 * kl)
    np.testing.assert_allclose(terms.total.item(), expected, rtol=1e-12)


def test_two_anchors_and_weights(ordinary, minus_log_sigmoid):
    """Σ_p w_p (objective_p + Σ α·anchor_p) / Σ_p w_p, the setting of DESIGN's best run: dpo + NLL + hold."""
    kl, weight = np.array([0.0, 0.5, 0.25, 2.0, 1e-3]), np.array([1.0, 2.0, 0.0, 0.5, 3.0])
    loss = PreferenceLoss(
        partial(objectives.dpo, beta=3.0),
        anchors={"nll": Anchor(weight=0.5, term=anchors.nll), "hold": Anchor(weight=30.0, term=anchors.hold)},
    )
    terms = loss(*ordinary.pairs(), kl_to_reference=torch.tensor(kl), weight=torch.tensor(weight))
    per_pair = minus_log_sigmoid(3 * ordinary.h) - 0.5 * ordinary.chosen + 30 * kl
    np.testing.assert_allclose(terms.total.item(), (weight * per_pair).sum() / weight.sum(), rtol=1e-12)
    # Parts stay what they were: one unweighted value a pair.
    np.testing.assert_allclose(terms.parts["objective"].numpy(), minus_log_sigmoid(3 * ordinary.h), rtol=1e-12)
    np.testing.assert_array_equal(terms.parts["nll"].numpy(), -ordinary.chosen)


@pytest.mark.parametrize(
    "objective",
    [
        partial(objectives.robust_dpo, beta=0.5, label_smoothing=0.1),
        partial(objectives.ipo, beta=0.5),
        partial(objectives.slic, beta=0.5),
        partial(objectives.bdpo, beta=0.5, lam=0.5),
        partial(objectives.dpop, beta=0.5, lam=5.0),
        partial(objectives.simpo, beta=2.0, gamma=1.0),
        partial(objectives.orpo, lam=0.5),
        objectives.sft,
    ],
    ids=lambda term: getattr(term, "func", term).__name__,
)
def test_objective_alone(ordinary, objective):
    """Without anchors the total is the plain mean of the one part (whose values have their own golden tests)."""
    terms = PreferenceLoss(objective)(*ordinary.pairs())
    assert list(terms.parts) == ["objective"]
    assert terms.parts["objective"].shape == ordinary.h.shape
    np.testing.assert_allclose(terms.total.item(), np.mean(terms.parts["objective"].numpy()), rtol=1e-12)

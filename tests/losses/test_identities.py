"""What the papers say about their losses: limits, special cases, where a loss falls silent; and how terms combine."""

import math
from functools import partial

import pytest
import torch

from segdpo import Anchor, PairScores, PreferenceLoss
from segdpo.losses import anchors, listwise, objectives


def value_and_gradients(term, leaves):
    """Values and the gradients at s⁺_θ and s⁻_θ, from four leaf tensors."""
    policy, reference = PairScores(*leaves[:2]), PairScores(*leaves[2:])
    values = term(policy, reference)
    return values.detach(), *torch.autograd.grad(values.sum(), leaves[:2])


def f64(*numbers):
    return torch.tensor(numbers, dtype=torch.float64)


def same(left, right, tolerance=1e-12):
    for one, other in zip(left, right, strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


def at_margin(*margins, beta=1.0):
    """Leaves s⁺_θ, s⁻_θ, s⁺_ref, s⁻_ref with βh = the given numbers."""
    chosen = f64(*margins) / beta - 1.0
    rest = [torch.full_like(chosen, -1.0) for _ in range(3)]
    return [chosen.requires_grad_(), rest[0].requires_grad_(), *rest[1:]]


BETAS = pytest.mark.parametrize("beta", [0.1, 1.0, 10.0])


@BETAS
@pytest.mark.parametrize(
    "special_case",
    [
        listwise.plackett_luce,  # a ranking of two masks
        partial(objectives.dpo, label_smoothing=0.0),
        partial(objectives.robust_dpo, label_smoothing=0.0),
        partial(objectives.dpop, lam=0.0),
    ],
    ids=["plackett_luce_of_two", "cdpo_without_noise", "robust_without_noise", "dpop_without_penalty"],
)
def test_special_cases_of_dpo(ordinary, special_case, beta):
    leaves = ordinary.tensors(grad=True)
    expected = value_and_gradients(partial(objectives.dpo, beta=beta), leaves)
    same(value_and_gradients(partial(special_case, beta=beta), leaves), expected)


def test_plackett_luce_of_an_explicit_ranking_of_two_is_dpo(ordinary):
    leaves = ordinary.tensors(grad=True)
    policy, reference = (
        PairScores(plus, minus, ranked=torch.stack([plus, minus], dim=1))
        for plus, minus in ((leaves[0], leaves[1]), (leaves[2], leaves[3]))
    )
    values = listwise.plackett_luce(policy, reference, beta=2.0)
    gradients = torch.autograd.grad(values.sum(), leaves[:2])
    same((values.detach(), *gradients), value_and_gradients(partial(objectives.dpo, beta=2.0), leaves))


@BETAS
def test_dpo_at_the_reference_is_ln_2(beta):
    """σ(0) = ½, and d/dh −log σ(βh) = −β σ(−βh) = −β/2: half of the full pull, from the first step on."""
    values, chosen, rejected = value_and_gradients(partial(objectives.dpo, beta=beta), at_margin(0.0, 0.0))
    same((values, chosen, rejected), [f64(x, x) for x in (math.log(2), -beta / 2, beta / 2)])


@BETAS
def test_bdpo_between_its_limits(ordinary, minus_log_sigmoid, beta):
    """λ → 0: the mixture is the reference, log 1 = 0, and −log σ(βr⁺) is left; λ → 1: the policy, and dpo is left."""
    leaves = ordinary.tensors(grad=True)
    only_chosen = torch.tensor(minus_log_sigmoid(beta * ordinary.r_chosen))
    values, _, rejected = value_and_gradients(partial(objectives.bdpo, beta=beta, lam=1e-12), leaves)
    same((values, rejected), (only_chosen, f64(0, 0, 0, 0, 0)), tolerance=1e-8)
    expected = value_and_gradients(partial(objectives.dpo, beta=beta), leaves)
    same(value_and_gradients(partial(objectives.bdpo, beta=beta, lam=1 - 1e-12), leaves), expected, tolerance=1e-8)


def test_bdpo_is_bounded_in_the_rejected_mask(four_scores):
    """However far s⁻ falls, the mixture keeps 1 − λ: the loss stays above −log σ(βr⁺ − β log(1−λ))."""
    policy, reference = four_scores([(-1, -1e2, -1, -1), (-1, -1e4, -1, -1)]).pairs()
    values = objectives.bdpo(policy, reference, beta=1.0, lam=0.5)
    same([values], [f64(math.log(1.5), math.log(1.5))])


@BETAS
def test_slic_is_silent_beyond_the_margin(beta):
    values, chosen, rejected = value_and_gradients(
        partial(objectives.slic, beta=beta), at_margin(0.5, 1.5, 40.0, beta=beta)
    )
    same([values], [f64(0.5, 0, 0)])
    same([chosen, rejected], [f64(-beta, 0, 0), f64(beta, 0, 0)])


@BETAS
def test_ipo_has_its_minimum_at_its_target(beta):
    """d/dh (h − 1/(2β))² = 2(h − 1/(2β)): 0 at the target, pulling h back to it from either side."""
    values, chosen, rejected = value_and_gradients(
        partial(objectives.ipo, beta=beta), at_margin(0.25, 0.5, 0.75, beta=beta)
    )
    slope = f64(-0.5, 0, 0.5) / beta
    same([values, chosen, rejected], [f64(1, 0, 1) / (4 * beta) ** 2, slope, -slope])


def test_hinge_is_silent_on_both_sides_once_met():
    """On log-odds, s⁺ > τ and s⁻ < −τ are required; each side has a gradient of its own."""
    chosen = torch.tensor([3.0, 3.0, 1.0], dtype=torch.float64, requires_grad=True)
    rejected = torch.tensor([-3.0, -1.0, -3.0], dtype=torch.float64, requires_grad=True)
    values = anchors.hinge(PairScores(chosen, rejected), tau=2.0)
    gradients = torch.autograd.grad(values.sum(), (chosen, rejected))
    assert values.tolist() == [0.0, 1.0, 1.0]
    assert [gradient.tolist() for gradient in gradients] == [[0.0, 0.0, -1.0], [0.0, 1.0, 0.0]]


def test_linear_has_the_same_gradient_everywhere(scores):
    _, chosen, rejected = value_and_gradients(anchors.linear, scores.tensors(grad=True))
    assert (chosen == -1).all()
    assert (rejected == 1).all()


def test_log_sum_exp_bounds_its_branches(scores):
    """max(a, b) ≤ log(eᵃ + eᵇ) ≤ max(a, b) + ln 2, and the gap closes as the branches part."""
    policy, reference = scores.pairs()
    greater = torch.maximum(-(policy.chosen + reference.chosen), reference.rejected + policy.rejected)
    gap = anchors.log_sum_exp(policy, reference) - greater
    apart = (policy.chosen + reference.chosen + reference.rejected + policy.rejected).abs()
    assert (gap >= 0).all()
    assert (gap <= math.log(2) + 1e-12).all()
    assert (gap[apart > 40] < 1e-12).all()
    assert apart.max() > 40


def test_log_sum_exp_shares_its_pull(scores):
    """The gradients at s⁺ and s⁻ are minus and plus a softmax of the two faults: they never exceed 1 together."""
    _, chosen, rejected = value_and_gradients(anchors.log_sum_exp, scores.tensors(grad=True))
    same([rejected - chosen], [torch.ones_like(chosen)])
    assert (chosen <= 0).all()
    assert (rejected >= 0).all()


@pytest.fixture
def loss():
    return PreferenceLoss(
        partial(objectives.dpo, beta=0.5),
        anchors={"hinge": Anchor(weight=2.0, term=partial(anchors.hinge, tau=1.0))},
    )


def taken(leaves, index):
    """Policy and reference of a selection of pairs."""
    plus, minus, reference_plus, reference_minus = (leaf[torch.as_tensor(index)] for leaf in leaves)
    return PairScores(plus, minus), PairScores(reference_plus, reference_minus)


@pytest.mark.parametrize(
    ("weight", "repeated"), [([1, 2, 1], [0, 1, 1, 2]), ([1, 0, 1], [0, 2]), ([3, 3, 3], [0, 1, 2])]
)
def test_a_pairs_weight_is_how_often_it_is_there(ordinary, loss, weight, repeated):
    leaves = ordinary.tensors(grad=True)
    weighted = loss(*taken(leaves, [0, 1, 2]), weight=f64(*weight)).total
    listed = loss(*taken(leaves, repeated)).total
    same([weighted], [listed])
    same(torch.autograd.grad(weighted, leaves[:2]), torch.autograd.grad(listed, leaves[:2]))


def test_the_order_of_pairs_does_not_matter(ordinary, loss):
    leaves, order = ordinary.tensors(), [3, 0, 4, 1, 2]
    straight, permuted = loss(*taken(leaves, range(5))), loss(*taken(leaves, order))
    same([permuted.total], [straight.total])
    for name, part in straight.parts.items():
        assert permuted.parts[name].tolist() == part[order].tolist()


def test_weight_0_watches_without_influence(ordinary, loss):
    leaves = ordinary.tensors(grad=True)
    watched = PreferenceLoss(loss.objective, {**loss.anchors, "watched": Anchor(weight=0.0, term=anchors.linear)})
    plain, seen = loss(*taken(leaves, range(5))), watched(*taken(leaves, range(5)))
    same([seen.parts["watched"]], [anchors.linear(*taken(leaves, range(5))).detach()])
    assert not seen.parts["watched"].requires_grad
    assert seen.total.item() == plain.total.item()
    same(torch.autograd.grad(seen.total, leaves[:2]), torch.autograd.grad(plain.total, leaves[:2]), tolerance=0)


@pytest.mark.parametrize(
    "names",
    [
        ("watched", "pulls"),
        ("pulls", "watched"),
    ],
)
def test_watching_first_takes_no_gradient_from_what_comes_after(names):
    """`chosen` is computed when first read; a watched term that reads it first must not detach it."""
    logits = torch.tensor([[[0.5, -0.25], [1.0, -2.0]]], requires_grad=True).unsqueeze(0)
    chosen, rejected = torch.tensor([[[1, 0], [1, 1]]]), torch.tensor([[[1, 1], [0, 1]]])
    terms = {"watched": Anchor(weight=0.0, term=anchors.nll), "pulls": Anchor(weight=3.0, term=anchors.nll)}
    gradients = []
    for anchors_of_loss in ({"pulls": terms["pulls"]}, {name: terms[name] for name in names}):
        loss = PreferenceLoss(partial(objectives.cpo, beta=1.0), anchors=anchors_of_loss)
        gradients += torch.autograd.grad(loss.on_logits(logits, None, chosen, rejected).total, logits)
    same([gradients[1]], [gradients[0]], tolerance=0)


def test_no_gradient_reaches_the_reference():
    """Logits of a reference that was not frozen are constants to the loss, in s⁺_ref and in s⁻_ref."""
    logits = torch.tensor([[[[0.5, -0.25], [1.0, -2.0]]]], requires_grad=True)
    reference = torch.tensor([[[[0.25, 0.5], [-1.0, 2.0]]]], requires_grad=True)
    chosen, rejected = torch.tensor([[[1, 0], [1, 1]]]), torch.tensor([[[1, 1], [0, 1]]])
    loss = PreferenceLoss(partial(objectives.dpop, beta=1.0, lam=1.0), {"lse": Anchor(1.0, anchors.log_sum_exp)})
    loss.on_logits(logits, reference, chosen, rejected).total.backward()
    assert logits.grad.abs().sum() > 0
    assert reference.grad is None

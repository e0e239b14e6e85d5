"""PreferenceLoss on logits: what is scored, how often, under which reference, and with which gradient."""

from functools import partial

import pytest
import torch

from segdpo import Anchor, PairScores, PreferenceLoss, Score, kl_to_reference, score_pairs
from segdpo.losses import anchors, objectives
from segdpo.losses import preference as preference_loss
from segdpo.scores import pairs

DPO = partial(objectives.dpo, beta=2.0)


@pytest.fixture
def batch():
    policy = torch.randn(2, 3, 6, 6, requires_grad=True)
    chosen, rejected = torch.randint(0, 3, (2, 2, 6, 6))
    return policy, torch.randn(2, 3, 6, 6), chosen, rejected


def test_on_logits_is_scoring_by_hand(batch):
    policy, reference, chosen, rejected = batch
    image, disagreement = Score(), Score(region="disagreement")
    loss = PreferenceLoss(
        DPO,
        anchors={"lse": Anchor(0.5, anchors.log_sum_exp, score=image), "hold": Anchor(3.0, anchors.hold)},
        score=disagreement,
    )
    terms = loss.on_logits(policy, reference, chosen, rejected)
    on = {
        score: [score_pairs(logits, chosen, rejected, region=score.region) for logits in (policy, reference)]
        for score in (image, disagreement)
    }
    parts = {
        "objective": DPO(*on[disagreement]),
        "lse": anchors.log_sum_exp(*on[image]),
        "hold": kl_to_reference(policy, reference, chosen, rejected),
    }
    torch.testing.assert_close(terms.parts, parts)
    torch.testing.assert_close(terms.total, (parts["objective"] + 0.5 * parts["lse"] + 3 * parts["hold"]).mean())


def test_each_distinct_score_is_computed_once(batch, monkeypatch):
    calls = []
    plain = pairs.scores_by

    def spy(backend, logits, chosen, rejected, measures, wants, **options):
        calls.append((logits, len(measures), list(wants)))
        return plain(backend, logits, chosen, rejected, measures, wants, **options)

    monkeypatch.setattr(pairs, "scores_by", spy)
    disagreement = Score(region="disagreement")
    loss = PreferenceLoss(
        DPO,
        anchors={
            "nll": Anchor(1.0, anchors.nll, score=Score()),
            "lse": Anchor(1.0, anchors.log_sum_exp, score=Score()),
            "linear": Anchor(1.0, anchors.linear),
        },
        score=disagreement,
    )
    loss.on_logits(*batch)
    assert loss.scores == (disagreement, Score())
    # Both scores in one pass under each network, the reference first; the anchors read s⁺ on the image alone.
    assert [(len(logits), count, wants) for logits, count, wants in calls] == [(2, 2, [False, True])] * 2
    assert [logits.requires_grad for logits, *_ in calls] == [False, True]


def test_cached_reference_scores_give_the_same_loss(batch):
    policy, reference, chosen, rejected = batch
    loss = PreferenceLoss(DPO, anchors={"lse": Anchor(1.0, anchors.log_sum_exp, score=Score(region="disagreement"))})
    live = loss.on_logits(policy, reference, chosen, rejected)
    cache = {score: scores.detach() for score, scores in loss.score_logits(reference, chosen, rejected).items()}
    torch.testing.assert_close(loss.on_logits(policy, cache, chosen, rejected).total, live.total)
    plain = PreferenceLoss(DPO)
    cached = plain.on_logits(policy, score_pairs(reference, chosen, rejected), chosen, rejected)
    torch.testing.assert_close(cached.total, plain.on_logits(*batch).total)


@pytest.mark.parametrize("name", ["cpo", "simpo", "orpo", "arpo", "sft"])
def test_losses_without_a_reference_never_touch_one(name, batch, monkeypatch):
    policy, reference, chosen, rejected = batch
    hyperparameters = {"cpo": {"beta": 1.0}, "simpo": {"beta": 1.0, "gamma": 0.5}, "orpo": {"lam": 0.1}}
    hyperparameters |= {"arpo": {"beta": 1.0}, "sft": {}}
    loss = PreferenceLoss(partial(getattr(objectives, name), **hyperparameters[name]))
    assert not loss.needs_reference
    expected = loss.on_logits(policy, None, chosen, rejected).total
    unusable = torch.full_like(reference, float("nan"))
    torch.testing.assert_close(loss.on_logits(policy, unusable, chosen, rejected).total, expected)


def test_the_reference_gets_no_gradient(batch):
    policy, reference, chosen, rejected = batch
    reference.requires_grad_()
    loss = PreferenceLoss(DPO, anchors={"hold": Anchor(1.0, anchors.hold), "lse": Anchor(1.0, anchors.log_sum_exp)})
    loss.on_logits(policy, reference, chosen, rejected).total.backward()
    assert reference.grad is None
    assert policy.grad.abs().sum() > 0


def test_what_needs_what():
    assert PreferenceLoss(DPO).needs_reference
    assert not PreferenceLoss(DPO).needs_reference_logits
    held = PreferenceLoss(objectives.sft, anchors={"hold": Anchor(1.0, anchors.hold)})
    assert held.needs_reference
    assert held.needs_reference_logits


def test_drift_is_the_old_name_of_kl_to_reference(batch):
    def hold(drift: torch.Tensor) -> torch.Tensor:
        return drift

    with pytest.warns(DeprecationWarning, match="argument drift of the term hold .* kl_to_reference"):
        old = PreferenceLoss(DPO, anchors={"hold": Anchor(2.0, hold)})
    new = PreferenceLoss(DPO, anchors={"hold": Anchor(2.0, anchors.hold)})
    assert old.needs_reference_logits
    assert old.on_logits(*batch).total.equal(new.on_logits(*batch).total)
    scores, kl = PairScores(torch.zeros(2), torch.zeros(2)), torch.tensor([0.5, 1.0])
    with pytest.warns(DeprecationWarning, match="drift= .* kl_to_reference"):
        terms = new(scores, scores, drift=kl)
    assert terms.parts["hold"].equal(kl)
    assert terms.total.equal(new(scores, scores, kl_to_reference=kl).total)


def test_a_given_region_travels_with_the_batch(batch):
    policy, reference, chosen, rejected = batch
    left = torch.zeros(2, 6, 6, dtype=torch.bool)
    left[..., :3] = True
    loss = PreferenceLoss(DPO, score=Score(region="given"))
    whole = PreferenceLoss(DPO)
    torch.testing.assert_close(
        loss.on_logits(policy, reference, chosen, rejected, region_mask=left).total,
        whole.on_logits(policy[..., :3], reference[..., :3], chosen[..., :3], rejected[..., :3]).total,
    )


def test_many_pairs_an_image_are_pairs_of_repeated_images(batch):
    policy, reference, chosen, rejected = batch
    loss = PreferenceLoss(DPO, anchors={"hold": Anchor(1.0, anchors.hold), "nll": Anchor(1.0, anchors.nll)})
    index = torch.tensor([1, 0, 1])
    chosen, rejected = chosen[index], rejected[index].flip(1)
    valid = torch.rand(2, 6, 6) > 0.2
    shared = loss.on_logits(policy, reference, chosen, rejected, image_index=index, valid=valid)
    repeated = loss.on_logits(policy[index], reference[index], chosen, rejected, valid=valid[index])
    torch.testing.assert_close(shared.parts, repeated.parts)
    ours, theirs = (torch.autograd.grad(terms.total, policy, retain_graph=True)[0] for terms in (shared, repeated))
    torch.testing.assert_close(ours, theirs)


def test_weights_of_zero_everywhere_give_zero(batch):
    policy, *rest = batch
    terms = PreferenceLoss(DPO).on_logits(policy, *rest, weight=torch.zeros(2))
    terms.total.backward()
    assert terms.total.item() == 0.0
    assert (policy.grad == 0).all()


def test_terms_of_other_repositories_are_functions_too():
    def spread(policy: PairScores, *, power: float) -> torch.Tensor:
        return policy.margin.abs() ** power

    scores = PairScores(torch.tensor([-1.0, -2.0]), torch.tensor([-3.0, -5.0]))
    assert PreferenceLoss(partial(spread, power=2.0))(scores).parts["objective"].tolist() == [4.0, 9.0]
    assert preference_loss.PreferenceLoss is PreferenceLoss


def test_a_term_that_takes_any_keyword():
    def loose(policy: PairScores, **options: float) -> torch.Tensor:
        return policy.margin * options["scale"]

    scores = PairScores(torch.tensor([-1.0]), torch.tensor([-3.0]))
    assert PreferenceLoss(partial(loose, scale=3.0))(scores).total.item() == 6.0

"""The choice of a kernel, and how to override it."""

from functools import partial

import pytest
import torch

from segdpo import Anchor, PreferenceLoss, Score, pair_index
from segdpo.kernels import dispatch
from segdpo.losses import anchors, objectives


def test_the_choice():
    logits = torch.zeros(1, 2, 3, 3)
    assert dispatch.choose_backend(logits) == "sparse"
    assert dispatch.choose_backend(logits, wants_chosen=True, index=True) == "sparse"
    assert set(dispatch.BACKENDS) == {"sparse", "triton", "reference"}


@pytest.mark.parametrize("backend", ["sparse", "reference"])
def test_a_loss_takes_a_backend_and_an_index(backend):
    policy, reference = torch.randn(2, 2, 3, 6, 6).unbind()
    chosen, rejected = torch.randint(0, 3, (2, 2, 6, 6), dtype=torch.uint8)
    loss = PreferenceLoss(
        partial(objectives.dpo, beta=1.0),
        anchors={"hinge": Anchor(1.0, partial(anchors.hinge, tau=1.0), score=Score())},
        score=Score(region="disagreement"),
    )
    expected = loss.on_logits(policy.double(), reference.double(), chosen, rejected, backend="reference")
    index = pair_index(chosen, rejected)
    terms = loss.on_logits(policy, reference, chosen, rejected, index=index, backend=backend)
    torch.testing.assert_close(terms.total.double(), expected.total, rtol=1e-5, atol=1e-5)
    assert loss.reads_chosen.policy == {Score()}
    assert loss.reads_chosen.reference == frozenset()


def test_who_reads_the_chosen_score():
    watched = Anchor(0.0, anchors.nll, score=Score(reduction="sum"))
    loss = PreferenceLoss(
        partial(objectives.dpo, beta=1.0),
        anchors={"lse": Anchor(1.0, anchors.log_sum_exp, score=Score()), "watched": watched},
        score=Score(region="disagreement"),
    )
    assert loss.reads_chosen.policy == {Score()}  # what is only watched needs no gradient
    assert loss.reads_chosen.reference == {Score()}

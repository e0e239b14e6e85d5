"""Which kernel scores: the choice, overridden; and the compiled one, compiled once."""

import subprocess
import sys
from functools import partial

import pytest
import torch

from segdpo import Anchor, PreferenceLoss, Score, pair_index
from segdpo.kernels import dispatch
from segdpo.losses import anchors, objectives

CODE = """
import functools, torch
from torch._dynamo.utils import counters
# What is compiled when does not depend on the compiler's last stage, which takes most of the time.
torch.compile = functools.partial(torch.compile, backend="aot_eager")
import segdpo

def one(images, channels, size, pairs):
    torch.manual_seed(size)
    logits = torch.randn(images, channels, size, size, requires_grad=True)
    chosen, rejected = torch.randint(0, max(2, channels), (2, pairs, size, size), dtype=torch.uint8)
    index = torch.arange(pairs) % images
    results = []
    for backend in ("compiled", "reference"):
        scores = segdpo.score_pairs(logits, chosen, rejected, image_index=index, backend=backend)
        results.append((scores.margin, torch.autograd.grad(scores.margin.sum(), logits)[0]))
    torch.testing.assert_close(*results)

for channels in (1, 3):
    one(2, channels, 8, 4)
graphs = counters["stats"]["unique_graphs"]
# More sizes than the eight for which torch would compile anew before it gives up.
for number in range(12):
    for channels in (1, 3, 5):
        one(2 + number % 3, channels, 5 + number, 4 + number)
print(counters["stats"]["unique_graphs"] - graphs)
"""


def test_the_compiled_form_is_compiled_once_whatever_the_sizes():
    run = subprocess.run([sys.executable, "-W", "ignore", "-c", CODE], capture_output=True, text=True, check=False)
    assert run.stdout.strip() == "0", run.stderr[-3000:]


def test_the_choice():
    logits = torch.zeros(1, 2, 3, 3)
    assert dispatch.choose_backend(logits) == "sparse"
    assert dispatch.choose_backend(logits, wants_chosen=True, index=True) == "sparse"
    assert set(dispatch.BACKENDS) == {"sparse", "compiled", "triton", "reference"}


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

"""Under autocast (bf16, fp16), torch.compile and torch.use_deterministic_algorithms."""

import subprocess
import sys
from functools import partial

import pytest
import torch

from segdpo import Anchor, PreferenceLoss, Score, score_pairs
from segdpo.losses import anchors, objectives

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here"))]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_step_under_autocast(channels, dtype, device):
    network = torch.nn.Conv2d(2, channels, 3, padding=1).to(device)
    images = torch.randn(2, 2, 8, 8, device=device)
    chosen, rejected = torch.randint(0, max(2, channels), (2, 2, 8, 8), device=device, dtype=torch.uint8)
    loss = PreferenceLoss(
        partial(objectives.dpo, beta=1.0),
        anchors={"hinge": Anchor(1.0, partial(anchors.hinge, tau=1.0)), "hold": Anchor(1.0, anchors.hold)},
        score=Score(region="disagreement"),
    )
    with torch.autocast(device, dtype=dtype):
        logits = network(images)
        terms = loss.on_logits(logits, logits.detach(), chosen, rejected)
    assert logits.dtype == dtype
    assert terms.total.dtype == torch.float32
    torch.testing.assert_close(terms.parts["objective"].cpu(), torch.full((2,), 2.0).log())
    terms.total.backward()
    assert network.weight.grad.isfinite().all()
    exact = loss.on_logits(logits.float(), logits.detach().float(), chosen, rejected)
    torch.testing.assert_close(terms.total, exact.total, rtol=1e-3, atol=1e-3)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@pytest.mark.parametrize("channels", [1, 5])
def test_a_gpu_gives_the_numbers_of_a_cpu(channels):
    policy, reference = torch.randn(2, 2, channels, 16, 16)
    chosen, rejected = torch.randint(0, max(2, channels), (2, 3, 16, 16), dtype=torch.uint8)
    loss = PreferenceLoss(partial(objectives.dpo, beta=1.0), anchors={"lse": Anchor(1.0, anchors.log_sum_exp)})
    results = []
    for device in ("cpu", "cuda"):
        logits = policy.to(device).requires_grad_()
        index = torch.tensor([0, 1, 1], device=device)
        terms = loss.on_logits(logits, reference.to(device), chosen.to(device), rejected.to(device), image_index=index)
        results.append((terms.total.cpu(), torch.autograd.grad(terms.total, logits)[0].cpu()))
    torch.testing.assert_close(*results)


CODE = """
from functools import partial
import torch, segdpo

loss = segdpo.PreferenceLoss(
    partial(segdpo.objectives.dpo, beta=1.0),
    anchors={
        "hinge": segdpo.Anchor(1.0, partial(segdpo.anchors.hinge, tau=1.0), score=segdpo.Score()),
        "hold": segdpo.Anchor(1.0, segdpo.anchors.hold),
    },
    score=segdpo.Score(region="disagreement", reduction="class_balanced"),
)

def step(policy, reference, chosen, rejected, index):
    return loss.on_logits(policy, reference, chosen, rejected, image_index=index).total

compiled = torch.compile(step, backend="aot_eager", fullgraph=True)
for channels in (1, 3):
    for pairs in (None, 4):
        torch.manual_seed(channels)
        policy, reference = torch.randn(2, 2, channels, 6, 6)
        chosen, rejected = torch.randint(0, max(2, channels), (2, pairs or 2, 6, 6), dtype=torch.uint8)
        chosen[:, 0] = 255
        index = None if pairs is None else torch.tensor([0, 1, 1, 0])
        totals, gradients = [], []
        for function in (step, compiled):
            logits = policy.clone().requires_grad_()
            total = function(logits, reference, chosen, rejected, index)
            totals.append(total.detach())
            gradients += torch.autograd.grad(total, logits)
        torch.testing.assert_close(*totals)
        torch.testing.assert_close(*gradients)
print("same")
"""


def test_one_graph_and_the_same_numbers():
    # In a process of its own: the shape checks of the other tests cannot be traced.
    run = subprocess.run([sys.executable, "-W", "ignore", "-c", CODE], capture_output=True, text=True, check=False)
    assert run.stdout.strip() == "same", run.stderr[-3000:]


@pytest.fixture
def _deterministic():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("_deterministic")
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("shared", [False, True])
def test_the_gradient_of_the_margin_is_the_plain_paths(channels, shared):
    logits = torch.randn(2, channels, 5, 7, requires_grad=True)
    pairs = 3 if shared else 2
    chosen, rejected = torch.randint(0, max(2, channels), (2, pairs, 5, 7), dtype=torch.uint8)
    options = {"image_index": torch.tensor([0, 1, 1])} if shared else {}
    gradients = []
    for backend in ("auto", "reference"):
        scores = score_pairs(logits, chosen, rejected, backend=backend, **options)
        gradients.append(torch.autograd.grad(scores.margin.sum(), logits)[0])
    torch.testing.assert_close(gradients[0], gradients[1])

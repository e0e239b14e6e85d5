"""In a training loop under autocast, on the CPU in bf16 and fp16, and on a GPU where there is one."""

from functools import partial

import pytest
import torch

from segdpo import Anchor, PreferenceLoss, Score
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

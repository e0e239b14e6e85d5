"""Under torch.compile: one graph without a break, and the same numbers."""

import subprocess
import sys

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

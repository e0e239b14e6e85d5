"""Likelihood displacement on two pixels, and what anchors do about it.

A network with one weight w sees two pixels, with features 1 and ½: its logits are z = (w, w/2). Both masks call the
first pixel foreground; they differ in the second, which the chosen mask calls background and the rejected one
foreground. (A shared weight is what a real network has everywhere: no pixel moves alone.)

    s⁺ = log σ(w) + log σ(−w/2)          s⁻ = log σ(w) + log σ(w/2)          s⁺ − s⁻ = −w/2

Training starts at w = 0.4. There s⁺ still grows with w, up to its best at w* ≈ 0.84. Yet the margin −w/2 grows
when w falls, and dpo depends on nothing else. So it lowers w without a limit, past 0: the first pixel, on which both
masks agreed, becomes background, and the chosen mask becomes less and less likely. That is likelihood displacement. An
anchor that reads s⁺ itself stops it; the linear anchor does not, since the rejected mask can fall without a limit.
"""

from functools import partial

import pytest
import torch

from segdpo import Anchor, PreferenceLoss, Score
from segdpo.losses import anchors, objectives

pytestmark = pytest.mark.untraced  # thousands of steps over the same lines
FEATURES = torch.tensor([1.0, 0.5]).reshape(1, 1, 1, 2)
CHOSEN = torch.tensor([[[1, 0]]])
REJECTED = torch.tensor([[[1, 1]]])
START = 0.4
DPO = partial(objectives.dpo, beta=0.5)
HINGE = Anchor(2.0, partial(anchors.hinge, tau=0.5))


def chosen_gain(w: float) -> float:
    """s⁺(w) − s⁺(start), written out."""

    def log_sigmoid(z: float) -> float:
        return torch.nn.functional.logsigmoid(torch.tensor(z, dtype=torch.float64)).item()

    return sum(sign * (log_sigmoid(at) + log_sigmoid(-at / 2)) for sign, at in ((1, w), (-1, START)))


def train(loss: PreferenceLoss, steps: int = 400, rate: float = 0.5) -> list[float]:
    """Plain gradient descent on w; return w after every step."""
    w = torch.tensor(START, requires_grad=True)
    reference = START * FEATURES
    path = []
    for _ in range(steps):
        (slope,) = torch.autograd.grad(loss.on_logits(w * FEATURES, reference, CHOSEN, REJECTED).total, w)
        with torch.no_grad():
            w -= rate * slope
        path.append(w.item())
    return path


def loss_with(anchor: Anchor | None) -> PreferenceLoss:
    return PreferenceLoss(DPO, anchors={"anchor": anchor} if anchor else {}, score=Score(reduction="sum"))


def test_dpo_widens_the_margin_and_loses_the_chosen_mask():
    path = train(loss_with(None))
    assert all(after < before for before, after in zip([START, *path], path, strict=False))  # −w/2 only ever grows
    assert path[-1] < -5  # the pixel on which both masks agreed is now background
    assert chosen_gain(path[-1]) < -5  # nats lost by the chosen mask, which started at −1.3
    assert chosen_gain(train(loss_with(None), steps=1200)[-1]) < chosen_gain(path[-1]) - 1  # and it goes on


@pytest.mark.parametrize(
    "anchor",
    [HINGE, Anchor(2.0, anchors.log_sum_exp), Anchor(2.0, anchors.nll)],
    ids=["hinge", "log_sum_exp", "nll"],
)
def test_an_anchor_that_reads_the_chosen_mask_keeps_it(anchor):
    path = train(loss_with(anchor))
    gains = [chosen_gain(w) for w in path]
    assert min(gains) > 0  # never less likely than under the reference
    assert abs(path[-1] - path[-2]) < 1e-5  # converged


def test_a_linear_anchor_diverges():
    """Its slope in w is the same everywhere: steps never shrink, and w falls in a straight line."""
    path = train(loss_with(Anchor(2.0, anchors.linear)), steps=1000)
    last_steps = {round(before - after, 3) for before, after in zip(path[-50:], path[-49:], strict=False)}
    assert last_steps == {0.5}  # rate 0.5 · weight 2 · slope 1/2
    assert chosen_gain(path[-1]) < -400

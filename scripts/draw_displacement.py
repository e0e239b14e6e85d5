"""Draw likelihood displacement on two pixels, with and without anchors (the case of tests/test_displacement.py).

python scripts/draw_displacement.py docs/figures/displacement.svg
"""

import argparse
from functools import partial

import matplotlib as mpl
import torch
from torch import Tensor

from segdpo import Anchor, PreferenceLoss, Score, anchors, objectives, score_pairs

START, STEPS, RATE = 0.4, 300, 0.5
FEATURES = torch.tensor([1.0, 0.5]).reshape(1, 1, 1, 2)
CHOSEN, REJECTED = torch.tensor([[[1, 0]]]), torch.tensor([[[1, 1]]])
CASES: dict[str, dict[str, Anchor]] = {
    "dpo": {},
    "dpo + linear": {"linear": Anchor(2.0, anchors.linear)},
    "dpo + log-sum-exp": {"lse": Anchor(2.0, anchors.log_sum_exp)},
    "dpo + hinge": {"hinge": Anchor(2.0, partial(anchors.hinge, tau=0.5))},
}


def train(terms: dict[str, Anchor]) -> tuple[list[float], list[float]]:
    """Train the one weight by gradient descent; return s⁺_θ − s⁺_ref and h after every step."""
    loss = PreferenceLoss(partial(objectives.dpo, beta=0.5), anchors=terms, score=Score(reduction="sum"))
    weight, before = torch.tensor(START, requires_grad=True), START * FEATURES

    def score(logits: Tensor) -> tuple[Tensor, Tensor]:
        scores = score_pairs(logits, CHOSEN, REJECTED, reduction="sum")
        return scores.chosen, scores.margin

    gains, margins = [], []
    for _ in range(STEPS):
        (slope,) = torch.autograd.grad(loss.on_logits(weight * FEATURES, before, CHOSEN, REJECTED).total, weight)
        with torch.no_grad():
            weight -= RATE * slope
            gain, margin = (after - start for after, start in zip(score(weight * FEATURES), score(before), strict=True))
        gains.append(gain.item())
        margins.append(margin.item())
    return gains, margins


def main() -> None:
    """Draw both curves of every case into one file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", help="where to write, e.g. docs/figures/displacement.svg")
    path = parser.parse_args().path
    mpl.use("Agg")
    # Makes the file reproducible.
    mpl.rcParams |= {"svg.hashsalt": "segdpo", "font.size": 10, "axes.spines.top": False, "axes.spines.right": False}
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    for name, terms in CASES.items():
        gains, margins = train(terms)
        # Two anchors give the same line; dashes show both.
        style = "--" if "hinge" in name else "-"
        left.plot(gains, style, label=name)
        right.plot(margins, style, label=name)
    left.axhline(0, color="0.7", linewidth=0.8, zorder=0)
    left.set(title=r"chosen gain  $s^+_\theta - s^+_{ref}$", xlabel="step", ylabel="nats", ylim=(-6, 1))
    right.set(title=r"margin gained over the reference  $h$", xlabel="step", ylabel="nats", ylim=(-1, 8))
    left.legend(frameon=False, loc="lower left")
    figure.savefig(path, metadata={"Date": None} if path.endswith(".svg") else None, dpi=120)
    print(f"wrote {path}")


if __name__ == "__main__":
    main()

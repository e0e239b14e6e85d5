"""Draw the curves of the pages in docs/methods: each loss on the embedded images, with two learning rates.

python scripts/draw_methods.py docs/figures
python scripts/draw_methods.py docs/figures --loss hinge_anchor dpo

120 images of 32², seed 0. The reference is trained on the masks of one simulated annotator; a pair is the best against
the worst of four annotators' masks by IoU with gold. IoU is that of 30 other images.
"""

import argparse
import copy
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import numpy as np
import torch
import torch.nn.functional as F
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from torch import Tensor, nn

import segdpo
from segdpo.data import Shapes
from segdpo.preferences import iou as judge
from segdpo.reports import plots
from segdpo.scores import RegionName

CONF = Path(__file__).parents[1] / "conf"
IMAGES, UNSEEN, SIZE, BATCH = 120, 30, 32, 8
REFERENCE_STEPS, STEPS, EVERY = 100, 60, 3
RATES = {"1e-4": {"color": plots.BLUE}, "1e-3": {"color": plots.VERMILION, "linestyle": "--"}}
LOSSES = [
    *("sft", "dpo", "ipo", "slic", "lse_anchor", "linear_anchor", "hinge_anchor", "dpo_nll", "hold_anchor"),
    *("hold_nll_anchor", "dpop", "cal_dpo", "cpo", "simpo", "plackett_luce"),
]
REGIONS: dict[str, RegionName] = {"gain": "image", "margin": "disagreement"}
PANELS = {
    "iou": "IoU with gold, unseen images",
    "gain": "chosen gain, nats a pixel",
    "margin": "margin h, nats a pixel",
}

Curves = dict[str, dict[int, float]]


@dataclass(frozen=True)
class Masked:
    """Images [N, 3, S, S], masks of one annotator and gold [N, S, S], and masks of all, best first [N, K, S, S]."""

    images: Tensor
    drawn: Tensor
    gold: Tensor
    ranked: Tensor


def embedded() -> tuple[Masked, Masked]:
    """Return the images to train on and the unseen ones."""
    shapes = Shapes(count=IMAGES + UNSEEN, size=SIZE)
    records = [shapes[number] for number in range(len(shapes))]
    rng = np.random.default_rng(0)
    ranked = [r.masks[np.argsort(-judge(r, r.masks, rng), kind="stable")] for r in records]
    images = torch.stack([torch.from_numpy(r.image).permute(2, 0, 1) / 255 - 0.5 for r in records])
    drawn, gold = np.stack([r.masks[0] for r in records]), np.stack([np.asarray(r.gold) for r in records])
    parts = (images, *(torch.from_numpy(masks) for masks in (drawn, gold, np.stack(ranked))))
    return Masked(*(part[:IMAGES] for part in parts)), Masked(*(part[IMAGES:] for part in parts))


def batches(steps: int, seed: int) -> Iterator[Tensor]:
    """Yield the numbers of random images."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        yield torch.randperm(IMAGES, generator=generator)[:BATCH]


def train_reference(network: nn.Module, data: Masked) -> nn.Module:
    """Train on the masks of one annotator; BatchNorm rests afterwards."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    for index in batches(REFERENCE_STEPS, seed=0):
        optimizer.zero_grad()
        F.binary_cross_entropy_with_logits(network(data.images[index])[:, 0], data.drawn[index].float()).backward()
        optimizer.step()
    return network.eval().requires_grad_(False)


def score(logits: Tensor, ranked: Tensor, region: RegionName) -> segdpo.PairScores:
    """Score the ranking of each image."""
    return segdpo.score_ranking(logits, ranked, region=region)


def train(
    name: str, loss: segdpo.PreferenceLoss, reference: nn.Module, rate: str, data: Masked, unseen: Masked
) -> Curves:
    """Train a policy with one loss; return what each panel shows, by step."""
    policy = copy.deepcopy(reference).requires_grad_(True)
    with torch.no_grad():
        before = reference(data.images)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=float(rate))
    curves: Curves = {panel: {} for panel in PANELS}
    for step, index in enumerate(batches(STEPS, seed=1)):
        if step % EVERY == 0:
            curves["iou"][step] = iou(policy, unseen)
        logits, ranked, old = policy(data.images[index]), data.ranked[index], before[index]
        best, worst = ranked[:, 0], ranked[:, -1]
        if name == "plackett_luce":
            terms = loss(score(logits, ranked, "disagreement"), score(old, ranked, "disagreement"))
        else:
            terms = loss.on_logits(logits, old, best, worst)
        optimizer.zero_grad()
        terms.total.backward()
        optimizer.step()
        with torch.no_grad():
            for panel, region in REGIONS.items():
                now, then = (segdpo.score_pairs(each, best, worst, region=region) for each in (logits, old))
                value = now.chosen - then.chosen if panel == "gain" else now.margin - then.margin
                curves[panel][step] = value.mean().item()
    curves["iou"][STEPS] = iou(policy, unseen)
    return curves


@torch.no_grad()
def iou(network: nn.Module, data: Masked) -> float:
    """Return the mean IoU of the predicted masks with gold."""
    predicted, gold = network(data.images)[:, 0] > 0, data.gold.bool()
    return float(((predicted & gold).sum((1, 2)) / (predicted | gold).sum((1, 2))).mean())


def draw(found: dict[str, Curves], path: Path) -> None:
    """Draw the panels of one loss, a line for each learning rate."""
    figure = plots.new_figure(9, 2.6)
    for axes, (panel, title) in zip(figure.subplots(1, len(PANELS)), PANELS.items(), strict=True):
        for rate, style in RATES.items():
            axes.plot(*zip(*found[rate][panel].items(), strict=True), label=f"learning rate {rate}", **style)
        values = (value for curves in found.values() for value in curves[panel].values())
        axes.set(title=title, xlabel="step", ylim=(0, 1) if panel == "iou" else plots.range_without_outliers(values))
        axes.axhline(0, color="0.7", linewidth=0.8, zorder=0)
    figure.axes[0].legend(frameon=False, loc="upper right", fontsize=9)
    path.write_bytes(plots.to_bytes(figure, "svg"))


def main() -> None:
    """Draw FOLDER/curves_LOSS.svg of each loss."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where to write, e.g. docs/figures")
    parser.add_argument("--loss", nargs="+", default=LOSSES, help="names of conf/loss/; all of the pages by default")
    options = parser.parse_args()
    mpl.rcParams |= {"svg.hashsalt": "segdpo", "svg.fonttype": "none", "font.size": 10, "axes.titlesize": 10}
    mpl.rcParams |= {"axes.spines.top": False, "axes.spines.right": False}
    torch.manual_seed(0)
    data, unseen = embedded()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        configs = {name: compose("train", [f"loss={name}"]) for name in options.loss}
    network = instantiate(next(iter(configs.values())).model, classes=2)
    reference = train_reference(network, data)
    print(f"reference: IoU {iou(reference, unseen):.3f}")
    for name, config in configs.items():
        loss = instantiate(config.loss)
        found = {rate: train(name, loss, reference, rate, data, unseen) for rate in RATES}
        draw(found, options.folder / f"curves_{name}.svg")
        ends = ", ".join(f"{rate} {curves['iou'][STEPS]:.3f}" for rate, curves in found.items())
        print(f"{name}: IoU by learning rate {ends}", flush=True)


if __name__ == "__main__":
    main()

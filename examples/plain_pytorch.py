"""segdpo in a plain PyTorch loop: noisy masks, preferences between candidates, a better network.

A reference is trained on masks that are too large. Of two rough outlines of each cell a judge prefers the one nearer to
the truth; a policy learns from these preferences and never sees a true mask. No Lightning, no Hydra.

    python examples/plain_pytorch.py
"""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import segdpo


@dataclass
class History:
    """IoU with the truth on unseen images, and curves of the training."""

    reference_iou: float = 0.0
    policy_iou: float = 0.0
    curves: dict[str, list[float]] = field(default_factory=dict)

    def log(self, **values: float) -> None:
        """Append one step's values to their curves."""
        for name, value in values.items():
            self.curves.setdefault(name, []).append(value)


@dataclass
class Cells:
    """Noisy images [N,1,S,S] of one bright cell each, and masks of them, uint8 [N,S,S]."""

    images: Tensor
    truth: Tensor
    large: Tensor
    chosen: Tensor
    rejected: Tensor


def make_cells(count: int, generator: torch.Generator, size: int = 48) -> Cells:
    """Draw cells: images, true masks, masks that are too large, and two rough outlines of which a judge chose one."""
    row, column = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    centre = torch.rand(count, 2, 1, 1, generator=generator) * size * 0.4 + size * 0.3
    radius = torch.rand(count, 2, 1, 1, generator=generator) * size * 0.12 + size * 0.12
    distance = (((row - centre[:, 0]) / radius[:, 0]) ** 2 + ((column - centre[:, 1]) / radius[:, 1]) ** 2).sqrt()
    # A soft edge, so that the outline is uncertain.
    signal = torch.sigmoid((1.1 - distance) * 8)
    images = signal + 0.35 * torch.randn(count, size, size, generator=generator)
    # Rough outlines are scaled by a random factor; the one nearer to the truth is chosen.
    rough = torch.rand(2, count, 1, 1, generator=generator) * 0.7 + 0.75
    order = (rough.log().abs()).argsort(0)
    better, worse = rough.gather(0, order)
    masks = [(distance < edge).byte() for edge in (torch.ones(()), torch.tensor(1.35), better, worse)]
    return Cells(images[:, None], *masks)


def make_network() -> nn.Module:
    """Return a small fully convolutional network with one output channel."""
    layers: list[nn.Module] = []
    for inputs, outputs, dilation in ((1, 16, 1), (16, 16, 2), (16, 16, 4)):
        layers += [
            nn.Conv2d(inputs, outputs, 3, padding=dilation, dilation=dilation),
            nn.GroupNorm(4, outputs),
            nn.ReLU(),
        ]
    return nn.Sequential(*layers, nn.Conv2d(16, 1, 1))


def iou(network: nn.Module, images: Tensor, truth: Tensor) -> float:
    """Return the mean intersection over union with the truth."""
    with torch.no_grad():
        predicted = network(images)[:, 0] > 0
    both, either = (predicted & truth.bool()).sum((1, 2)), (predicted | truth.bool()).sum((1, 2))
    return float((both / either.clamp(min=1)).mean())


def batches(count: int, size: int, steps: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Yield the indices of random batches."""
    for _ in range(steps):
        yield torch.randint(count, (size,), generator=generator)


def run(loss: segdpo.PreferenceLoss, seed: int = 0, steps: int = 150, say: Callable[[str], None] = print) -> History:
    """Train a reference on masks that are too large, then a policy on preferences; compare both with the truth."""
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    cells, unseen = make_cells(200, generator), make_cells(100, generator)
    history = History()

    reference = make_network()
    optimizer = torch.optim.AdamW(reference.parameters(), lr=3e-3)
    for index in batches(len(cells.images), 16, steps, generator):
        logits = reference(cells.images[index])[:, 0]
        optimizer.zero_grad()
        F.binary_cross_entropy_with_logits(logits, cells.large[index].float()).backward()
        optimizer.step()

    policy = copy.deepcopy(reference)
    reference.requires_grad_(False)
    history.reference_iou = iou(reference, unseen.images, unseen.truth)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-3)
    for index in batches(len(cells.images), 16, steps, generator):
        with torch.no_grad():
            before = reference(cells.images[index])
        after = policy(cells.images[index])
        terms = loss.on_logits(after, before, cells.chosen[index], cells.rejected[index])
        optimizer.zero_grad()
        terms.total.backward()
        optimizer.step()
        gain, gained = gains(after, before, cells.chosen[index], cells.rejected[index])
        history.log(loss=terms.total.item(), chosen_gain=gain, margin=gained)
    history.policy_iou = iou(policy, unseen.images, unseen.truth)
    before_after = f"{history.reference_iou:.3f} → {history.policy_iou:.3f}"
    say(f"IoU with the truth, {len(unseen.images)} unseen images: {before_after}")
    gain = history.curves["chosen_gain"][-1]
    say(f"chosen gain {gain:+.3f} nats a pixel ({'displaced' if gain < 0 else 'no displacement'})")
    return history


@torch.no_grad()
def gains(after: Tensor, before: Tensor, chosen: Tensor, rejected: Tensor) -> tuple[float, float]:
    """Return the mean gain of the chosen masks over the reference, and the mean h, over the image."""
    policy = segdpo.score_pairs(after, chosen, rejected)
    reference = segdpo.score_pairs(before, chosen, rejected)
    gain = (policy.chosen - reference.chosen).mean().item()
    return gain, (policy.margin - reference.margin).mean().item()


def default_loss() -> segdpo.PreferenceLoss:
    """Return DPO on the disagreeing pixels with a hinge anchor on the whole image."""
    return segdpo.PreferenceLoss(
        partial(segdpo.objectives.dpo, beta=3.0),
        anchors={"hinge": segdpo.Anchor(10.0, partial(segdpo.anchors.hinge, tau=0.2), score=segdpo.Score())},
        score=segdpo.Score(region="disagreement"),
    )


if __name__ == "__main__":
    run(default_loss())

"""segdpo with a network of torchvision: several pairs of masks of one image share one forward pass.

python examples/torchvision_deeplab.py
"""

import copy
from functools import partial

import torch
from torch import Tensor, nn
from torchvision.models.segmentation import deeplabv3_mobilenet_v3_large

import segdpo

CLASSES = 5
# All pairs (chosen, rejected) of three masks that are ordered from best to worst.
PAIRS = ((0, 1), (0, 2), (1, 2))


def logits_of(network: nn.Module, images: Tensor) -> Tensor:
    """Return [images, classes, height, width]; torchvision wraps them in a dictionary."""
    logits: Tensor = network(images)["out"]
    return logits


def make_masks(images: int, size: int, generator: torch.Generator) -> Tensor:
    """Return three masks for each image, uint8 [images, 3, size, size], that differ from the first more and more."""
    best = torch.randint(CLASSES, (images, 1, size // 16, size // 16), generator=generator)
    best = best.repeat_interleave(16, 2).repeat_interleave(16, 3)
    shifted = [best.roll(shift, dims=3) for shift in (0, 4, 12)]
    return torch.cat(shifted, 1).to(torch.uint8)


def run(steps: int = 5, size: int = 64, seed: int = 0) -> list[float]:
    """Train for a few steps on random images; return the loss at each."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    policy = deeplabv3_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=CLASSES)
    # Policy and reference start equal only with BatchNorm and dropout in evaluation mode; then h = 0 and dpo = ln 2.
    policy.eval()
    reference = copy.deepcopy(policy).requires_grad_(False)

    loss = segdpo.PreferenceLoss(
        partial(segdpo.objectives.dpo, beta=3.0),
        anchors={"hold": segdpo.Anchor(weight=10.0, term=segdpo.anchors.hold)},
        score=segdpo.Score(region="disagreement", reduction="class_balanced"),
    )
    images, masks = torch.rand(2, 3, size, size, generator=generator), make_masks(2, size, generator)
    chosen = torch.cat([masks[:, better] for better, _ in PAIRS])
    rejected = torch.cat([masks[:, worse] for _, worse in PAIRS])
    image_index = torch.arange(len(images)).repeat(len(PAIRS))

    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-4)
    losses = []
    for _ in range(steps):
        with torch.no_grad():
            before = logits_of(reference, images)
        terms = loss.on_logits(logits_of(policy, images), before, chosen, rejected, image_index=image_index)
        optimizer.zero_grad()
        terms.total.backward()
        optimizer.step()
        losses.append(terms.total.item())
        print(f"loss {losses[-1]:.4f}")
    return losses


if __name__ == "__main__":
    run()

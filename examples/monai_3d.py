"""segdpo on volumes: MONAI's 3-D UNet, a ranking of three masks for each volume, a border that does not count.

pip install monai
python examples/monai_3d.py
"""

import copy
from functools import partial

import torch
from monai.networks.nets.unet import UNet
from torch import Tensor

import segdpo


def make_volumes(count: int, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return noisy balls [N,1,S,S,S] and rankings of three masks each, best first, uint8 [N,3,S,S,S]."""
    axes = torch.meshgrid(*[torch.arange(size)] * 3, indexing="ij")
    centre = torch.rand(count, 3, generator=generator) * size / 4 + size * 3 / 8
    distance = sum((axis - at[:, None, None, None]) ** 2 for axis, at in zip(axes, centre.T, strict=True))
    radius = size / 4
    ranking = torch.stack([(distance < (radius * scale) ** 2) for scale in (1.0, 1.2, 1.5)], dim=1)
    noise = 0.3 * torch.randn(count, size, size, size, generator=generator)
    return (ranking[:, :1] + noise[:, None]).float(), ranking.to(torch.uint8)


def run(steps: int = 5, size: int = 16, seed: int = 0) -> list[float]:
    """Train for a few steps; return the loss at each."""
    torch.manual_seed(seed)
    volumes, ranking = make_volumes(2, size, torch.Generator().manual_seed(seed))
    valid = torch.zeros(ranking[:, 0].shape, dtype=torch.bool)
    valid[:, 1:-1, 1:-1, 1:-1] = True  # the outermost voxels do not count

    policy = UNet(spatial_dims=3, in_channels=1, out_channels=1, channels=(8, 16), strides=(2,), norm="instance")
    reference = copy.deepcopy(policy).requires_grad_(False)
    loss = segdpo.PreferenceLoss(
        partial(segdpo.listwise.plackett_luce, beta=3.0),
        anchors={"nll": segdpo.Anchor(weight=1.0, term=segdpo.anchors.nll)},
    )
    score = partial(segdpo.score_ranking, ranking=ranking, valid=valid, region="disagreement")
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-3)
    losses = []
    for _ in range(steps):
        with torch.no_grad():
            before = score(reference(volumes))
        terms = loss(score(policy(volumes)), before)
        optimizer.zero_grad()
        terms.total.backward()
        optimizer.step()
        losses.append(terms.total.item())
        print(f"loss {losses[-1]:.4f}")
    return losses


if __name__ == "__main__":
    run()

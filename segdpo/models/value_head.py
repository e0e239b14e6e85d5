"""The value head of PPO."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from segdpo.checks import check_choice, check_range

PER = ("image", "pixel")
CELL = 4


class ValueHead(nn.Module):
    """Three convolutions on image and class probabilities, at a quarter of the resolution; predicts the reward.

    A separate network instead of a head on the policy's features: it works with any network, and its error, large at
    first, does not change the policy's features. It starts at 0 everywhere.

    Args:
        classes: number of classes, background included.
        in_channels: channels of the images.
        per: "image": one value per image; "pixel": one per pixel, each trained on the image's reward.
        width: channels of the convolutions.
    """

    def __init__(self, *, classes: int, in_channels: int = 3, per: str = "image", width: int = 16) -> None:
        super().__init__()
        check_choice("per", per, PER)
        check_range("width", width, least=1)
        self.per = per
        last = nn.Conv2d(width, 1, 1)
        for parameter in last.parameters():
            nn.init.zeros_(parameter)
        self.layers = nn.Sequential(
            nn.Conv2d(in_channels + classes, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.ReLU(),
            last,
        )

    def forward(
        self,
        image: Float[Tensor, "images channels height width"],
        probabilities: Float[Tensor, "images classes height width"],
        valid: Bool[Tensor, "images height width"],
    ) -> Float[Tensor, "images *pixels"]:
        """Return one value per image, the mean over valid pixels, or one per pixel."""
        values: Tensor = self.layers(_coarse(torch.cat([image, probabilities], 1)))
        if self.per == "image":
            weight = _coarse(valid[:, None].to(values))
            return (values * weight).flatten(1).sum(1) / weight.flatten(1).sum(1).clamp(min=1e-6)
        return F.interpolate(values, image.shape[2:], mode="nearest")[:, 0]


def _coarse(planes: Tensor) -> Tensor:
    """Average cells of 4 × 4; adaptive pooling has no deterministic gradient on a GPU."""
    return F.avg_pool2d(planes, CELL, ceil_mode=True) if min(planes.shape[2:]) >= CELL else planes

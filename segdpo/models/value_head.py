"""A value head: what reward is to be expected of an image's masks, before any is drawn."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from segdpo.checks import check_choice, check_range

PER = ("image", "pixel")
COARSE = 4


class ValueHead(nn.Module):
    """Three convolutions, on a quarter of the resolution, over the image and the policy's chances of each class.

    A small network of its own rather than a head on the policy's features: so it serves any network, and its error,
    large at first, does not pull at what the policy sees. It starts at 0 everywhere.

    Args:
        classes: of the masks, background counted.
        in_channels: of the images.
        per: `image`: one value an image; `pixel`: one a pixel, each held against the same reward.
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
        chances: Float[Tensor, "images classes height width"],
        valid: Bool[Tensor, "images height width"],
    ) -> Float[Tensor, "images *pixels"]:
        """Return [images], the mean over valid pixels, or [images, height, width]."""
        shown = torch.cat([image, chances], 1)
        values: Tensor = self.layers(_coarse(shown))
        if self.per == "image":
            weight = _coarse(valid[:, None].to(values))
            return (values * weight).flatten(1).sum(1) / weight.flatten(1).sum(1).clamp(min=1e-6)
        return F.interpolate(values, image.shape[2:], mode="nearest")[:, 0]


def _coarse(planes: Tensor) -> Tensor:
    """Average cells of 4 × 4; not adaptively, which has no deterministic gradient on a GPU."""
    return F.avg_pool2d(planes, COARSE, ceil_mode=True) if min(planes.shape[2:]) >= COARSE else planes

"""A network of three convolutions that has everything which may make training differ from evaluation."""

import pytest
import torch
from torch import nn

from segdpo.models import Segmenter


class Tiny(nn.Module):
    def __init__(self, channels: int = 1, width: int = 6, groups: int = 1) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())
        self.decoder = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=2, dilation=2, groups=groups, padding_mode="reflect"), nn.Dropout2d(0.5)
        )
        self.head = nn.Conv2d(width, channels, 1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.head(self.decoder(self.encoder(image)))


def make_tiny(classes: int = 2, seed: int = 0, **options: int) -> Segmenter:
    torch.manual_seed(seed)
    return Segmenter(Tiny(1 if classes == 2 else classes, **options), classes)


@pytest.fixture
def tiny():
    return make_tiny


@pytest.fixture
def image() -> torch.Tensor:
    return torch.randn(2, 3, 12, 10, generator=torch.Generator().manual_seed(0))

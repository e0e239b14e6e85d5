"""What a segmenter has before it upsamples: upsampled by hand it is what the segmenter returns; others are refused."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models.segmentation import lraspp_mobilenet_v3_large

from segdpo.models import Segmenter, smp_model, wrap


class Ends(nn.Module):
    """A convolution with a stride of 4, and a function after it."""

    def __init__(self, end, channels=3):
        super().__init__()
        self.conv, self.end = nn.Conv2d(3, channels, 5, stride=4, padding=2), end

    def forward(self, image):
        return self.end(self.conv(image), image)


def to_size(small, image, align_corners=False):
    return F.interpolate(small, size=image.shape[-2:], mode="bilinear", align_corners=align_corners)


ENDS = {
    "as Hugging Face": (lambda small, image: small, False),
    "as torchvision": (lambda small, image: {"aux": to_size(-small, image), "out": to_size(small, image)}, False),
    "as smp": (
        lambda small, image: nn.Identity()(nn.Upsample(mode="bilinear", scale_factor=4, align_corners=True)(small)),
        True,
    ),
    "by position": (lambda small, image: F.interpolate(small, image.shape[-2:], None, "bilinear", True), True),
    "by two factors": (lambda small, image: F.interpolate(small, scale_factor=(4.0, 4.0), mode="bilinear"), False),
}


@pytest.mark.parametrize(("height", "width"), [(16, 24), (13, 22)])
@pytest.mark.parametrize("end", ENDS)
def test_upsampled_by_hand_it_is_what_the_segmenter_returns(end, height, width):
    compute, align_corners = ENDS[end]
    segmenter = Segmenter(Ends(compute), 3, multiple=8)
    image = torch.randn(2, 3, height, width)
    low = segmenter.low_resolution(image)
    assert low.logits.shape == (2, 3, 4, 6)
    assert (low.grid, low.size, low.align_corners) == ((16, 24), (height, width), align_corners)
    full = F.interpolate(low.logits, low.grid, mode="bilinear", align_corners=low.align_corners)
    torch.testing.assert_close(full[..., :height, :width], segmenter(image), rtol=0, atol=0)
    low.logits.sum().backward()
    assert segmenter.network.conv.weight.grad.abs().sum() > 0


@pytest.mark.parametrize(
    "make",
    [
        lambda: smp_model("fpn", "resnet18", classes=3),
        lambda: smp_model("segformer", "mit_b0", classes=2),
        lambda: wrap(
            lambda num_classes: lraspp_mobilenet_v3_large(num_classes=num_classes, weights_backbone=None), classes=4
        ),
    ],
    ids=["fpn", "segformer", "lraspp"],
)
def test_networks_of_libraries(make):
    segmenter, image = make().eval(), torch.randn(1, 3, 50, 70)
    with torch.no_grad():
        low, expected = segmenter.low_resolution(image), segmenter(image)
    full = F.interpolate(low.logits, low.grid, mode="bilinear", align_corners=low.align_corners)[..., :50, :70]
    torch.testing.assert_close(full, expected, rtol=0, atol=0)
    assert low.logits.numel() * 5 < expected.numel()


@pytest.mark.parametrize(
    "end",
    [
        lambda small, image: image * 2,
        lambda small, image: to_size(small, image).tanh(),
        lambda small, image: F.interpolate(small, scale_factor=4, mode="bilinear") + 0,
        lambda small, image: F.interpolate(small, image.shape[-2:], mode="bicubic"),
        lambda small, image: F.interpolate(small, image.shape[-2:], mode="bilinear", antialias=True),
    ],
)
def test_a_network_that_does_more_than_upsample_is_refused(end):
    """Otherwise than bilinearly, or something after it: its logits are not those of a smaller size."""
    with pytest.raises(ValueError, match=r"ends in a bilinear upsampling but Ends .*low_resolution=false"):
        Segmenter(Ends(end), 3).low_resolution(torch.randn(2, 3, 16, 24))


def test_an_upsampling_inside_that_something_is_joined_to_is_named():
    segmenter = Segmenter(Ends(lambda small, image: to_size(small, image) + image), 3)
    with pytest.raises(RuntimeError) as caught:
        segmenter.low_resolution(torch.randn(2, 3, 16, 24))
    assert "low_resolution" in caught.value.__notes__[0]
    # Afterwards, nothing is skipped any more.
    assert segmenter(torch.randn(2, 3, 16, 24)).shape == (2, 3, 16, 24)


def test_a_factor_that_rounds_the_size_is_left_alone():
    """By a factor of 3.92 pixels are read 1/3.92 apart, not by the ratio of the sizes, 117 to 30."""
    seen = []

    def end(small, image):
        seen.append(F.interpolate(small, scale_factor=3.92, mode="bilinear"))
        return seen[0]

    segmenter = Segmenter(Ends(end), 3)
    with pytest.raises(ValueError, match="ends in a bilinear upsampling"):
        segmenter.low_resolution(torch.randn(1, 3, 117, 117))
    assert seen[0].shape == (1, 3, 117, 117)

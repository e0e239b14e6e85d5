"""Segmenter: padding, upsampling and finding logits, against values computed here; errors name the mistake."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from segdpo.models import Segmenter, smp_model, wrap
from segdpo.models.segmenter import channels_for


class Returns(nn.Module):
    """Applies a given function to the image, and keeps the image."""

    def __init__(self, make):
        super().__init__()
        self.make = make

    def forward(self, image):
        self.seen = image
        return self.make(image)


def bilinear(logits, height, width):
    """Half-pixel bilinear interpolation (align_corners=False) from its formula, in NumPy float64."""

    def weights(size, target):
        at = np.clip((np.arange(target) + 0.5) * size / target - 0.5, 0, size - 1)
        low = np.minimum(np.floor(at).astype(int), size - 1)
        matrix = np.zeros((target, size))
        np.add.at(matrix, (np.arange(target), low), 1 - (at - low))
        np.add.at(matrix, (np.arange(target), np.minimum(low + 1, size - 1)), at - low)
        return matrix

    rows, columns = weights(logits.shape[-2], height), weights(logits.shape[-1], width)
    return np.einsum("hy,bcyx,wx->bchw", rows, logits.double().numpy(), columns)


def test_the_network_sees_the_edge_repeated_and_the_logits_are_cropped_back(image):
    network = Returns(lambda x: x[:, :1] * 2)
    logits = Segmenter(network, 2, multiple=8)(image)
    expected = np.pad(image.numpy(), [(0, 0), (0, 0), (0, 4), (0, 6)], mode="edge")
    np.testing.assert_array_equal(network.seen.numpy(), expected)
    torch.testing.assert_close(logits, image[:, :1] * 2, rtol=0, atol=0)


def test_padding_gives_the_logits_of_a_padded_image(tiny, image):
    plain = tiny().eval()
    padded = torch.from_numpy(np.pad(image.numpy(), [(0, 0), (0, 0), (0, 4), (0, 6)], mode="edge"))
    torch.testing.assert_close(
        Segmenter(plain.network, 2, multiple=16).eval()(image), plain.network(padded)[..., :12, :10], rtol=0, atol=0
    )


def test_an_image_that_fits_is_handed_on_as_it_is(image):
    network = Returns(lambda x: x[:, :1])
    Segmenter(network, 2, multiple=2)(image)
    assert network.seen is image


@pytest.mark.parametrize(("height", "width"), [(3, 5), (6, 10), (4, 3)])
def test_a_low_resolution_head_is_upsampled_bilinearly(image, height, width):
    small = torch.randn(2, 4, height, width)
    logits = Segmenter(Returns(lambda _: small), 4)(image)
    np.testing.assert_allclose(logits.numpy(), bilinear(small, 12, 10), atol=1e-6)


def test_upsampling_goes_to_the_padded_size_before_the_crop(image):
    small = torch.randn(2, 1, 2, 2)
    logits = Segmenter(Returns(lambda _: small), 2, multiple=8)(image)
    np.testing.assert_allclose(logits.numpy(), bilinear(small, 16, 16)[..., :12, :10], atol=1e-6)


@pytest.mark.parametrize(
    "form",
    [
        lambda x: {"aux": x * 0, "out": x},
        lambda x: (x, x * 0),
        lambda x: [x],
        lambda x: SimpleNamespace(logits=x, loss=None),
        lambda x: {"out": (x, None)},
    ],
)
def test_logits_are_found_in_what_a_network_returns(image, form):
    torch.testing.assert_close(Segmenter(Returns(lambda x: form(x[:, :1])), 2)(image), image[:, :1], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (lambda x: {"masks": x}, "but got a dict of masks; pass"),
        (lambda x: None, "what the network returns as a tensor .* but got NoneType; pass"),
        (lambda x: (), "but got a tuple of 0"),
        (lambda x: x[:, 0], r"logits \[images, classes, height, width\] but got shape \(2, 12, 10\)"),
        (lambda x: x[:, :2], r"Expected 5 channels .* model.classes=5 but Returns returned 2; set model.classes"),
        (lambda x: x[:, :1], "Expected 5 channels of logits for model.classes=5 but Returns returned 1"),
    ],
)
def test_what_is_no_logits_is_named(image, output, message):
    with pytest.raises((TypeError, ValueError), match=message):
        Segmenter(Returns(output), 5)(image)


def test_two_classes_may_be_one_logit_or_two(image):
    assert channels_for(2) == 1
    assert channels_for(3) == 3
    assert Segmenter(Returns(lambda x: x[:, :2]), 2)(image).shape == (2, 2, 12, 10)
    assert wrap(lambda num_classes: nn.Conv2d(3, num_classes, 1), classes=2, channels=2)(image).shape[1] == 2
    assert wrap(lambda n: nn.Conv2d(3, n, 1), classes=2, classes_argument="n")(image).shape[1] == 1
    assert wrap(lambda: nn.Conv2d(3, 4, 1), classes=4, classes_argument=None)(image).shape[1] == 4


@pytest.mark.parametrize("classes", [None, 1, 0, True, "2"])
def test_a_number_of_classes_that_cannot_be_is_refused(classes):
    with pytest.raises(ValueError, match=r"Expected model.classes to be at least 2, background included, but got"):
        Segmenter(nn.Identity(), classes)


def test_a_network_in_place_of_its_factory_is_refused():
    with pytest.raises(TypeError, match="but got Conv2d; add `_partial_: true`"):
        wrap(nn.Conv2d(3, 1, 1), classes=2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"architecture": "unett"}, "model.architecture to be one of .*unet.* but got 'unett'; did you mean unet"),
        ({"encoder_name": "resnet19"}, "model.encoder_name to be one of .* but got 'resnet19'; did you mean resnet"),
        ({"decoder_chanels": [8]}, "option of model .* but got 'decoder_chanels'; did you mean decoder_channels"),
        ({"activation": "sigmoid"}, "activation='sigmoid'"),
        ({"encoder_weights": "imagnet"}, "Expected weights 'imagnet' .* set model.encoder_weights=null"),
    ],
)
def test_misspelt_choices_of_smp_name_what_there_is(arguments, message):
    with pytest.raises(ValueError, match=message):
        smp_model(**{"architecture": "unet", "encoder_name": "resnet18", "classes": 2} | arguments)


def test_weights_that_cannot_be_downloaded_say_so(monkeypatch):
    import segmentation_models_pytorch as smp

    def offline(*_, **__):
        raise FileNotFoundError("no connection")

    monkeypatch.setattr(smp.encoders, "hf_hub_download", offline)
    with pytest.raises(ValueError, match=r"'imagenet' for the encoder resnet18 but .*no connection.*connect"):
        smp_model("unet", "resnet18", classes=2, encoder_weights="imagenet")


def test_smp_options_reach_the_constructor_and_the_multiple_follows_the_encoder():
    segmenter = smp_model("Unet", "resnet18", classes=5, in_channels=4, encoder_depth=3, decoder_channels=[16, 8, 4])
    assert segmenter.multiple == 8
    assert segmenter.classes == 5
    assert segmenter.network.segmentation_head[0].weight.shape == (5, 4, 3, 3)
    assert segmenter.eval()(torch.zeros(1, 4, 9, 17)).shape == (1, 5, 9, 17)


def test_a_graph_traced_at_one_size_serves_any_other(image):
    """Half the resolution, and padding: neither ties the graph to the size that it was traced with."""
    network = nn.Conv2d(3, 1, 3, stride=2, padding=1)
    segmenter = Segmenter(network, 2, multiple=4).eval()
    auto = torch.export.Dim.AUTO
    traced = torch.export.export(segmenter, (image,), dynamic_shapes={"image": {0: auto, 2: auto, 3: auto}}).module()
    for height, width in ((12, 10), (16, 8), (13, 11), (7, 20)):
        other = torch.randn(3, 3, height, width)
        torch.testing.assert_close(traced(other), segmenter(other), rtol=0, atol=1e-6)

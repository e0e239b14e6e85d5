from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

from segdpo.preferences.sliding_window import predict_windows, window_starts, window_weight


class Affine(nn.Module):
    """Looks at one pixel at a time, so that windows cannot matter; keeps the sizes of what it was given."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, image):
        self.seen.append(tuple(image.shape))
        return torch.cat([2 * image - 1, image.sum(1, keepdim=True)], 1)


@pytest.mark.parametrize("size", [(7, 5), (16, 16), (33, 20), (12, 61), (17, 16)])
@pytest.mark.parametrize(("overlap", "batch"), [(0.0, 3), (0.25, 1), (0.9, 64)])
def test_a_pixelwise_network_gives_what_it_gives_on_the_whole_image(size, overlap, batch):
    images = torch.randn(2, 3, *size)
    network = Affine()
    logits = predict_windows(network, images, window=16, overlap=overlap, batch=batch)
    assert max(shape[0] for shape in network.seen) <= batch
    assert {shape[2:] for shape in network.seen} == {(min(16, size[0]), min(16, size[1]))}
    torch.testing.assert_close(logits, Affine()(images), rtol=1e-5, atol=1e-5)


def test_an_image_that_fits_goes_through_bitwise_unchanged():
    images = torch.randn(3, 2, 16, 9)
    assert torch.equal(predict_windows(nn.Identity(), images, window=16, batch=2), images)


def test_the_blend_is_the_weighted_mean_of_the_windows():
    """A network that says which window it sees: along the width, windows start at 0, 3 and 6 of 10, 4 wide."""
    answers = iter((1.0, 10.0, 100.0))
    blended = predict_windows(
        lambda crops: torch.full((1, 1, 2, 4), next(answers)), torch.zeros(1, 3, 2, 10), window=4, batch=1
    )
    along = np.exp(-0.5 * ((np.arange(4) - 1.5) / 0.5) ** 2)
    weights = np.zeros((3, 10))
    for number, start in enumerate((0, 3, 6)):
        weights[number, start : start + 4] = along
    expected = (weights * np.array([[1.0], [10.0], [100.0]])).sum(0) / weights.sum(0)
    np.testing.assert_allclose(blended[0, 0], np.tile(expected, (2, 1)), rtol=1e-5)
    assert blended[0, 0, 0, 3] == pytest.approx(5.5)  # the end of one window, the start of the next: the plain mean


@pytest.mark.parametrize("size", [5, 16, 17, 40, 161])
@pytest.mark.parametrize("overlap", [0, 0.25, 0.5, 0.99])
def test_windows_cover_everything_and_overlap_as_promised(size, overlap):
    starts = window_starts(size, 16, overlap)
    covered = np.zeros(size, int)
    for start in starts:
        covered[start : start + 16] += 1
    assert covered.min() >= 1
    assert starts[-1] == max(0, size - 16)
    # At least one pixel further each time, whatever the overlap.
    assert all(1 <= b - a <= max(1, 16 * (1 - overlap)) for a, b in pairwise(starts))


def test_the_weight_is_highest_in_the_middle_and_never_0():
    weight = window_weight(7, 512)
    assert weight[3, 255] == weight.max() == weight[3, 256]
    assert weight.min() > 1e-8
    assert torch.equal(weight, weight.flip(0, 1))


@pytest.mark.parametrize(
    ("name", "options"), [("overlap", {"overlap": 1.0}), ("window", {"window": 0}), ("batch", {"batch": 0})]
)
def test_impossible_windows_are_refused(name, options):
    with pytest.raises(ValueError, match=f"Expected {name}"):
        predict_windows(nn.Identity(), torch.zeros(1, 1, 4, 4), **options)


def test_no_gradient_is_kept():
    assert not predict_windows(nn.Conv2d(1, 1, 1), torch.zeros(1, 1, 4, 4)).requires_grad

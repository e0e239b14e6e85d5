"""Regions and reductions on masks small enough to check by eye."""

import numpy as np
import pytest
import torch
from scipy.ndimage import distance_transform_cdt

from segdpo.scores.regions import (
    Boundary,
    class_balanced_divisor,
    contour_band,
    mean_divisor,
    pixel_weights,
    sum_divisor,
)


def grid(text: str) -> torch.Tensor:
    rows = [[int(character) for character in line] for line in text.split()]
    return torch.tensor(rows, dtype=torch.uint8)[None]


def test_contour_band_by_hand():
    mask = grid("00000000 00000000 00110000 00110000 00000000 00000000 00000000 00000000")
    band = grid("00000000 01111000 01111000 01111000 01111000 00000000 00000000 00000000")
    assert contour_band(mask, width=1).equal(band.bool())


def test_ignored_pixels_make_no_contour():
    mask = grid("00000000 00000000 00000000")
    mask[0, 1, 4] = 255
    assert not contour_band(mask, width=2).any()
    mask[0, 1, 5] = 1
    assert contour_band(mask, width=1)[0, 1].tolist() == [False, False, False, False, True, True, True, False]


@pytest.mark.parametrize("width", [1, 2, 4])
@pytest.mark.parametrize("shape", [(40,), (17, 23), (9, 10, 11)])
def test_contour_band_is_a_chessboard_distance(shape, width):
    rng = np.random.default_rng(0)
    mask = np.zeros(shape, np.uint8)
    mask[tuple(slice(size // 4, size // 2) for size in shape)] = 1
    mask[rng.random(shape) > 0.99] = 1
    # The distance from each pixel to the nearest pixel of the other class.
    distance = np.where(mask > 0, distance_transform_cdt(mask > 0), distance_transform_cdt(mask == 0))
    assert (contour_band(torch.from_numpy(mask)[None], width)[0].numpy() == (distance <= width)).all()


def test_boundary_is_the_union_of_both_bands():
    chosen, rejected = torch.zeros(2, 1, 9, 9, dtype=torch.uint8)
    chosen[0, 1, 1] = rejected[0, 7, 7] = 1
    assert Boundary(1)(chosen, rejected).sum() == 18
    with pytest.raises(ValueError, match="boundary width of at least 1 pixel but got 0"):
        Boundary(0)


def test_divisors_by_hand():
    labels = torch.tensor([[0, 0, 0, 1, 2, 2], [1, 1, 1, 1, 1, 1]])
    inside = torch.tensor([[True, True, True, True, True, False], [True, True, False, False, False, False]])
    assert sum_divisor(labels, inside, 3).tolist() == [[1], [1]]
    assert mean_divisor(labels, inside, 3).tolist() == [[5], [2]]
    # Three classes present in the first, with 3, 1 and 1 pixels inside; one in the second, with 2.
    assert class_balanced_divisor(labels, inside, 3).tolist() == [[9, 3, 3], [0, 2, 0]]


def test_nothing_inside_weighs_nothing():
    weights = pixel_weights(torch.tensor([[4, 0]]), torch.float64)
    assert weights.tolist() == [[0.25, 0.0]]
    assert weights.dtype == torch.float64

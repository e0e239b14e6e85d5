"""Overlap of NumPy masks by hand, and the same from every function."""

import math

import numpy as np
import pytest
import torch

from segdpo.masks import count_classes, differ, iou_matrix, mean_dice, mean_iou, mean_pairwise_iou

GOLD = np.array([[1, 1, 0, 0], [1, 1, 2, 2]], np.uint8)
MASK = np.array([[1, 0, 0, 3], [1, 1, 2, 255]], np.uint8)


def test_by_hand():
    # Of the 7 valid pixels, class 1 has 3 of 4 + 3 − 3, class 2 has 1 of 1 + 1 − 1, class 3 none of 1.
    assert mean_iou(MASK, GOLD) == pytest.approx((3 / 4 + 1 + 0) / 3)
    assert mean_dice(MASK, GOLD) == pytest.approx((6 / 7 + 1 + 0) / 3)
    # Class 0: 1 of 2 + 2 − 1.
    assert mean_iou(MASK, GOLD, background=True) == pytest.approx((1 / 3 + 3 / 4 + 1 + 0) / 4)


def test_nothing_in_either_is_nan_and_agrees_in_the_matrix():
    empty, ignored = np.zeros_like(GOLD), np.full_like(GOLD, 255)
    assert math.isnan(mean_iou(empty, empty))
    assert math.isnan(mean_dice(GOLD, ignored))
    assert mean_iou(empty, empty, background=True) == 1
    assert iou_matrix(np.stack([empty, ignored])).tolist() == [[1, 1], [1, 1]]


@pytest.mark.parametrize("background", [False, True])
def test_all_functions_agree(background):
    masks = np.random.default_rng(0).choice([0, 1, 2, 255], (5, 9, 7), p=[0.4, 0.3, 0.2, 0.1]).astype(np.uint8)
    table = iou_matrix(masks, background=background)
    pairs = [[mean_iou(one, other, background=background) for other in masks] for one in masks]
    np.testing.assert_allclose(table, pairs, rtol=1e-12)
    assert mean_pairwise_iou(masks, background=background) == pytest.approx(table[np.triu_indices(5, 1)].mean())
    counted = count_classes(*(torch.from_numpy(masks[[k]]) for k in (0, 1)), classes=3, background=background)
    assert counted.iou[~counted.iou.isnan()].mean().item() == pytest.approx(pairs[0][1], rel=1e-6)
    assert math.isnan(mean_pairwise_iou(masks[:1]))


def test_masks_that_may_not_be_written_to():
    masks = np.broadcast_to(GOLD, (2, *GOLD.shape))
    assert mean_iou(masks[0], masks[1]) == 1
    assert iou_matrix(masks).tolist() == [[1, 1], [1, 1]]


def test_masks_differ_only_where_both_are_known():
    other = GOLD.copy()
    other[0, 0] = 255
    assert not differ(GOLD, other)
    other[0, 1] = 2
    assert differ(GOLD, other)

from functools import partial

import numpy as np
import pytest

from segdpo.data.record import Record
from segdpo.masks.overlap import iou_matrix
from segdpo.preferences import judges
from segdpo.preferences import judges as judges_surface
from segdpo.preferences.judges import CannotJudge, gumbel

RNG = np.random.default_rng(0)
AGAINST_GOLD = [
    judges.iou,
    judges.dice,
    judges_surface.boundary_iou,
    judges_surface.hd95,
    partial(judges_surface.surface_dice, tolerance=1.0),
]
BEST = [1, 1, 1, 0, 1]
WORST = [0, 0, 0, -np.hypot(8, 8), 0]


def square(top, left, side=4, label=1, shape=(8, 8)):
    mask = np.zeros(shape, np.uint8)
    mask[top : top + side, left : left + side] = label
    return mask


def judged(judge, gold, *masks, **options):
    masks = np.stack(masks)
    image = np.zeros((*masks.shape[1:], 3), np.uint8)
    return judge(Record("a", image, masks, ("m",) * len(masks), gold=gold), masks, RNG, **options)


def test_a_square_shifted_by_one_pixel():
    # 4 × 4 pixels each, 12 shared: 12/20 and 24/32.
    gold, mask = square(2, 2), square(2, 3)
    assert judged(judges.iou, gold, mask, gold) == pytest.approx([0.6, 1])
    assert judged(judges.dice, gold, mask, gold) == pytest.approx([0.75, 1])


@pytest.mark.parametrize(("judge", "best", "worst"), list(zip(AGAINST_GOLD, BEST, WORST, strict=True)))
def test_empty_and_equal_masks(judge, best, worst):
    empty, full = np.zeros((8, 8), np.uint8), square(2, 2)
    assert judged(judge, empty, empty, full) == pytest.approx([best, worst])
    assert judged(judge, full, full, empty) == pytest.approx([best, worst])


@pytest.mark.parametrize(("judge", "best"), list(zip(AGAINST_GOLD, BEST, strict=True)))
def test_what_gold_ignores_is_not_judged(judge, best):
    gold, mask = square(2, 2), square(2, 2)
    gold[:, 4:] = 255
    mask[:, 4:] = np.random.default_rng(1).integers(0, 2, (8, 4))
    assert judged(judge, gold, mask) == pytest.approx([best])


def test_ignored_pixels_are_as_if_cut_off():
    rng = np.random.default_rng(2)
    gold, mask = rng.integers(0, 3, (2, 8, 8)).astype(np.uint8)
    masked = gold.copy()
    masked[:, 5:] = 255
    for judge in (judges.iou, judges.dice):
        assert judged(judge, masked, mask) == judged(judge, gold[:, :5], mask[:, :5])


def test_classes_of_either_mask_count_and_background_on_demand():
    gold = square(0, 0, label=1) + square(4, 4, label=2)
    mask = square(0, 0, label=1) + square(4, 4, label=3)
    # Class 1 right; 2 and 3 are each in one of the two only; background right too.
    assert judged(judges.iou, gold, mask) == pytest.approx([1 / 3])
    assert judged(judges.iou, gold, mask, background=True) == pytest.approx([2 / 4])
    assert judged(partial(judges_surface.surface_dice, tolerance=0), gold, mask) == pytest.approx([1 / 3])
    assert judged(judges_surface.hd95, gold, mask) == pytest.approx([-2 / 3 * np.hypot(8, 8)])


def test_agreement_is_the_mean_iou_with_the_others():
    a, b, c = square(2, 2), square(2, 3), square(2, 4)
    ab, ac, bc = 12 / 20, 8 / 24, 12 / 20
    assert judged(judges.agreement, None, a, b, c) == pytest.approx([(ab + ac) / 2, (ab + bc) / 2, (ac + bc) / 2])
    with pytest.raises(CannotJudge, match="at least 2 masks"):
        judged(judges.agreement, None, a)


def test_iou_matrix_is_the_iou_judge_of_each_pair():
    masks = np.random.default_rng(3).choice([0, 1, 2, 255], (5, 9, 7), p=[0.4, 0.3, 0.2, 0.1]).astype(np.uint8)
    for background in (False, True):
        expected = [judged(judges.iou, gold, *masks, background=background) for gold in masks]
        np.testing.assert_allclose(iou_matrix(masks, background=background), expected, rtol=1e-12)


def test_consensus_prefers_the_mask_in_the_middle():
    masks = [square(2, 2), square(2, 2), square(2, 3), square(0, 0)]
    scores = judged(judges.consensus, None, *masks)
    assert scores == pytest.approx([1, 1, 0.6, 4 / 28])


def test_a_function_as_judge():
    scores = judged(partial(judges.by_function, function=lambda image, mask: int(mask.sum())), None, square(0, 0, 3))
    assert scores.tolist() == [9]
    assert scores.dtype == np.float64


@pytest.mark.parametrize("judge", AGAINST_GOLD)
def test_no_gold_is_said(judge):
    with pytest.raises(CannotJudge, match="'a' has no gold"):
        judged(judge, None, square(2, 2))
    with pytest.raises(CannotJudge, match="ignores every pixel"):
        judged(judge, np.full((8, 8), 255, np.uint8), square(2, 2))
    with pytest.raises(ValueError, match=r"shape of gold, \(4, 4\)"):
        judged(judge, np.zeros((4, 4), np.uint8), square(2, 2))


def test_gumbel_noise_is_bradley_terry():
    gold, near, far = square(2, 2), square(2, 3), square(2, 4)
    record = Record("a", np.zeros((8, 8, 3), np.uint8), np.stack([near, far]), ("near", "far"), gold=gold)
    rng = np.random.default_rng(4)
    draws = [gumbel(record, record.masks, rng, judge=judges.iou, temperature=0.3) for _ in range(20_000)]
    wins = np.mean([near > far for near, far in draws])
    expected = 1 / (1 + np.exp(-(12 / 20 - 8 / 24) / 0.3))
    assert wins == pytest.approx(expected, abs=4 * np.sqrt(expected * (1 - expected) / 20_000))
    with pytest.raises(ValueError, match="temperature"):
        gumbel(record, record.masks, rng, judge=judges.iou, temperature=0)

"""Judges: overlap and contours against values by hand and other libraries, networks, and noise."""

from dataclasses import dataclass
from functools import partial

import cv2
import numpy as np
import pytest
import torch
from monai.metrics import compute_hausdorff_distance, compute_surface_dice
from scipy import ndimage

from segdpo.data.record import Candidates, Record
from segdpo.data.transforms import Pipeline, albumentations
from segdpo.masks.overlap import iou_matrix
from segdpo.metrics import mean_over_classes, measure_masks
from segdpo.models.reward_model import RewardModel
from segdpo.preferences import judges
from segdpo.preferences.judges import CannotJudge, boundary_iou, by_network, gumbel, hd95, surface_dice
from segdpo.preferences.mining import Mining, mine_record
from segdpo.preferences.questions import all_pairs

RNG = np.random.default_rng(0)
AGAINST_GOLD = [
    judges.iou,
    judges.dice,
    judges.boundary_iou,
    judges.hd95,
    partial(judges.surface_dice, tolerance=1.0),
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
    assert judged(partial(judges.surface_dice, tolerance=0), gold, mask) == pytest.approx([1 / 3])
    assert judged(judges.hd95, gold, mask) == pytest.approx([-2 / 3 * np.hypot(8, 8)])


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


def blobs(seed, shape=(40, 57), classes=2):
    fields = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=(classes, *shape)), (0, 4, 4))
    return fields.argmax(0).astype(np.uint8)


def as_monai(mask, classes=2):
    return torch.from_numpy(np.stack([mask == label for label in range(1, classes)]))[None].float()


def test_contours_of_a_square_shifted_by_one_pixel():
    # Each contour has 12 pixels; 6 are shared, and each of the other 6 is 1 pixel from the other contour.
    gold, mask = square(2, 2), square(2, 3)
    assert judged(boundary_iou, gold, mask, width=1) == pytest.approx([6 / 18])
    assert judged(boundary_iou, gold, mask, width=2) == pytest.approx([12 / 20])  # a 4 × 4 square is all band
    assert judged(hd95, gold, mask) == pytest.approx([-1])
    assert judged(hd95, gold, mask, spacing=(1, 0.5)) == pytest.approx([-0.5])
    assert judged(surface_dice, gold, mask, tolerance=0) == pytest.approx([12 / 24])
    assert judged(surface_dice, gold, mask, tolerance=0.5, spacing=(1, 0.5)) == pytest.approx([1])


def test_what_lies_at_the_tolerance_is_within_it_at_any_spacing():
    # 3 · .1 is .30000000000000004 in binary.
    gold, mask = square(2, 2, side=5, shape=(12, 12)), square(2, 5, side=5, shape=(12, 12))
    for unit in (1.0, 0.1, 0.34, 0.7):
        assert judged(surface_dice, gold, mask, tolerance=3 * unit, spacing=(unit, unit)) == pytest.approx([1])


def test_hd95_leaves_out_the_farthest_twentieth():
    gold, mask = square(2, 2, shape=(8, 30)), square(2, 2, shape=(8, 30))
    mask[2, 20] = 1
    # Of the mask's 13 distances 12 are 0 and one is 15: position .95 · 12 = 11.4 lies .4 of the way to it.
    assert judged(hd95, gold, mask) == pytest.approx([-0.4 * 15])


def test_contours_beside_ignored_pixels_are_not_judged():
    gold, mask = square(2, 2), square(2, 3)
    gold[:, 4:] = 255
    # Left of column 4, gold's contour is (2,2) (2,3) (3,2) (4,2) (5,2) (5,3); the mask's the 4 of column 3.
    assert judged(surface_dice, gold, mask, tolerance=0) == pytest.approx([4 / 10])
    assert judged(boundary_iou, gold, mask, width=1) == pytest.approx([2 / 8])
    assert judged(hd95, gold, mask) == pytest.approx([-1])

    # Ignored all round: no contour is left to be wrong about.
    gold = np.full((8, 8), 255, np.uint8)
    gold[3:5, 3:5] = 1
    assert judged(hd95, gold, square(3, 3, 2)) == pytest.approx([0])
    assert judged(surface_dice, gold, square(3, 3, 2), tolerance=0) == pytest.approx([1])
    assert judged(boundary_iou, gold, square(3, 3, 2), width=1) == pytest.approx([1])


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("spacing", [(1.0, 1.0), (2.0, 0.5)])
def test_hd95_and_surface_dice_are_monais(seed, spacing):
    gold, mask = blobs(seed), blobs(100 + seed)
    theirs = compute_hausdorff_distance(
        as_monai(mask), as_monai(gold), include_background=True, percentile=95, spacing=list(spacing)
    )
    assert judged(hd95, gold, mask, spacing=spacing) == pytest.approx([-theirs.item()], rel=1e-5)
    theirs = compute_surface_dice(
        as_monai(mask), as_monai(gold), class_thresholds=[2.0], include_background=True, spacing=list(spacing)
    )
    assert judged(surface_dice, gold, mask, tolerance=2.0, spacing=spacing) == pytest.approx([theirs.item()], rel=1e-5)


def test_several_classes_are_the_mean_of_monais():
    gold, mask = blobs(7, classes=4), blobs(8, classes=4)
    theirs = compute_hausdorff_distance(as_monai(mask, 4), as_monai(gold, 4), include_background=True, percentile=95)
    assert judged(hd95, gold, mask) == pytest.approx([-theirs.mean().item()], rel=1e-5)
    theirs = compute_surface_dice(
        as_monai(mask, 4), as_monai(gold, 4), class_thresholds=[1.0] * 3, include_background=True
    )
    assert judged(surface_dice, gold, mask, tolerance=1.0) == pytest.approx([theirs.mean().item()], rel=1e-5)


@pytest.mark.parametrize("width", [1, 2, 5, None])
def test_boundary_iou_is_that_of_its_authors(width):
    def band(mask, width):  # as published: boundary_iou_api, mask_to_boundary
        padded = cv2.copyMakeBorder(mask, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
        return mask - cv2.erode(padded, np.ones((3, 3), np.uint8), iterations=width)[1:-1, 1:-1]

    for seed in range(4):
        gold, mask = blobs(seed, (90, 130)), blobs(50 + seed, (90, 130))
        pixels = width or round(0.02 * np.hypot(90, 130))
        first, second = band(gold, pixels), band(mask, pixels)
        expected = (first & second).sum() / (first | second).sum()
        assert judged(boundary_iou, gold, mask, width=width) == pytest.approx([expected])


def test_options_out_of_range():
    with pytest.raises(ValueError, match="width"):
        judged(boundary_iou, square(2, 2), square(2, 2), width=0)
    with pytest.raises(ValueError, match="tolerance"):
        judged(surface_dice, square(2, 2), square(2, 2), tolerance=-1)


class Covered(torch.nn.Module):
    """Mean of the (normalised) image's first channel over the mask's foreground, as a reward."""

    mean, std = (0.5,), (0.25,)

    def forward(self, image, masks, image_index):
        area = (masks == 1).float()
        return (image[image_index, 0] * area).sum((1, 2)) / area.sum((1, 2)).clamp(min=1)


@dataclass(eq=False)
class Constant(torch.nn.Module):
    value: float

    def __post_init__(self):
        super().__init__()

    def forward(self, image, masks, image_index):
        return torch.full((len(masks),), self.value)


def record():
    image = np.zeros((8, 8, 3), np.uint8)
    image[:, 4:] = 255
    masks = np.zeros((3, 8, 8), np.uint8)
    masks[0, :, 4:] = 1  # the bright half: (1 − .5)/.25 = 2
    masks[1, :, :4] = 1  # the dark half: −2
    masks[2, :, 2:6] = 1  # half and half: 0
    return Record("half", image, masks, ("bright", "dark", "both"))


def test_rewards_by_hand():
    scores = by_network(record(), record().masks, RNG, model=Covered())
    np.testing.assert_allclose(scores, [2, -2, 0], atol=1e-6)
    assert scores.dtype == np.float64


def test_views_are_what_the_network_sees():
    """Halved in size, and normalised by the pipeline rather than by the model's own numbers."""
    sizes = []
    model = Covered()
    model.register_forward_pre_hook(lambda _, given: sizes.append((given[0].shape, given[1].shape)))
    views = Pipeline([albumentations.Resize(4, 4)], mean=[0.0], std=[1.0])
    scores = by_network(record(), record().masks, RNG, model=model, views=views)
    assert sizes == [((1, 3, 4, 4), (3, 4, 4))]
    np.testing.assert_allclose(scores[:2], [1, 0], atol=0.01)


def test_mining_needs_no_gold():
    made = record()
    mining = Mining(
        lambda record, rng: Candidates(made.masks, made.mask_names),
        lambda *given: by_network(*given, model=Covered()),
        all_pairs,
    )
    mined = mine_record(made, mining).record
    assert mined.ranking == (0, 2, 1)
    assert {(pair.chosen, pair.rejected) for pair in mined.pairs} == {(0, 1), (0, 2), (2, 1)}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_rewards_that_are_no_numbers_stop_with_the_record(value):
    with pytest.raises(ValueError, match="3 finite rewards for record 'half'"):
        by_network(record(), record().masks, RNG, model=Constant(value))


def test_another_number_of_classes_stops_with_the_record():
    model = RewardModel(classes=2)
    with pytest.raises(ValueError, match=r"Record 'half': Expected masks of the 2 classes .* mask 0 has class 3"):
        by_network(record(), 3 * record().masks, RNG, model=model)


def test_a_mask_that_ignores_everything_is_not_judged():
    masks = record().masks
    masks[1] = 255
    with pytest.raises(CannotJudge, match="'half': mask 1 ignores every pixel"):
        by_network(record(), masks, RNG, model=Covered())


@pytest.mark.parametrize("background", [False, True])
def test_judges_of_contours_are_the_metrics(background):
    gold, masks = blobs(1, classes=4), np.stack([blobs(seed, classes=4) for seed in range(2, 5)])
    gold[:6], masks[0] = 255, 0
    options = {"background": background, "spacing": (1.0, 0.5), "tolerance": 1.5}
    found = measure_masks(torch.from_numpy(masks), torch.from_numpy(gold).expand(3, -1, -1), 4, **options)
    by_judges = {
        "boundary_iou": judged(boundary_iou, gold, *masks, background=background),
        "hd95": -judged(hd95, gold, *masks, background=background, spacing=(1.0, 0.5)),
        "surface_dice": judged(surface_dice, gold, *masks, **options),
    }
    for name, scores in by_judges.items():
        assert scores.tolist() == pytest.approx(mean_over_classes(found[name]).tolist(), rel=1e-6)


def test_a_class_that_one_mask_lacks_is_worst_also_without_a_contour():
    gold = np.full((8, 8), 255, np.uint8)
    gold[3:5, 3:5] = 1
    empty = np.zeros((8, 8), np.uint8)
    assert judged(boundary_iou, gold, empty, width=1) == [0]
    assert judged(surface_dice, gold, empty, tolerance=0) == [0]
    assert judged(hd95, gold, empty) == pytest.approx([-np.hypot(8, 8)])

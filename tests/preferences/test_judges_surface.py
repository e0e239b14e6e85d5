import cv2
import numpy as np
import pytest
import torch
from monai.metrics import compute_hausdorff_distance, compute_surface_dice
from scipy import ndimage

from segdpo.data.record import Record
from segdpo.metrics import mean_over_classes, measure_masks
from segdpo.preferences.judges import boundary_iou, hd95, surface_dice

RNG = np.random.default_rng(0)


def judged(judge, gold, *masks, **options):
    masks = np.stack(masks)
    record = Record("a", np.zeros((*gold.shape, 3), np.uint8), masks, ("m",) * len(masks), gold=gold)
    return judge(record, masks, RNG, **options)


def square(top, left, side=4, shape=(8, 8)):
    mask = np.zeros(shape, np.uint8)
    mask[top : top + side, left : left + side] = 1
    return mask


def blobs(seed, shape=(40, 57), classes=2):
    fields = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=(classes, *shape)), (0, 4, 4))
    return fields.argmax(0).astype(np.uint8)


def as_monai(mask, classes=2):
    return torch.from_numpy(np.stack([mask == label for label in range(1, classes)]))[None].float()


def test_a_square_shifted_by_one_pixel():
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

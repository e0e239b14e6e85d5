"""Mask metrics by hand, against MONAI, torchmetrics and plain morphology on random masks; sums over processes."""

import numpy as np
import pytest
import torch
from monai.metrics import compute_dice, compute_hausdorff_distance, compute_iou, compute_surface_dice
from scipy import ndimage
from torchmetrics.functional.classification import multiclass_jaccard_index, multiclass_precision, multiclass_recall

from segdpo.metrics.masks import MASK_METRICS, MaskQuality, Overlap, mean_over_classes, measure_masks, per_image_overlap

GOLD = torch.tensor(
    [
        [1, 1, 0, 0],
        [1, 1, 0, 0],
        [0, 0, 2, 2],
        [0, 0, 2, 2],
    ],
    dtype=torch.uint8,
)


def test_two_classes_counted_by_hand():
    prediction = torch.tensor(
        [
            [1, 1, 1, 0],
            [1, 0, 0, 0],
            [0, 0, 2, 2],
            [0, 0, 0, 0],
        ],
        dtype=torch.uint8,
    )
    overlap = per_image_overlap(prediction[None], GOLD[None], classes=3)
    # Class 1: 3 of 4 + 4 − 3; class 2: 2 of 2 + 4 − 2.
    assert overlap["iou"].item() == pytest.approx((3 / 5 + 2 / 4) / 2)
    assert overlap["dice"].item() == pytest.approx((6 / 8 + 4 / 6) / 2)
    with_background = per_image_overlap(prediction[None], GOLD[None], classes=3, background=True)
    # Class 0: 7 of 10 (prediction) + 8 (gold) − 7.
    assert with_background["iou"].item() == pytest.approx((7 / 11 + 3 / 5 + 2 / 4) / 3)


def test_ignored_pixels_and_absent_classes():
    gold = GOLD.clone()
    gold[2:] = 255
    prediction = torch.ones(4, 4, dtype=torch.uint8)
    # Only rows 0 and 1 count: class 1 has 4 of 8; class 2 is nowhere and does not count.
    overlap = per_image_overlap(prediction[None], gold[None], classes=3)
    assert overlap["iou"].item() == pytest.approx(0.5)
    prediction[0, 2:] = 255
    assert per_image_overlap(prediction[None], gold[None], classes=3)["iou"].item() == pytest.approx(4 / 6)


def test_overlap_of_empty_masks():
    empty, full = torch.zeros(1, 4, 4, dtype=torch.uint8), torch.ones(1, 4, 4, dtype=torch.uint8)
    ignored = torch.full_like(empty, 255)
    assert per_image_overlap(empty, empty, classes=2)["iou"].isnan().all()
    assert per_image_overlap(full, ignored, classes=2)["dice"].isnan().all()
    assert per_image_overlap(empty, full, classes=2)["iou"].item() == 0
    assert per_image_overlap(full, empty, classes=2)["dice"].item() == 0
    assert per_image_overlap(empty, empty, classes=2, background=True)["iou"].item() == 1


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
def test_as_torchmetrics_and_monai(dtype):
    gold, prediction = torch.randint(0, 5, (2, 6, 20, 24)).to(dtype).unbind()
    ours = per_image_overlap(prediction, gold, classes=5, background=True)
    for image in range(6):
        theirs = multiclass_jaccard_index(prediction[image].long(), gold[image].long(), num_classes=5)
        assert ours["iou"][image].item() == pytest.approx(theirs.item(), abs=1e-6)
    one_hot = [torch.nn.functional.one_hot(mask.long(), 5).movedim(-1, 1) for mask in (prediction, gold)]
    ours = per_image_overlap(prediction, gold, classes=5)
    torch.testing.assert_close(ours["dice"], compute_dice(*one_hot, include_background=False).mean(1))
    torch.testing.assert_close(ours["iou"], compute_iou(*one_hot, include_background=False).mean(1))


def test_two_processes_and_any_batch_size_give_the_same_bits():
    prediction, gold = torch.randint(0, 3, (2, 7, 9, 9), dtype=torch.uint8).unbind()
    gold[2] = 255
    whole, ranks = Overlap(classes=3), [Overlap(classes=3), Overlap(classes=3)]
    whole.update(prediction, gold)
    for image in range(7):
        ranks[image % 2].update(prediction[image : image + 1], gold[image : image + 1])
    # What torchmetrics does with states whose dist_reduce_fx is "sum": add them up.
    merged = ranks[0]
    merged.merge_state(ranks[1])
    expected = per_image_overlap(prediction, gold, classes=3)
    assert whole.compute()["images"] == merged.compute()["images"] == 6
    for name in ("iou", "dice"):
        assert merged.compute()[name] == whole.compute()[name]
        torch.testing.assert_close(whole.compute()[name], expected[name].nanmean())


def test_overlap_of_no_image_is_nan():
    overlap = Overlap(classes=2)
    overlap.update(torch.zeros_like(GOLD[None]), torch.zeros_like(GOLD[None]))
    assert overlap.compute()["iou"].isnan()


def test_errors_name_the_fix():
    with pytest.raises(ValueError, match=r"gold.*class 2.*2 classes.*classes to 3"):
        per_image_overlap(torch.zeros(1, 4, 4, dtype=torch.uint8), GOLD[None], classes=2)
    with pytest.raises(ValueError, match=r"prediction.*float32"):
        per_image_overlap(torch.zeros(1, 4, 4), GOLD[None], classes=3)
    with pytest.raises(ValueError, match=r"prediction.*gold"):
        per_image_overlap(GOLD[None, :2], GOLD[None], classes=3)


CASES = [((40, 57), 2, (1.0, 1.0)), ((40, 57), 4, (2.0, 0.5)), ((12, 20, 17), 3, (2.5, 1.0, 0.7))]


def blobs(seed, shape, classes, images=3):
    """Smooth random masks, the same for the same seed."""
    noise = np.random.default_rng(seed).normal(size=(images, classes, *shape))
    smooth = ndimage.gaussian_filter(noise, (0, 0, *[3] * len(shape)))
    return torch.from_numpy(smooth.argmax(1).astype(np.uint8))


def one_hot(masks, classes):
    return torch.nn.functional.one_hot(masks.long(), classes).movedim(-1, 1)


@pytest.fixture(params=CASES, ids=["binary", "multi-class, anisotropic", "3-D, anisotropic"])
def case(request):
    shape, classes, spacing = request.param
    return blobs(0, shape, classes), blobs(1, shape, classes), classes, spacing


def test_distances_are_monais(case):
    prediction, gold, classes, spacing = case
    found = measure_masks(
        prediction, gold, classes, background=True, spacing=spacing, tolerance=1.5, names=["hd95", "surface_dice"]
    )
    hot = one_hot(prediction, classes), one_hot(gold, classes)
    shared = {"include_background": True, "spacing": list(spacing)}
    theirs = compute_hausdorff_distance(*hot, percentile=95, **shared)
    torch.testing.assert_close(found["hd95"], theirs.float(), rtol=1e-5, atol=1e-5)
    theirs = compute_surface_dice(*hot, class_thresholds=[1.5] * classes, **shared)
    torch.testing.assert_close(found["surface_dice"], theirs.float(), rtol=1e-5, atol=1e-5)


def test_precision_and_recall_are_those_of_torchmetrics(case):
    prediction, gold, classes, _ = case
    gold = gold.clone()
    gold[:, :7] = 255
    found = measure_masks(prediction, gold, classes, background=True, names=["precision", "recall"])
    options = {"num_classes": classes, "average": "none", "ignore_index": 255}
    for image in range(len(gold)):
        masks = prediction[image].long(), gold[image].long()
        torch.testing.assert_close(found["precision"][image], multiclass_precision(*masks, **options))
        torch.testing.assert_close(found["recall"][image], multiclass_recall(*masks, **options))


def count_parts(region):
    """Let the highest number in each part spread through it."""
    numbers = np.arange(1, region.size + 1).reshape(region.shape) * region
    while True:
        spread = ndimage.maximum_filter(numbers, 3) * region
        if (spread == numbers).all():
            return len(np.unique(numbers[region]))
        numbers = spread


def test_parts_are_counted(case):
    prediction, gold, classes, _ = case
    found = measure_masks(prediction, gold, classes, names=["components"])["components"]
    for image in range(len(gold)):
        for number in range(1, classes):
            counts = [count_parts((masks[image] == number).numpy()) for masks in (prediction, gold)]
            assert found[image, number].item() == counts[0] - counts[1]


@pytest.mark.parametrize("width", [1, 3, None])
def test_boundary_iou_is_what_erosions_leave(case, width):
    prediction, gold, classes, _ = case
    found = measure_masks(prediction, gold, classes, boundary_width=width, names=["boundary_iou"])["boundary_iou"]
    times = width or max(1, round(0.02 * sum(side**2 for side in gold.shape[1:]) ** 0.5))
    square = np.ones((3,) * (gold.ndim - 1))
    for image in range(len(gold)):
        for number in range(1, classes):
            regions = [(masks[image] == number).numpy() for masks in (prediction, gold)]
            one, other = (region & ~ndimage.binary_erosion(region, square, iterations=times) for region in regions)
            assert found[image, number].item() == pytest.approx((one & other).sum() / (one | other).sum())


def test_overlap_is_that_of_per_image_overlap_bit_for_bit(case):
    prediction, gold, classes, _ = case
    prediction, gold = prediction.clone(), gold.clone()
    gold[0], prediction[1], gold[2, 3:9] = 0, 0, 255
    for background in (False, True):
        expected = per_image_overlap(prediction, gold, classes, background)
        found = measure_masks(prediction, gold, classes, background=background, names=["dice", "iou"])
        assert list(found) == ["dice", "iou"]
        for name, values in found.items():
            torch.testing.assert_close(mean_over_classes(values), expected[name], rtol=0, atol=0, equal_nan=True)


def test_the_box_round_small_objects_changes_nothing():
    # The same two objects in a large image and in one that ends where they do: contours at its border aside.
    prediction, gold = blobs(0, (30, 40), 3, 1), blobs(1, (30, 40), 3, 1)
    prediction[:, [0, -1]], prediction[..., [0, -1]] = 0, 0
    gold[:, [0, -1]], gold[..., [0, -1]] = 0, 0
    gold[:, 5:9, 20:] = 255
    large = [torch.nn.functional.pad(masks, (300, 200, 100, 400)) for masks in (prediction, gold)]
    small = measure_masks(prediction, gold, 3, boundary_width=3)
    for name, values in measure_masks(*large, 3, boundary_width=3).items():
        torch.testing.assert_close(values, small[name], equal_nan=True)


def test_quality_of_an_epoch_is_the_mean_of_its_images():
    prediction, gold = blobs(0, (20, 24), 4, 7), blobs(1, (20, 24), 4, 7)
    gold[2], gold[3], prediction[3] = 255, 0, 0
    gold[4][gold[4] == 3] = 0
    prediction[4][prediction[4] == 3] = 0
    found = measure_masks(prediction, gold, 4, spacing=(2, 0.5))
    quality = MaskQuality(4, spacing=(2, 0.5))
    quality.update(prediction, gold)
    epoch = quality.compute()
    assert epoch["images"] == 5
    assert epoch["images_per_class"].tolist() == [0, 5, 5, 4]
    for name in MASK_METRICS:
        values = found[name].double()
        assert epoch[name].item() == pytest.approx(values.nanmean(1).nanmean().item(), rel=1e-5, abs=1e-6)
        torch.testing.assert_close(
            epoch[f"{name}_per_class"], values.nanmean(0).float(), rtol=1e-5, atol=1e-6, equal_nan=True
        )


def test_quality_of_two_processes_and_any_batch_size_is_the_same_bits():
    prediction, gold = blobs(0, (20, 24), 3, 7), blobs(1, (20, 24), 3, 7)
    gold[2] = 255
    whole, ranks = MaskQuality(3), [MaskQuality(3), MaskQuality(3)]
    whole.update(prediction, gold)
    for image in (3, 0, 6, 5, 1, 2, 4):
        ranks[image % 2].update(prediction[image : image + 1], gold[image : image + 1])
    ranks[0].merge_state(ranks[1])
    overlap = Overlap(3)
    overlap.update(prediction, gold)
    expected = whole.compute()
    for name, value in ranks[0].compute().items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=0, equal_nan=True)
    assert overlap.compute()["iou"] == expected["iou"]
    assert overlap.compute()["dice"] == expected["dice"]


def test_spacing_may_be_an_array():
    gold, prediction = torch.zeros(1, 8, 8, dtype=torch.uint8), torch.zeros(1, 8, 8, dtype=torch.uint8)
    gold[:, 2:5, 2:5] = prediction[:, 2:5, 4:7] = 1
    quality = MaskQuality(2, spacing=np.array([1.0, 0.5]), names=["hd95"])
    quality.update(prediction, gold)
    assert quality.compute()["hd95"] == pytest.approx(1.0)  # two pixels of .5

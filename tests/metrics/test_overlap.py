"""Overlap against masks counted by hand, torchmetrics, MONAI, and itself cut in pieces."""

import pytest
import torch
from monai.metrics import compute_dice, compute_iou
from torchmetrics.functional.classification import multiclass_jaccard_index

from segdpo.metrics.masks import Overlap, per_image_overlap

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


def test_empty_masks():
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


def test_no_image_is_no_number():
    overlap = Overlap(classes=2)
    overlap.update(torch.zeros_like(GOLD[None]), torch.zeros_like(GOLD[None]))
    assert overlap.compute()["iou"].isnan()


def test_errors_name_the_mend():
    with pytest.raises(ValueError, match=r"gold has class 2 but there are 2 classes.*set classes to 3"):
        per_image_overlap(torch.zeros(1, 4, 4, dtype=torch.uint8), GOLD[None], classes=2)
    with pytest.raises(ValueError, match=r"Expected prediction as class ids.*threshold"):
        per_image_overlap(torch.zeros(1, 4, 4), GOLD[None], classes=3)
    with pytest.raises(ValueError, match="Expected prediction of the shape of gold"):
        per_image_overlap(GOLD[None, :2], GOLD[None], classes=3)

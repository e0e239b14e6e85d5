"""Mask metrics by hand where nothing is predicted, nothing is there, or next to nothing may be judged."""

import math

import pytest
import torch

from segdpo.metrics.masks import HIGHER_IS_BETTER, MASK_METRICS, MaskQuality, measure_masks

SHARES = [name for name in MASK_METRICS if HIGHER_IS_BETTER[name]]
DISTANCE_AND_PARTS = [name for name in MASK_METRICS if name not in SHARES]


def mask(*rows):
    return torch.tensor([[int(pixel) if pixel != "-" else 255 for pixel in row] for row in rows], dtype=torch.uint8)[
        None
    ]


def measured(prediction, gold, **options):
    """Return class 1 of one image."""
    return {name: value[0, 1].item() for name, value in measure_masks(prediction, gold, 2, **options).items()}


EMPTY, FULL = mask("0000", "0000", "0000"), mask("1111", "1111", "1111")
IGNORED, CORNER = mask("----", "----", "----"), mask("1000", "0000", "0000")


@pytest.mark.parametrize(
    ("prediction", "gold"), [(EMPTY, EMPTY), (FULL, IGNORED), (IGNORED, FULL), (IGNORED, IGNORED), (EMPTY, IGNORED)]
)
def test_in_neither_does_not_count(prediction, gold):
    assert all(math.isnan(value) for value in measured(prediction, gold).values())


@pytest.mark.parametrize("other", [FULL, CORNER])
def test_in_one_only_is_the_worst(other):
    for prediction, gold, parts in ((EMPTY, other, -1), (other, EMPTY, 1)):
        found = measured(prediction, gold)
        assert [found[name] for name in SHARES] == [0] * len(SHARES)
        assert found["hd95"] == 5  # the diagonal of 3 × 4
        assert found["components"] == parts
        assert measured(prediction, gold, spacing=(2, 2))["hd95"] == 10


def test_an_empty_prediction_never_improves_a_mean():
    """A fault of some libraries: the images on which nothing was found vanish from the mean of HD95."""
    poor = mask("0001", "0000", "0000")
    one, both = MaskQuality(2), MaskQuality(2)
    one.update(poor, CORNER)
    both.update(torch.cat([poor, EMPTY]), torch.cat([CORNER, CORNER]))
    before, after = one.compute(), both.compute()
    assert (before["hd95"], after["hd95"]) == (3, 4)
    assert after["images"] == 2
    assert all(after[name] <= before[name] for name in SHARES)


def test_right_is_the_best_also_for_one_pixel_and_at_the_border():
    for right in (FULL, CORNER, mask("0000", "0010", "0000")):
        found = measured(right, right)
        assert [found[name] for name in SHARES] == [1] * len(SHARES)
        assert [found[name] for name in DISTANCE_AND_PARTS] == [0, 0]


def test_one_pixel_in_the_wrong_corner():
    found = measured(mask("0000", "0000", "0001"), CORNER, tolerance=3.6, spacing=(1, 1))
    assert (found["iou"], found["precision"], found["recall"], found["boundary_iou"]) == (0, 0, 0, 0)
    assert found["hd95"] == pytest.approx(13**0.5)  # 2 down, 3 along
    assert found["surface_dice"] == 0
    found = measured(mask("0000", "0000", "0001"), CORNER, tolerance=3.7)
    assert found["surface_dice"] == 1
    # A pixel is 1 high and 4 wide: √(2² + 12²).
    assert measured(mask("0000", "0000", "0001"), CORNER, spacing=(1, 4))["hd95"] == pytest.approx(148**0.5)


def test_the_border_of_the_image_is_a_contour():
    gold, prediction = mask("1100", "1100", "1100"), mask("1110", "1110", "1110")
    found = measured(prediction, gold, tolerance=0)
    # All 6 pixels of gold are contour, of the prediction's 9 all but (1, 1); so 5 of gold's are the prediction's too.
    assert found["surface_dice"] == pytest.approx((5 + 5) / (6 + 8))
    assert found["boundary_iou"] == pytest.approx(5 / 9)
    assert found["hd95"] == 1


def test_parts_that_touch_at_a_corner_are_one():
    assert measured(mask("1000", "0100", "0001"), EMPTY)["components"] == 2
    cube = torch.zeros(1, 2, 2, 2, dtype=torch.uint8)
    cube[0, 0, 0, 0] = cube[0, 1, 1, 1] = 1
    assert measure_masks(cube, torch.zeros_like(cube), 2, names=["components"])["components"][0, 1] == 1


def test_ignored_pixels_count_nowhere():
    gold, prediction = mask("11--", "11--", "00--"), mask("1111", "0111", "0011")
    found = measured(prediction, gold, tolerance=0)
    # Of the six valid pixels gold has 4, the prediction 3, all of them right.
    assert (found["iou"], found["precision"], found["recall"]) == (0.75, 1, 0.75)
    assert found["components"] == 0
    prediction[0, 0, 1] = 255
    found = measured(prediction, gold)
    # Now 5 are valid: gold 3, the prediction 2, which touch at a corner.
    assert found["iou"] == pytest.approx(2 / 3)
    assert found["components"] == 0


def test_no_contour_beside_valid_pixels_is_nothing_to_be_wrong_about():
    gold = torch.full((1, 6, 6), 255, dtype=torch.uint8)
    gold[0, 2:4, 2:4] = 1
    prediction = torch.ones_like(gold)
    found = measured(prediction, gold)
    assert (found["iou"], found["components"]) == (1, 0)
    assert all(math.isnan(found[name]) for name in ("boundary_iou", "hd95", "surface_dice"))
    # But an object that was not found is a fault wherever it lies.
    found = measured(torch.zeros_like(gold), gold)
    assert (found["boundary_iou"], found["surface_dice"], found["hd95"]) == (0, 0, pytest.approx(72**0.5))


def test_background_is_a_class_if_asked_for():
    found = measure_masks(EMPTY, EMPTY, 2, background=True)
    assert [found[name][0, 0].item() for name in SHARES] == [1] * len(SHARES)
    assert found["iou"][0, 1].isnan()


def test_no_image_is_no_number():
    assert measure_masks(EMPTY[:0], EMPTY[:0], 3)["hd95"].shape == (0, 3)
    assert MaskQuality(2, names=["iou"]).compute()["iou"].isnan()


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64])
def test_labels_of_other_types(dtype):
    found = measured(CORNER.to(dtype), FULL.to(dtype))
    assert (found["recall"], found["precision"]) == (pytest.approx(1 / 12), 1)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"names": ["hd59"]}, "names.*iou.*'hd59'"),
        ({"spacing": (1, 1, 1)}, "spacing.*2 axes"),
        ({"spacing": (1, 0)}, "spacing.*above 0"),
        ({"tolerance": -1}, "tolerance.*at least 0"),
        ({"boundary_width": 0}, "boundary_width.*at least 1"),
    ],
)
def test_options_out_of_range(options, said):
    with pytest.raises(ValueError, match=said):
        measure_masks(EMPTY, FULL, 2, **options)


def test_masks_that_are_none():
    with pytest.raises(ValueError, match=r"prediction\.squeeze\(1\)"):
        measure_masks(EMPTY[None], FULL[None], 2)
    with pytest.raises(ValueError, match=r"gold.*class -1"):
        measure_masks(EMPTY.long(), FULL.long() - 2, 2)

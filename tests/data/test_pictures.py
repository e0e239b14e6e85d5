"""Masks over images: colours worked out by hand, and outlines that leave every pixel of a mask to its fill."""

import numpy as np
import pytest

from segdpo.data import DIFFERENCE, class_colours, difference, fit, overlay
from segdpo.data.pictures import COLOURS, TINT

CLASSES = ("background", "line")
GREY = np.full((8, 8, 3), 100, np.uint8)
AGREE, MORE, LESS, OTHER = DIFFERENCE


def filled(colour, below=100):
    """Return a colour over grey, 0.4 to 0.6."""
    return [round(0.6 * below + 0.4 * part) for part in colour]


def test_a_line_of_one_pixel_keeps_its_pixel_and_has_an_outline_on_either_side():
    mask = np.zeros((8, 8), np.uint8)
    mask[:, 3] = 1
    shown = overlay(GREY, mask, CLASSES)
    # Orange (230, 159, 0) over 100: .6 · 100 + .4 · (230, 159, 0).
    expected = [[100] * 3, [100] * 3, [230, 159, 0], [152, 124, 60], [230, 159, 0], *[[100] * 3] * 3]
    assert shown.tolist() == [expected] * 8


def test_a_pixel_alone():
    mask = np.zeros((5, 5), np.uint8)
    mask[2, 2] = 1
    shown = overlay(GREY[:5, :5], mask, CLASSES)
    assert shown[2, 2].tolist() == filled(COLOURS[0])
    assert (shown == COLOURS[0]).all(-1).sum() == 8
    assert (shown == 100).all(-1).sum() == 16


@pytest.mark.parametrize("side", [None, 24])
def test_the_outline_covers_no_pixel_of_any_class(side):
    rng = np.random.default_rng(0)
    for _ in range(20):
        mask = rng.choice(np.array([0, 0, 0, 1, 2, 3, 255], np.uint8), (8, 8))
        shown = overlay(GREY, mask, ("background", "a", "b", "c"), side=side)
        drawn = mask if side is None else mask.repeat(3, 0).repeat(3, 1)
        for label, colour in enumerate(class_colours(3), 1):
            assert (shown[drawn == label] == filled(colour)).all()


def test_in_a_smaller_picture_a_line_of_one_pixel_is_there_in_every_row():
    image, mask = np.full((64, 64, 3), 100, np.uint8), np.zeros((64, 64), np.uint8)
    mask[:, 30] = 1
    shown = overlay(image, mask, CLASSES, side=16).astype(int)
    # A quarter of the size, so an outline of 4: columns 26 … 34, of which 30 is the line. Of the cells of 4 columns,
    # number 6 (24 … 27) has 2 of the outline, 7 (28 … 31) 3 and the line, 8 (32 … 35) 3.
    orange, line = np.array(COLOURS[0]), np.array(filled(COLOURS[0]))
    expected = np.full((16, 3), 100.0)
    expected[6:9] = (2 * orange + 200) / 4, (3 * orange + line) / 4, (3 * orange + 100) / 4
    assert (abs(shown - expected) <= 0.5).all()


@pytest.mark.parametrize(("size", "side"), [((1000, 1003), 50), ((999, 400), 100), ((200, 200), 199)])
def test_lines_of_one_pixel_are_in_every_row_and_column_of_much_smaller_pictures(size, side):
    image, mask = np.full((*size, 3), 100, np.uint8), np.zeros(size, np.uint8)
    mask[:, size[1] // 2] = mask[size[0] // 2] = 1
    shown = overlay(image, mask, CLASSES, side=side).astype(int)
    assert shown.shape == fit(image, side).shape
    changed = abs(shown - 100).max(2)
    assert min(changed.max(0).min(), changed.max(1).min()) > 50
    assert (changed > 0).sum() < 6 * sum(shown.shape[:2])


def test_the_image_shows_through_the_mask():
    image = np.random.default_rng(0).integers(0, 256, (8, 8, 1), dtype=np.uint8)
    shown = overlay(image, np.ones((8, 8), np.uint8), CLASSES)
    np.testing.assert_allclose(shown, 0.6 * image + 0.4 * np.array(COLOURS[0]), atol=0.5001)


def test_the_image_is_nearer_to_grey_than_a_class():
    image = np.zeros((2, 2, 3), np.uint8)
    image[...] = 230, 159, 0  # the first class's colour; its mean is 129.67
    shown = overlay(image, np.zeros((2, 2), np.uint8), CLASSES)
    assert shown[0, 0].tolist() == [round(0.3 * part + 0.7 * 389 / 3) for part in (230, 159, 0)]


def test_a_class_0_that_is_a_thing_has_a_colour_too():
    assert overlay(GREY, np.zeros((8, 8), np.uint8), ("sky", "road"))[0, 0].tolist() == filled(COLOURS[0])


def test_ignored_pixels_are_striped():
    shown = overlay(np.zeros((6, 6, 3), np.uint8), np.full((6, 6), 255, np.uint8), CLASSES)
    assert {tuple(pixel) for pixel in shown.reshape(-1, 3).tolist()} == {(0, 0, 0), (112, 112, 112)}


def test_the_difference_of_two_masks():
    mask, gold = np.zeros((8, 8), np.uint8), np.zeros((8, 8), np.uint8)
    mask[1:3, 1:3] = 1  # agree, and beside it one column too many
    gold[1:3, 1] = 1
    gold[6, 6] = 1
    shown = difference(GREY, mask, gold)
    assert shown[1:3, 1].tolist() == [filled(AGREE)] * 2
    assert shown[1:3, 2].tolist() == [filled(MORE)] * 2
    assert shown[6, 6].tolist() == filled(LESS)
    assert shown[1, 3].tolist() == list(MORE)
    assert shown[5, 5].tolist() == list(LESS)
    assert shown[4, 0].tolist() == [100] * 3


def test_two_classes_that_differ_and_pixels_that_one_ignores():
    mask, gold = np.full((8, 8), 1, np.uint8), np.full((8, 8), 2, np.uint8)
    assert (difference(GREY, mask, gold) == filled(OTHER)).all()
    gold[:] = 255
    assert {tuple(pixel) for pixel in difference(GREY, mask, gold).reshape(-1, 3).tolist()} == {
        (100, 100, 100),
        (142, 142, 142),  # .3 · 100 + .7 · 160
    }


def test_a_class_0_that_counts_is_compared():
    none = np.zeros((8, 8), np.uint8)
    assert (difference(GREY, none, none) == 100).all()
    assert (difference(GREY, none, none, background=True) == filled(AGREE)).all()


def test_colours_are_told_apart_by_those_who_do_not_see_red_or_green():
    # Without red-green vision blue and the brightness of the rest are left.
    seen = np.array(DIFFERENCE, float) @ np.array([[0.2126, 0], [0.7152, 0], [0.0722, 1]])
    apart = np.linalg.norm(seen[:, None] - seen[None], axis=2)[np.triu_indices(4, 1)]
    assert apart.min() > 50
    assert TINT < 0.5  # more of the image than of the colour


def test_every_class_has_its_colour():
    assert len(np.unique(class_colours(40), axis=0)) == 40


def test_pictures_keep_their_shape():
    assert fit(np.zeros((400, 100, 1), np.uint8), 160).shape == (160, 40, 3)
    assert fit(np.zeros((5, 9, 4), np.uint8), 9).shape == (5, 9, 3)
    assert fit(np.zeros((5, 10, 2), np.uint8), 20).shape == (10, 20, 3)
    checks = np.zeros((4, 4, 3), np.uint8)
    checks[::2, ::2] = 200
    assert (fit(checks, 2) == 50).all()  # averaged, not every second pixel

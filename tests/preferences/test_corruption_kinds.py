"""Each kind of corruption on small masks drawn as text."""

import numpy as np
import pytest
from scipy import ndimage

from segdpo.preferences.corruptions import (
    class_swap,
    grow,
    holes,
    jagged_contour,
    lost_component,
    merged_component,
    reach,
    shift,
    shrink,
    smoothed_contour,
    spurious_blob,
)


def drawn(text: str) -> np.ndarray:
    """A mask as text: "." background, digits classes, "?" ignored."""
    ids = {".": 0, "?": 255}
    return np.array([[ids.get(c, ord(c) - ord("0")) for c in row] for row in text.split()], np.uint8)


def rng_of(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


SQUARE = drawn(
    """
    ........
    ........
    ..1111..
    ..1111..
    ..1111..
    ..1111..
    ........
    ........
    """
)
NESTED = drawn(
    """
    ........
    .111111.
    .111111.
    .112211.
    .112211.
    .111111.
    .111111.
    ........
    """
)


def test_grow_by_one_pixel():
    expected = drawn(
        """
        ........
        ..1111..
        .111111.
        .111111.
        .111111.
        .111111.
        ..1111..
        ........
        """
    )
    np.testing.assert_array_equal(grow(SQUARE, 0.5, rng_of()), expected)


def test_grow_paints_the_small_class_over_the_large_one():
    expected = drawn(
        """
        .111111.
        11111111
        11122111
        11222211
        11222211
        11122111
        11111111
        .111111.
        """
    )
    np.testing.assert_array_equal(grow(NESTED, 0.5, rng_of()), expected)


def test_shrink_by_one_pixel():
    expected = drawn(
        """
        ........
        ........
        ........
        ...11...
        ...11...
        ........
        ........
        ........
        """
    )
    np.testing.assert_array_equal(shrink(SQUARE, 1.0, rng_of()), expected)


def test_shrink_lets_the_body_into_the_nucleus_and_background_into_the_body():
    nested = NESTED.copy()
    nested[2:6, 2:6] = 2
    expected = drawn(
        """
        ........
        ........
        ..1111..
        ..1221..
        ..1221..
        ..1111..
        ........
        ........
        """
    )
    np.testing.assert_array_equal(shrink(nested, 1.0, rng_of()), expected)


def test_ignored_pixels_neither_spread_nor_shrink_what_lies_beside_them():
    mask = SQUARE.copy()
    mask[:, 4] = 255
    grown = drawn(
        """
        ....?...
        ..11?1..
        .111?11.
        .111?11.
        .111?11.
        .111?11.
        ..11?1..
        ....?...
        """
    )
    shrunk = drawn(
        """
        ....?...
        ....?...
        ....?...
        ...1?...
        ...1?...
        ....?...
        ....?...
        ....?...
        """
    )
    np.testing.assert_array_equal(grow(mask, 0.5, rng_of()), grown)
    np.testing.assert_array_equal(shrink(mask, 0.5, rng_of()), shrunk)


def test_smoothing_rounds_the_corners_of_a_square():
    expected = drawn(
        """
        ........
        ........
        ...11...
        ..1111..
        ..1111..
        ...11...
        ........
        ........
        """
    )
    np.testing.assert_array_equal(smoothed_contour(SQUARE, 0.5, rng_of()), expected)


def test_smoothing_leaves_a_straight_contour_alone():
    half = np.repeat(np.array([[0, 0, 0, 0, 1, 1, 1, 1]], np.uint8), 8, axis=0)
    np.testing.assert_array_equal(smoothed_contour(half, 0.5, rng_of()), half)


def test_shift_moves_the_square_by_one_pixel_in_one_of_eight_directions():
    moves = {np.roll(SQUARE, (y, x), (0, 1)).tobytes() for y in (-1, 0, 1) for x in (-1, 0, 1)} - {SQUARE.tobytes()}
    seen = {shift(SQUARE, 0.5, rng_of(seed)).tobytes() for seed in range(100)}
    assert seen == moves


def test_shift_of_a_stripe_never_goes_along_the_stripe():
    stripe = np.zeros((8, 8), np.uint8)
    stripe[:, 3:5] = 1
    assert all(shift(stripe, 0.5, rng_of(seed)).tobytes() != stripe.tobytes() for seed in range(50))


def test_shift_leaves_a_pixel_whose_source_is_ignored_as_it_was():
    mask = np.ones((8, 8), np.uint8)
    mask[:, :4] = 0
    mask[:, 3] = 255
    for seed in range(30):
        moved = shift(mask, 0.5, rng_of(seed))
        np.testing.assert_array_equal(moved[:, 3], 255)
        assert set(np.unique(np.delete(moved, 3, axis=1))) <= {0, 1}
        # Column 4 could only have received what is ignored in column 3, or its own class from column 5.
        np.testing.assert_array_equal(moved[:, 4], 1)


def test_jagged_contours_change_only_near_the_contour():
    mask = np.zeros((64, 64), np.uint8)
    mask[16:48, 16:48] = 1
    jagged = jagged_contour(mask, 0.5, rng_of())
    near = ndimage.binary_dilation(mask, iterations=6) & ~ndimage.binary_erosion(mask, iterations=6)
    changed = jagged != mask
    assert 0 < changed.sum() < near.sum() / 2
    assert not changed[~near].any()


def test_reach_is_half_the_radius_of_small_objects_and_a_sixteenth_of_the_image_at_most():
    mask = np.zeros((64, 64), np.uint8)
    mask[0:4, 0:4] = 1
    assert reach(mask) == pytest.approx(0.5 * np.sqrt(16 / np.pi))
    mask[10:60, 10:60] = 1
    assert reach(mask) == 4
    assert reach(np.zeros((64, 32), np.uint8)) == 2


EMPTY = np.zeros((8, 8), np.uint8)
TWO = drawn(
    """
    ........
    ........
    ........
    .11..11.
    .11..11.
    ........
    ........
    ........
    """
)


def test_a_hole_is_a_disc_at_the_deepest_place():
    mask = np.zeros((8, 8), np.uint8)
    mask[2:5, 2:5] = 1
    expected = drawn(
        """
        ........
        ........
        ..1.1...
        ........
        ..1.1...
        ........
        ........
        ........
        """
    )
    np.testing.assert_array_equal(holes(mask, 0.3, rng_of()), expected)


def test_holes_are_more_when_the_severity_is_higher():
    mask = np.zeros((64, 64), np.uint8)
    mask[4:60, 4:60] = 1
    counts = [ndimage.label(holes(mask, severity, rng_of(3)) == 0)[1] - 1 for severity in (0.3, 0.7, 1.0)]
    assert counts[0] == 1
    assert 1 <= counts[1] <= 2
    assert 1 <= counts[2] <= 3


def test_losing_the_only_component_leaves_an_empty_mask():
    np.testing.assert_array_equal(lost_component(SQUARE, 0.2, rng_of()), EMPTY)


def test_a_lost_nucleus_becomes_body_and_a_lost_body_takes_its_nucleus_along():
    seen = {lost_component(NESTED, 0.2, rng_of(seed)).tobytes() for seed in range(30)}
    assert seen == {(NESTED > 0).astype(np.uint8).tobytes(), EMPTY.tobytes()}


def test_losing_at_severity_one_loses_half_of_the_components():
    mask = np.zeros((8, 8), np.uint8)
    mask[1::2, 1::2] = 1
    mask[3::4] = 0  # 8 single pixels
    assert mask.sum() == 8
    for severity, left in ((0.1, 7), (0.5, 6), (1.0, 4)):
        assert lost_component(mask, severity, rng_of()).sum() == left


def test_merged_squares_get_a_bridge():
    expected = drawn(
        """
        ........
        ........
        ..1111..
        .111111.
        .111111.
        ........
        ........
        ........
        """
    )
    for seed in range(5):
        np.testing.assert_array_equal(merged_component(TWO, 0.2, rng_of(seed)), expected)


def test_merging_needs_two_parts_of_one_class():
    mask = TWO.copy()
    mask[:, 4:][mask[:, 4:] == 1] = 2
    np.testing.assert_array_equal(merged_component(mask, 1.0, rng_of()), mask)


def test_class_swap_gives_one_part_the_other_object_class():
    mask = TWO.copy()
    mask[:, 4:][mask[:, 4:] == 1] = 2
    ones, twos = TWO, 2 * TWO
    assert {class_swap(mask, 0.2, rng_of(s)).tobytes() for s in range(30)} == {ones.tobytes(), twos.tobytes()}


def test_class_swap_of_a_binary_part_makes_it_background():
    left, right = TWO.copy(), TWO.copy()
    left[:, 4:] = 0
    right[:, :4] = 0
    assert {class_swap(TWO, 0.2, rng_of(s)).tobytes() for s in range(30)} == {left.tobytes(), right.tobytes()}


def test_a_spurious_blob_lies_apart_from_the_objects():
    mask = np.zeros((64, 64), np.uint8)
    mask[10:20, 10:20] = 2
    for seed in range(20):
        blob = spurious_blob(mask, 0.8, rng_of(seed))
        assert ndimage.label(blob == 2)[1] == 2
        np.testing.assert_array_equal(blob[mask == 2], 2)


def test_a_spurious_blob_on_an_empty_mask_is_class_one():
    assert set(np.unique(spurious_blob(EMPTY, 0.2, rng_of()))) == {0, 1}

import numpy as np
import pytest
from scipy import ndimage

from segdpo.preferences.corruptions import grow, jagged_contour, reach, shift, shrink, smoothed_contour


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

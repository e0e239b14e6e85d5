import numpy as np
from scipy import ndimage

from segdpo.preferences.corruptions import class_swap, holes, lost_component, merged_component, spurious_blob


def drawn(text: str) -> np.ndarray:
    """A mask as text: "." background, digits classes, "?" ignored."""
    ids = {".": 0, "?": 255}
    return np.array([[ids.get(c, ord(c) - ord("0")) for c in row] for row in text.split()], np.uint8)


def rng_of(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


EMPTY = np.zeros((8, 8), np.uint8)
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

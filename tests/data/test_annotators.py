from pathlib import Path

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from segdpo.data.annotators import STYLES, Annotator, annotate, as_polygons
from segdpo.data.record import Record

CONF = str(Path(__file__).parents[2] / "conf")


def drawn(text: str) -> np.ndarray:
    """A mask as text: "." background, digits classes, "?" ignored."""
    ids = {".": 0, "?": 255}
    return np.array([[ids.get(c, ord(c) - ord("0")) for c in row] for row in text.split()], np.uint8)


def rng_of(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def record_of(mask: np.ndarray) -> Record:
    return Record("r", np.zeros((*mask.shape, 3), np.uint8), mask[None], ("first",), gold=mask)


def cells(seed: int = 0) -> np.ndarray:
    """Touching discs with a stalk each, 64²; 1 = body, 2 = nucleus, 3 = stalk."""
    y, x = np.mgrid[:64, :64]
    mask = np.zeros((64, 64), np.uint8)
    for cy, cx in ((18, 16), (18, 35), (42, 26)):
        cy, cx = cy + seed % 3, cx + seed % 5
        mask[(np.abs(x - cx) <= 1) & (y > cy) & (y < cy + 20) & (mask == 0)] = 3
        mask[np.hypot(y - cy, x - cx) <= 9] = 1
        mask[np.hypot(y - cy, x - cx) <= 4] = 2
    return mask


def parts(region: np.ndarray) -> int:
    return ndimage.label(region, np.ones((3, 3)))[1]


SQUARE = np.pad(np.ones((4, 4), np.uint8), 2)
# At 8² amounts are eighths: generous=8 is one pixel, missed_thin=16 and merged=16 are two.


def test_generous_outlines_run_one_pixel_outside_and_leave_ignored_pixels_alone():
    mask = SQUARE.copy()
    mask[0, 3], mask[1, 4] = 255, 255
    expected = drawn(
        """
        ...?....
        ..11?1..
        .111111.
        .111111.
        .111111.
        .111111.
        ..1111..
        ........
        """
    )
    expected[1, 3] = 1
    np.testing.assert_array_equal(Annotator(generous=8)(mask, rng_of()), expected)


def test_a_stalk_is_missed_but_for_its_root():
    mask = drawn(
        """
        ........
        ........
        1111....
        11111111
        1111....
        1111....
        ........
        ........
        """
    )
    expected = mask.copy()
    expected[3, 6:] = 0
    np.testing.assert_array_equal(Annotator(missed_thin=16)(mask, rng_of()), expected)


def test_a_seam_between_neighbours_is_painted_over():
    mask = drawn(
        """
        ........
        ........
        .11.11..
        .11.11..
        .11.11..
        .11.11..
        ........
        ........
        """
    )
    expected = mask.copy()
    expected[3:5, 3] = 1
    np.testing.assert_array_equal(Annotator(merged=16)(mask, rng_of()), expected)


def test_polygons_lose_holes_and_keep_the_corners_of_a_square():
    mask = SQUARE.copy()
    mask[4, 4] = 0
    np.testing.assert_array_equal(as_polygons(mask, 1.0), SQUARE)


def test_polygons_put_the_nucleus_on_its_cell():
    mask = SQUARE.copy()
    mask[3:5, 3:5] = 2
    np.testing.assert_array_equal(as_polygons(mask, 0.5), mask)


def test_a_coarse_polygon_cuts_off_a_notch_and_a_fine_one_does_not():
    mask = np.zeros((32, 32), np.uint8)
    mask[8:24, 8:24] = 1
    mask[14:17, 22:24] = 0  # two pixels deep
    assert (as_polygons(mask, 0.5)[15, 22:24] == 0).all()
    full = np.zeros_like(mask)
    full[8:24, 8:24] = 1
    np.testing.assert_array_equal(as_polygons(mask, 3.0), full)


def test_polygons_of_touching_classes_leave_no_background_between_them():
    y, x = np.mgrid[:32, :32]
    mask = (1 + (x > 16 + 5 * np.sin(y / 3))).astype(np.uint8)
    redrawn = as_polygons(mask, 3.0)
    assert (redrawn > 0).all()
    assert (redrawn != mask).any()


def test_polygons_stray_no_further_than_the_tolerance():
    mask = (cells() > 0).astype(np.uint8)
    strayed = as_polygons(mask, 2.0) != mask
    assert strayed.any()
    filled = ndimage.binary_fill_holes(mask)
    to_contour = np.maximum(ndimage.distance_transform_edt(mask), ndimage.distance_transform_edt(1 - mask))
    assert to_contour[strayed & (filled == mask)].max() <= 2.0 + 1.5  # and what rounding to pixels adds


@pytest.mark.parametrize("pixels", [1.0, 1.5, 2.0, 3.0])
def test_generous_outlines_are_the_pixels_within_a_distance_of_gold(pixels):
    gold = (cells() > 0).astype(np.uint8)
    expected = ndimage.distance_transform_edt(1 - gold) <= pixels
    np.testing.assert_array_equal(Annotator(generous=pixels)(gold, rng_of()), expected)


def test_amounts_scale_with_the_image():
    gold = np.kron((cells() > 0).astype(np.uint8), np.ones((2, 2), np.uint8))
    expected = ndimage.distance_transform_edt(1 - gold) <= 4
    np.testing.assert_array_equal(Annotator(generous=2)(gold, rng_of()), expected)


def test_a_range_is_drawn_anew_for_each_mask():
    gold = (cells() > 0).astype(np.uint8)
    areas = {int(Annotator(generous=(1, 3))(gold, rng_of(seed)).sum()) for seed in range(20)}
    low, high = (int(Annotator(generous=amount)(gold, rng_of()).sum()) for amount in (1, 3))
    assert len(areas) > 3
    assert low <= min(areas) < max(areas) <= high


def test_tremor_moves_the_contour_both_ways_and_more_when_stronger():
    gold = (cells() > 0).astype(np.uint8)
    weak, strong = (Annotator(noise=noise)(gold, rng_of()) for noise in (0.3, 1.5))
    assert 0 < (weak != gold).sum() < (strong != gold).sum()
    assert ((strong == 0) & (gold == 1)).any()
    assert ((strong == 1) & (gold == 0)).any()


def test_without_faults_the_mask_is_copied():
    gold = cells()
    copy = Annotator()(gold, rng_of())
    np.testing.assert_array_equal(copy, gold)
    assert not np.shares_memory(copy, gold)


@pytest.mark.parametrize("binary", [True, False])
def test_each_default_annotator_has_the_fault_of_its_name(binary):
    stalks_kept = dict.fromkeys(STYLES, 0.0)
    for seed in range(10):
        gold = cells(seed)
        stalk = (gold == 3) & ~ndimage.binary_dilation(gold == 1, iterations=4)
        if binary:
            gold = (gold > 0).astype(np.uint8)
        candidates = annotate(record_of(gold), rng_of(seed))
        masks = dict(zip(candidates.names, candidates.masks, strict=True))
        for name, mask in masks.items():
            stalks_kept[name] += (mask > 0)[stalk].mean() / 10
        inside = gold > 0
        assert (masks["generous"] > 0)[inside].mean() > 0.97
        assert (masks["generous"] > 0).sum() > 1.15 * inside.sum()
        assert (masks["merged"] > 0)[inside].mean() > 0.95
        assert parts(masks["merged"] > 0) == 1
        # The corners of polygons are few: its contour has long straight runs, so redrawing it changes little.
        again = as_polygons(masks["polygon"], 1.0)
        assert (again != masks["polygon"]).mean() < 0.02
    assert stalks_kept["missed_thin"] < 0.1
    assert stalks_kept["generous"] > 0.95


def test_merged_neighbours_are_fewer_than_there_were():
    y, x = np.mgrid[:64, :64]
    gold = np.zeros((64, 64), np.uint8)
    for cx in (10, 30, 51):  # gaps of 2 and 3 pixels
        gold[np.hypot(y - 32, x - cx) <= 9] = 1
    assert parts(gold) == 3
    assert parts(Annotator(merged=8)(gold, rng_of())) == 1
    assert parts(Annotator(missed_thin=5)(gold, rng_of())) == 3


def test_an_annotator_draws_the_same_whoever_else_draws():
    record = record_of(cells())
    together = annotate(record, rng_of(5))
    alone = annotate(record, rng_of(5), styles=["merged"])
    np.testing.assert_array_equal(alone.masks[0], together.masks[together.names.index("merged")])
    again = annotate(record, rng_of(5))
    np.testing.assert_array_equal(again.masks, together.masks)
    assert (annotate(record, rng_of(6)).masks != together.masks).any()


def test_a_style_may_be_any_function():
    candidates = annotate(record_of(SQUARE), rng_of(), styles={"mirror": lambda mask, rng: 1 - mask})
    np.testing.assert_array_equal(candidates.masks, [1 - SQUARE])
    assert candidates.names == ("mirror",)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), height=st.integers(1, 40), width=st.integers(1, 40), classes=st.integers(1, 5))
@pytest.mark.parametrize("style", STYLES)
def test_every_style_keeps_to_the_contract(style, seed, height, width, classes):
    rng = rng_of(seed)
    smooth = ndimage.gaussian_filter(rng.random((classes, height, width)), (0, 2, 2))
    mask = smooth.argmax(0).astype(np.uint8)
    mask[rng.random(mask.shape) < 0.1] = 255
    before = mask.copy()
    out = STYLES[style](mask, rng_of(seed))
    np.testing.assert_array_equal(mask, before)
    assert out.dtype == np.uint8
    assert out.shape == mask.shape
    np.testing.assert_array_equal(out == 255, mask == 255)
    assert set(np.unique(out)) <= set(np.unique(mask)) | {0}


@pytest.mark.parametrize(
    ("faults", "message"),
    [
        ({"generous": -1}, "generous.*-1"),
        ({"noise": (2, 1)}, r"noise.*\(2, 1\)"),
        ({"merged": float("nan")}, "merged.*nan"),
        ({"polygon": (1, 2, 3)}, r"\(1, 2, 3\)"),
    ],
)
def test_amounts_that_are_no_pixels_are_refused(faults, message):
    with pytest.raises(ValueError, match=message):
        Annotator(**faults)


def test_unknown_and_missing_styles_are_refused():
    with pytest.raises(ValueError, match=r"generous, polygon, missed_thin, merged.*'sloppy'"):
        annotate(record_of(SQUARE), rng_of(), styles=["sloppy"])
    with pytest.raises(ValueError, match="style"):
        annotate(record_of(SQUARE), rng_of(), styles=[])


def test_the_yaml_composes_and_draws_what_the_defaults_draw():
    with initialize_config_dir(CONF, version_base=None):
        source = instantiate(compose(overrides=["+candidates=annotators"]).candidates)
    expected = annotate(record_of(cells()), rng_of(3))
    candidates = source(record_of(cells()), rng_of(3))
    assert candidates.names == expected.names
    np.testing.assert_array_equal(candidates.masks, expected.masks)

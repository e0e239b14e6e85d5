"""The embedded set of thin structures: widths, connectivity and shares, measured in other ways than they are drawn."""

from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from scipy import ndimage

from segdpo.data import Record, Vessels, annotate_vessels
from segdpo.data.vessels import Line, depth_inside
from segdpo.preferences.corruptions import corrupt

CONF = str(Path(__file__).parents[2] / "conf")
TOUCHING = np.ones((3, 3))


@cache
def records() -> list[Record]:
    return list(Vessels(6))


def iou(a: np.ndarray, b: np.ndarray) -> float:
    return float(((a > 0) & (b > 0)).sum() / ((a > 0) | (b > 0)).sum())


def runs(mask: np.ndarray) -> np.ndarray:
    """Return for each pixel of a mask how many of it stand in a row around it; 0 outside."""
    lengths = np.zeros(mask.shape, int)
    for row, line in zip(lengths, mask, strict=True):
        edges = np.flatnonzero(np.diff(np.pad(line.astype(int), 1)))
        for start, stop in zip(edges[::2], edges[1::2], strict=True):
            row[start:stop] = stop - start
    return lengths


def test_a_record_is_complete():
    record = records()[3]
    assert record.id == "vessels-0-00003"
    assert record.image.shape == (512, 512, 3)
    assert record.image.dtype == record.masks.dtype == record.gold.dtype == np.uint8
    assert record.masks.shape == (4, 512, 512)
    assert record.mask_names == ("thicker", "thinner", "broken", "missed")
    assert set(np.unique(record.gold)) == {0, 1}
    assert Vessels(6).classes == ("background", "vessel")


def test_a_record_depends_on_seed_size_and_index_alone():
    few, many = Vessels(2, size=128, seed=7), Vessels(100, size=128, seed=7, keep=True)
    for i, other in ((1, many[1]), (0, many[0])):
        np.testing.assert_array_equal(few[i].image, other.image)
        np.testing.assert_array_equal(few[i].masks, other.masks)
        np.testing.assert_array_equal(few[i].gold, other.gold)
    assert many[1] is many[1]
    assert len({Vessels(9, size=128, seed=seed)[i].image.tobytes() for seed in (0, 1) for i in range(9)}) == 18


def test_lines_are_2_to_4_pixels_wide():
    for record in records():
        gold = record.gold > 0
        # Across a line of width w at any angle, the shorter of the runs along rows and columns is from ⌊w⌋ to w·√2 + 1
        # pixels. Where lines branch, runs are longer, and at the ends of lines shorter.
        width = np.minimum(runs(gold), runs(gold.T).T)[gold]
        assert (width < 2).mean() < 0.01
        assert (width > 6).mean() < 0.03
        # No disc of 7 pixels fits, but where lines branch.
        y, x = np.ogrid[-3:4, -3:4]
        assert ndimage.binary_opening(gold, x * x + y * y <= 9).mean() < 0.002


def test_few_long_connected_lines_cover_a_small_share():
    for record in records():
        parts, count = ndimage.label(record.gold, TOUCHING)
        assert 2 <= count <= 8  # one for each trunk of 512 / 64, less where trunks meet
        assert 0.02 < record.gold.mean() < 0.06
        for rows, columns in ndimage.find_objects(parts):
            assert max(rows.stop - rows.start, columns.stop - columns.start) > 16
        on_the_border = np.concatenate([parts[0], parts[-1], parts[:, 0], parts[:, -1]])
        assert set(np.unique(on_the_border)) == set(range(count + 1))  # each enters from outside


def test_the_smallest_images_have_lines_too():
    assert all(Vessels(60, size=64, masks=None)[i].gold.any() for i in range(60))


def test_the_depth_in_a_straight_line_by_hand():
    points = np.stack([np.full(81, 10.0), np.linspace(2, 42, 81)], 1)
    depth = depth_inside([Line(points, np.full(81, 1.5))], 48)
    # Along a line at height 10 of half width 1.5, rows 8 … 11 have their centres .5 and 1.5 from it.
    np.testing.assert_allclose(depth[7:13, 20], [-0.5, 0, 1, 1, 0, -0.5], atol=0.03)
    # Half of these points lie .25 from the next centre: that much is missing from the disc's edge.
    assert (depth[:, 20] > 0.01).sum() == 2
    assert depth[9, 47] == -0.5


def test_the_picture_shows_the_lines_but_does_not_give_them_away():
    for record in records():
        grey, inside = record.image.mean(2), record.gold > 0
        beside = ndimage.binary_dilation(inside, iterations=4) & ~ndimage.binary_dilation(inside, iterations=2)
        assert grey[beside].mean() - grey[inside].mean() > 8
        best = max(iou(grey < level, inside) for level in range(int(grey.min()), int(grey.max())))
        assert best < 0.6


def test_each_annotator_has_the_fault_of_its_name():
    for record in records():
        gold, masks = record.gold > 0, dict(zip(record.mask_names, record.masks > 0, strict=True))
        assert all(iou(mask, gold) < 0.97 for mask in masks.values())
        assert masks["thicker"].sum() > 1.4 * gold.sum()
        assert ndimage.binary_dilation(masks["thinner"]).sum() > 0.9 * gold.sum()
        assert (masks["thinner"] <= gold).all()
        assert 0.4 * gold.sum() < masks["thinner"].sum() < 0.75 * gold.sum()
        parts = {name: ndimage.label(mask, TOUCHING)[1] for name, mask in {**masks, "gold": gold}.items()}
        assert parts["broken"] > 2 * parts["gold"]
        assert parts["broken"] > parts["missed"]
        for name in ("broken", "missed"):
            assert (masks[name] <= gold).all()
            lost = gold & ~masks[name]
            assert 0.03 < lost.sum() / gold.sum() < 0.35
            # Thin lines are lost, wide ones stay.
            wide = ndimage.binary_opening(gold, np.ones((4, 4)))
            assert masks[name][wide].mean() > 0.9


def test_ignored_pixels_stay_ignored():
    gold = records()[0].gold.copy()
    gold[100:200] = 255
    masks = annotate_vessels(Record("a", records()[0].image, gold[:0][None], (), gold=gold), np.random.default_rng(0))
    assert (masks.masks[:, 100:200] == 255).all()
    assert (masks.masks[:, :100] < 2).all()


@pytest.mark.parametrize(("options", "message"), [({"count": 0}, "count.* 0 "), ({"count": 3, "size": 48}, "64.*48")])
def test_options_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Vessels(**options)


@pytest.mark.parametrize(
    ("overrides", "masks"),
    [
        ((), annotate_vessels),
        (("candidates@data.masks=corruptions",), corrupt),
        (("data.masks=null",), None),
    ],
)
def test_the_yaml_composes(overrides, masks):
    with initialize_config_dir(CONF, version_base=None):
        record = instantiate(compose(overrides=["+data=vessels", "data.size=128", *overrides]).data)[2]
    expected = Vessels(3, size=128, masks=masks)[2]
    assert record.mask_names == expected.mask_names
    np.testing.assert_array_equal(record.masks, expected.masks)
    np.testing.assert_array_equal(record.gold, expected.gold)

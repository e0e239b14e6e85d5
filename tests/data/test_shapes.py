from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from scipy import ndimage

from segdpo.data.record import Candidates, Record, info_of
from segdpo.data.shapes import Shapes
from segdpo.preferences.corruptions import corrupt

CONF = str(Path(__file__).parents[2] / "conf")


@cache
def records(classes: int = 2) -> list[Record]:
    return list(Shapes(40, classes=classes))


def iou(a: np.ndarray, b: np.ndarray) -> float:
    return float(((a > 0) & (b > 0)).sum() / ((a > 0) | (b > 0)).sum())


def test_a_record_is_complete():
    record = records()[3]
    assert record.id == "shapes-0-00003"
    assert record.image.shape == (64, 64, 3)
    assert record.image.dtype == record.masks.dtype == record.gold.dtype == np.uint8
    assert record.masks.shape == (4, 64, 64)
    assert record.mask_names == ("generous", "polygon", "missed_thin", "merged")
    assert record.pairs == record.ranking == ()
    assert info_of(Shapes(40), 3).id == record.id


def test_a_record_depends_on_seed_size_and_index_alone():
    few, many = Shapes(5, seed=7), Shapes(100, seed=7)
    backwards = [many[i] for i in (4, 3, 2, 1, 0)][::-1]
    for i, other in enumerate(backwards):
        np.testing.assert_array_equal(few[i].image, other.image)
        np.testing.assert_array_equal(few[i].masks, other.masks)
        np.testing.assert_array_equal(few[i].gold, other.gold)


def test_seeds_and_indices_differ():
    images = [record.image.tobytes() for record in records()] + [
        Shapes(40, seed=1)[i].image.tobytes() for i in range(10)
    ]
    assert len(set(images)) == 50


def test_other_masks_leave_picture_and_gold_alone():
    record = Shapes(40, masks=corrupt)[3]
    np.testing.assert_array_equal(record.image, records()[3].image)
    np.testing.assert_array_equal(record.gold, records()[3].gold)
    assert all("-" in name for name in record.mask_names)
    assert Shapes(40, masks=None)[3].masks.shape == (0, 64, 64)


def test_both_variants_show_the_same_images_and_objects():
    assert Shapes(1).classes == ("background", "object")
    assert Shapes(1, classes=4).classes == ("background", "body", "nucleus", "process")
    for two, four in zip(records(), records(4), strict=True):
        np.testing.assert_array_equal(two.image, four.image)
        np.testing.assert_array_equal(two.gold, four.gold > 0)


def test_every_class_is_there_and_in_its_place():
    shares = np.array([[(record.gold == c).mean() for c in range(4)] for record in records(4)])
    np.testing.assert_allclose(shares.sum(1), 1)
    assert (shares[:, :3] > 0).all()
    assert (shares[:, 3] > 0).mean() > 0.9
    assert 0.1 < 1 - shares[:, 0].mean() < 0.4
    for record in records(4):
        beside_nucleus = ndimage.binary_dilation(record.gold == 2) & (record.gold != 2)
        assert (record.gold[beside_nucleus] == 1).all()  # a nucleus lies wholly inside its body
        widest = ndimage.distance_transform_edt(np.pad(record.gold == 3, 1)).max(initial=0)
        assert widest <= 4  # processes are thin


def test_cells_touch_but_for_a_thin_seam():
    seams = 0
    for record in records():
        closed = ndimage.binary_closing(np.pad(record.gold, 4), np.ones((4, 4)))
        seams += ndimage.label(record.gold)[1] > ndimage.label(closed)[1]
    assert seams > 20  # of 40 images


def test_the_picture_shows_the_objects_but_does_not_give_them_away():
    darker = []
    for record in records():
        grey, inside = record.image.mean(2), record.gold > 0
        darker.append(grey[~inside].mean() - grey[inside].mean())
        levels = np.arange(256)[:, None, None]
        best = max(iou(guess, inside) for guess in grey < levels[int(grey.min()) : int(grey.max())])
        assert best < 0.97
        assert grey[~inside].std() > 4  # the ground has texture
    assert min(darker) > 8
    assert max(darker) - min(darker) > 20  # contrast varies


def test_cheap_masks_are_cheap_and_systematically_so():
    names = records()[0].mask_names
    by_style = {name: [(record.masks[k] > 0, record.gold > 0) for record in records()] for k, name in enumerate(names)}
    mean = {name: np.mean([iou(*pair) for pair in pairs]) for name, pairs in by_style.items()}
    assert all(0.6 < value < 0.9 for value in mean.values())
    recall = {name: np.mean([m[g].mean() for m, g in pairs]) for name, pairs in by_style.items()}
    assert recall["generous"] > 0.97
    assert recall["merged"] > 0.97
    assert recall["missed_thin"] < 0.9
    components = {name: np.mean([ndimage.label(m)[1] for m, _ in pairs]) for name, pairs in by_style.items()}
    gold = np.mean([ndimage.label(record.gold)[1] for record in records()])
    assert components["merged"] < 0.75 * gold


def test_missed_thin_parts_are_the_process_class():
    kept = [(r.masks[2] > 0)[r.gold == 3].mean() for r in records(4) if (r.gold == 3).any()]
    bodies = [(r.masks[2] > 0)[(r.gold == 1) | (r.gold == 2)].mean() for r in records(4)]
    assert np.mean(kept) < 0.3
    assert np.mean(bodies) > 0.95


def test_larger_images_show_the_same_cells():
    for i in range(5):
        large = Shapes(5, size=256, masks=None)[i]
        assert large.image.shape == (256, 256, 3)
        reduced = large.gold[2::4, 2::4]
        assert iou(reduced, records()[i].gold) > 0.85


@pytest.mark.parametrize("index", [-1, 3, 1000])
def test_an_index_out_of_range_is_an_error(index):
    with pytest.raises(IndexError, match="from 0 to 2"):
        Shapes(3)[index]


def test_iterating_ends():
    assert [record.id for record in Shapes(3)] == ["shapes-0-00000", "shapes-0-00001", "shapes-0-00002"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"count": 0}, "count.* 0 "),
        ({"count": 3, "size": 16}, "32.*16"),
        ({"count": 3, "classes": 3}, "2.* 4 .*3"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Shapes(**options)


def test_masks_must_be_a_source():
    with pytest.raises(TypeError, match="masks=None"):
        Shapes(3, masks="gold")


def test_a_source_of_the_users():
    def inverted(record, rng):
        return Candidates(1 - record.gold[None], ("inverted",))

    record = Shapes(40, masks=inverted)[3]
    np.testing.assert_array_equal(record.masks[0], records()[3].gold == 0)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["+data=shapes"], Shapes(40)),
        (["+data=shapes_multiclass"], Shapes(40, classes=4)),
        (["+data=shapes", "candidates@data.masks=corruptions"], Shapes(40, masks=corrupt)),
        (["+data=shapes", "data.masks=null"], Shapes(40, masks=None)),
    ],
)
def test_the_yamls_compose(overrides, expected):
    with initialize_config_dir(CONF, version_base=None):
        record = instantiate(compose(overrides=overrides).data)[2]
    expected = expected[2]
    assert record.mask_names == expected.mask_names
    np.testing.assert_array_equal(record.masks, expected.masks)
    np.testing.assert_array_equal(record.gold, expected.gold)

"""Images with gold in batches of equal size, and the way back from a view to the image's own size."""

import numpy as np
import pytest
from toy_records import Listed, record

from segdpo.data.datasets import GoldBatches
from segdpo.data.transforms import Pipeline, albumentations, coordinate_masks, image_box
from segdpo.files import DataError

RNG = np.random.default_rng(0)
PADDED = albumentations.PadIfNeeded(
    min_height=None, min_width=None, pad_height_divisor=32, pad_width_divisor=32, position="top_left"
)


def batches(records, steps=(), **options):
    return GoldBatches(Listed(records), Pipeline(list(steps)), range(len(records)), **options)


def test_only_images_of_one_size_share_a_batch():
    records = [
        record(name, size=size) for name, size in zip("abcde", [(8, 8), (8, 8), (8, 8), (9, 8), (8, 8)], strict=True)
    ]
    found = list(batches(records, batch_size=2))
    assert [batch.batch.ids for batch in found] == [["a", "b"], ["c"], ["d"], ["e"]]
    assert [number for batch in found for number in batch.numbers] == [0, 1, 2, 3, 4]
    # Nothing is filled up, so all pixels count.
    assert all(batch.batch.valid.all() for batch in found)


def test_images_without_gold_are_passed_over_and_named():
    records = [record(name, gold=name != "b") for name in "abc"]
    data = batches(records)
    for _ in range(2):  # a second time counts anew
        assert [batch.batch.ids for batch in data] == [["a", "c"]]
        assert data.without_gold == ["b"]


def test_pixels_ignored_by_gold_do_not_count():
    ignored = record("a")
    ignored.gold[3, 4] = 255
    (found,) = batches([ignored])
    assert (~found.batch.valid).nonzero().tolist() == [[0, 3, 4]]


def view_of(size, *steps):
    return Pipeline(list(steps))(RNG.integers(0, 256, (*size, 3), dtype=np.uint8), coordinate_masks(size), RNG)


def test_coordinate_masks_hold_rows_and_columns():
    masks = coordinate_masks((600, 3)).astype(int)
    assert (251 * masks[0] + masks[1])[:, 1].tolist() == list(range(600))
    assert (251 * masks[2] + masks[3])[5].tolist() == [0, 1, 2]
    assert masks.max() < 255


@pytest.mark.parametrize("size", [(20, 31), (64, 64), (100, 333), (700, 40)])
@pytest.mark.parametrize(
    "steps",
    [
        [],
        [PADDED],
        [albumentations.Resize(48, 80)],
        [albumentations.LongestMaxSize(64), albumentations.PadIfNeeded(96, 96, position="center")],
    ],
    ids=["as it is", "filled up", "resized", "both"],
)
def test_the_box_is_where_the_image_is(size, steps):
    view = view_of(size, *steps)
    rows, columns = image_box("a", view, size)
    inside = np.zeros(view.valid.shape, bool)
    inside[rows, columns] = True
    assert (inside == view.valid).all()


@pytest.mark.parametrize(
    "step",
    [
        albumentations.HorizontalFlip(p=1.0),
        albumentations.Transpose(p=1.0),
        albumentations.CenterCrop(60, 64),
        albumentations.Rotate((20, 20), p=1.0),
        albumentations.ElasticTransform(alpha=80, sigma=6, p=1.0),
        albumentations.Affine(translate_px=(3, 3), p=1.0),
    ],
    ids=lambda step: type(step).__name__,
)
def test_a_view_that_shows_less_than_the_image_or_another_is_refused(step):
    with pytest.raises(DataError, match=r"photo: .*shows the whole image.*without --native"):
        image_box("photo", view_of((64, 64), step), (64, 64))

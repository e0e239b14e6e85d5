"""Targets: gold, one rater's mask, or the raters' shares, worked out by hand (see toy_records.record)."""

import albumentations as A
import numpy as np
import pytest
import torch
from toy_records import Listed, record

from segdpo.data.batches import collate_supervised
from segdpo.data.datasets import SupervisedDataset, class_shares
from segdpo.data.sampling import Draw
from segdpo.data.transforms import Pipeline
from segdpo.files import DataError

PLAIN = Pipeline(mean=(0.0,), std=(1 / 255,))


def data_of(*records, classes=("background", "object"), pipeline=PLAIN, **options):
    return SupervisedDataset(Listed(list(records), classes), pipeline, **options)


@pytest.mark.parametrize(("target", "rows"), [("gold", 2), ("rater1", 1)])
def test_a_named_target(target, rows):
    data = data_of(record("a"), record("b", size=(4, 4)), target=target)
    batch = collate_supervised([data[0], data[1]])
    assert batch.target.dtype == torch.uint8
    assert batch.target[0].sum(0).tolist() == [rows] * 8
    assert batch.target[1, :4, :4].sum(0).tolist() == [rows] * 4
    assert (batch.target[1, 4:] == 255).all()
    assert batch.valid.sum((1, 2)).tolist() == [64, 16]
    assert batch.gold[0].sum() == 16


def test_any_draws_every_rater_in_turn_but_one_for_a_view():
    data = data_of(record(masks=4), target="any")
    rows = [int(data[Draw(0, epoch)].target[:, 0].sum()) for epoch in range(60)]
    assert set(rows) == {0, 1, 2, 3}
    assert rows == [int(data[Draw(0, epoch)].target[:, 0].sum()) for epoch in range(60)]


def test_mean_gives_the_share_of_raters():
    # Of the raters with 0, 1 and 2 rows, two set row 0 and one sets row 1.
    batch = collate_supervised([data_of(record(), target="mean")[0]])
    assert batch.target.shape == (1, 2, 8, 8)
    torch.testing.assert_close(batch.target[0, 1, :, 0], torch.tensor([2 / 3, 1 / 3, 0, 0, 0, 0, 0, 0]))
    torch.testing.assert_close(batch.target.sum(1), torch.ones(1, 8, 8))


def test_shares_leave_out_raters_who_ignore_a_pixel():
    shares = class_shares(np.array([[[0, 2, 255]], [[255, 1, 255]], [[0, 2, 255]]], np.uint8), 3)
    np.testing.assert_allclose(shares[:, 0].T, [[1, 0, 0], [0, 1 / 3, 2 / 3], [0, 0, 0]], rtol=1e-6)


def test_ignored_and_outside_pixels_are_not_valid():
    base = record(gold=True)
    gold = base.gold.copy()
    gold[5] = 255
    masks = np.where(np.arange(8)[:, None] == 6, 255, base.masks).astype(np.uint8)
    changed = type(base)(**{**base.__dict__, "gold": gold, "masks": masks})
    pad = Pipeline([A.PadIfNeeded(10, 10, position="top_left")])
    for target, row in (("gold", 5), ("mean", 6)):
        batch = collate_supervised([data_of(changed, target=target, pipeline=pad)[0]])
        assert batch.valid.sum() == 56
        assert not batch.valid[0, row].any()


@pytest.mark.parametrize(
    ("target", "records"),
    [
        ("gold", record("bad", gold=False)),
        ("any", record("bad", masks=0, pairs=(), gold=False)),
        ("none", record("bad")),
    ],
)
def test_a_missing_target_is_an_error_that_names_what_there_is(target, records):
    with pytest.raises(DataError, match=f"target '{target}' in record 'bad' but it has gold: .*masks: "):
        data_of(records, target=target)[0]

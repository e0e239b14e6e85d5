"""Items and batches of pairs, rankings, targets and gold, worked out by hand (see toy_records.record)."""

import logging
from dataclasses import replace
from functools import partial

import albumentations as A
import numpy as np
import pytest
import torch
from toy_records import Listed, record, toys

from segdpo import PreferenceLoss, Score, score_pairs, score_ranking
from segdpo.data.batches import PairBatch, collate_pairs, collate_rankings, collate_supervised
from segdpo.data.datamodule import DataModule
from segdpo.data.datasets import (
    PreferenceDataset,
    RankingDataset,
    SupervisedDataset,
    class_shares,
    pairs_of,
)
from segdpo.data.record import Pair, RecordInfo
from segdpo.data.sampling import Draw
from segdpo.data.transforms import ObjectCrop, Pipeline
from segdpo.files import DataError
from segdpo.losses import objectives

PLAIN = Pipeline(mean=(0.0,), std=(1 / 255,))
PADDED = Pipeline([A.PadIfNeeded(12, 12, position="top_left")], mean=(0.0,), std=(1 / 255,))


def rows(count, size=(8, 8)):
    """Mask `count` of toy_records.record."""
    mask = torch.zeros(size, dtype=torch.uint8)
    mask[:count] = 1
    return mask


def batch_of(*records, pipeline=PLAIN, **options):
    data = PreferenceDataset(Listed(list(records)), pipeline, **options)
    return collate_pairs([data[i] for i in range(len(data))])


def test_a_batch_holds_every_pair_of_its_images():
    batch = batch_of(
        record("a", 10, pairs=((2, 0, 0.5), (2, 1, 2.0))), record("b", 20, pairs=((1, 2),)), pipeline=PLAIN
    )
    assert batch.ids == ["a", "b"]
    assert batch.image.shape == (2, 3, 8, 8)
    torch.testing.assert_close(batch.image.mean((1, 2, 3)), torch.tensor([10.0, 20.0]))
    assert torch.equal(batch.chosen, torch.stack([rows(2), rows(2), rows(1)]))
    assert torch.equal(batch.rejected, torch.stack([rows(0), rows(1), rows(2)]))
    assert batch.image_index.tolist() == [0, 0, 1]
    assert batch.pair_masks.tolist() == [[2, 0], [2, 1], [1, 2]]
    assert batch.weight.tolist() == [0.5, 2.0, 1.0]
    assert torch.equal(batch.gold, torch.stack([rows(2), rows(2)]))
    assert batch.valid.all()
    assert (batch.chosen.dtype, batch.image.dtype, batch.image_index.dtype) == (torch.uint8, torch.float32, torch.int64)
    assert (batch.identical, batch.dropped) == (0, 0)


def test_images_of_different_size_are_filled_up():
    batch = batch_of(record("small", 10, size=(4, 6), gold=False), record("tall", 20, size=(8, 5)))
    assert batch.image.shape == (2, 3, 8, 6)
    assert (batch.image[0, :, :4] == 10).all()
    assert (batch.image[0, :, 4:] == 0).all()
    assert (batch.chosen[0, 4:] == 255).all()
    assert (batch.rejected[1, :, 5] == 255).all()
    assert batch.valid.sum((1, 2)).tolist() == [4 * 6, 8 * 5]
    assert (batch.gold[0] == 255).all()
    assert torch.equal(batch.gold[1, :, :5], rows(2, (8, 5)))


def test_no_gold_anywhere_is_none():
    assert batch_of(record(gold=False)).gold is None


def test_what_comes_from_outside_is_not_valid():
    batch = batch_of(record(), pipeline=PADDED)
    assert batch.valid.sum() == 64
    assert (batch.chosen[0][~batch.valid[0]] == 255).all()


def test_a_ranking_gives_all_its_pairs():
    assert pairs_of(record(pairs=(), ranking=(2, 0, 1))) == [Pair(2, 0), Pair(2, 1), Pair(0, 1)]
    assert batch_of(record(pairs=(), ranking=(2, 0, 1))).pair_masks.tolist() == [[2, 0], [2, 1], [0, 1]]
    assert pairs_of(record(pairs=((0, 1),), ranking=(2, 0, 1))) == [Pair(0, 1)]


def test_pairs_per_image_are_drawn_anew_for_each_view():
    pairs = tuple((a, b, float(10 * a + b)) for a in range(5) for b in range(5) if a != b)
    data = PreferenceDataset(Listed([record(masks=5, pairs=pairs)]), PLAIN, pairs_per_image=3)
    drawn = []
    for epoch in range(40):
        item = data[Draw(0, epoch)]
        numbers = item.numbers[item.pairs]
        assert item.weight.tolist() == [10 * a + b for a, b in numbers.tolist()]
        assert len(np.unique(numbers, axis=0)) == 3
        drawn.append(numbers)
    assert len(np.unique(np.concatenate(drawn), axis=0)) == 20


def test_views_repeat_and_do_not_depend_on_place():
    pipeline = Pipeline([A.D4(p=1), A.Affine(rotate=(-30, 30), p=1)])
    source = toys(6)
    data = PreferenceDataset(source, pipeline, views=2, seed=5)
    part = PreferenceDataset(source, pipeline, [4, 1], views=2, seed=5)
    new = PreferenceDataset(source, pipeline, seed=5)
    masks = [data[Draw(4, epoch)].masks for epoch in range(4)]
    np.testing.assert_array_equal(masks[0], masks[2])
    np.testing.assert_array_equal(masks[1], masks[3])
    np.testing.assert_array_equal(masks[1], part[Draw(0, 1)].masks)
    np.testing.assert_array_equal(masks[1], new[Draw(4, 1)].masks)
    assert not np.array_equal(masks[0], masks[1])
    assert not np.array_equal(new[Draw(4, 3)].masks, masks[3])
    assert not np.array_equal(PreferenceDataset(source, pipeline, seed=6)[4].masks, masks[0])
    assert [data[Draw(4, epoch)].view for epoch in range(4)] == [0, 1, 0, 1]


def test_crops_around_objects_do_not_depend_on_the_masks_that_an_item_shows():
    image = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    whole = replace(record("a", size=(40, 40), masks=20, pairs=((1, 2),)), image=image)
    without_gold, only_gold = replace(whole, gold=None), replace(whole, masks=whole.masks[:0], mask_names=(), pairs=())
    pipeline = Pipeline([ObjectCrop(8, objects=1.0)])
    pairs, any_mask, first, alone = (
        kind(Listed([each]), pipeline, **options)
        for kind, each, options in (
            (PreferenceDataset, whole, {}),
            (SupervisedDataset, whole, {"target": "any"}),
            (SupervisedDataset, without_gold, {"target": "first"}),
            (SupervisedDataset, only_gold, {"target": "gold"}),
        )
    )
    seen = set()
    for epoch in range(20):
        shown = [data[Draw(0, epoch)] for data in (pairs, any_mask, first)]
        assert all(np.array_equal(shown[0].image, other.image) for other in shown)
        # Without masks, objects are those of gold: its top two rows.
        assert alone[Draw(0, epoch)].gold[0].any()
        seen.add(shown[0].image.tobytes())
    assert len(seen) > 10


def test_records_without_preferences_are_skipped_counted_and_said(caplog):
    source = Listed([record("a"), record("b", pairs=()), record("c", pairs=(), ranking=(0, 1)), record("d", pairs=())])
    with caplog.at_level(logging.WARNING):
        data = PreferenceDataset(source, PLAIN)
    assert data.indices.tolist() == [0, 2]
    assert data.skipped == 2
    assert "2 of 4 records have no preference, the first 'b'" in caplog.text


def test_records_without_preferences_are_refused_if_asked():
    with pytest.raises(DataError, match=r'1 of 2 .*no preference.*.b..*unjudged="skip"'):
        PreferenceDataset(Listed([record("a"), record("b", pairs=())]), PLAIN, unjudged="error")


def test_nothing_judged_is_an_error():
    with pytest.raises(DataError, match=r"2 of 2 .*no preference.*segdpo mine"):
        PreferenceDataset(Listed([record("a", pairs=()), record("b", pairs=())]), PLAIN)


class Described(Listed):
    """Says how many pairs there are, and refuses to be read for it."""

    def __getitem__(self, index):
        raise AssertionError("read")

    def describe(self, index):
        return RecordInfo(f"r{index}", pairs=index % 2, ranking=0)


def test_a_source_that_describes_its_records_is_not_read_to_find_the_judged():
    data = PreferenceDataset(Described([record()] * 4), PLAIN)
    assert data.indices.tolist() == [1, 3]


def test_identical_masks_are_kept_and_counted():
    # The upper rows, where masks 0, 1 and 2 differ, are cut away.
    lower = Pipeline([A.Crop(0, 4, 8, 8)])
    batch = batch_of(record(pairs=((2, 0), (1, 0))), record("b", masks=7, pairs=((6, 0),)), pipeline=lower)
    assert len(batch.chosen) == 3
    assert batch.identical == 2


def ignored_record(name, pairs):
    """Mask 0 is ignored on the left, mask 1 on the right, mask 2 nowhere."""
    base = record(name, pairs=pairs)
    masks = base.masks.copy()
    masks[0, :, :4], masks[1, :, 4:] = 255, 255
    return type(base)(**{**base.__dict__, "masks": masks})


def test_pairs_without_a_valid_pixel_are_dropped_and_counted():
    batch = batch_of(ignored_record("a", ((0, 1), (2, 0))), ignored_record("b", ((1, 0),)))
    assert batch.ids == ["a"]
    assert batch.pair_masks.tolist() == [[2, 0]]
    assert batch.dropped == 2
    score_pairs(torch.zeros(1, 1, 8, 8), batch.chosen, batch.rejected, image_index=batch.image_index)


def test_sizes_that_differ_within_a_record_are_an_error():
    with pytest.raises(DataError, match=r"bad: mask 'rater0'.*8×8.*6×8"):
        batch_of(type(record())(**{**record("bad").__dict__, "masks": np.zeros((3, 6, 8), np.uint8)}))


def test_a_class_that_is_not_there_is_an_error():
    masks = record().masks.copy()
    masks[1, 3, 3] = 2
    with pytest.raises(DataError, match=r"bad: mask 'rater1': .*below 2 .* got 2"):
        batch_of(type(record())(**{**record("bad").__dict__, "masks": masks}))


def test_a_pair_of_a_mask_that_is_not_there_is_an_error():
    with pytest.raises(DataError, match=r"masks of 3 .*chosen 0, rejected 3"):
        batch_of(record("bad", pairs=((0, 3),)))


@pytest.mark.parametrize(("option", "value"), [("views", 0), ("pairs_per_image", 0)])
def test_options_out_of_range(option, value):
    with pytest.raises(ValueError, match=r"\b1\b.*\b0\b"):
        PreferenceDataset(toys(), PLAIN, **{option: value})


def test_rankings_keep_their_order():
    source = Listed([record("a", masks=5, ranking=(4, 2, 0, 3, 1)), record("b", masks=3, ranking=(0, 2, 1))])
    data = RankingDataset(source, PLAIN, length=3)
    seen = set()
    for epoch in range(100):
        batch = collate_rankings([data[Draw(0, epoch)], data[Draw(1, epoch)]])
        first, second = batch.ranking_masks.tolist()
        places = [(4, 2, 0, 3, 1).index(number) for number in first]
        assert places == sorted(places)
        assert second == [0, 2, 1]
        assert torch.equal(batch.ranking[0], torch.stack([rows(number) for number in first]))
        seen.add(tuple(first))
    assert len(seen) == 10  # 5 over 3
    scores = score_ranking(torch.zeros(2, 1, 8, 8), batch.ranking, valid=batch.valid)
    assert scores.ranked.shape == (2, 3)


def test_rankings_that_are_too_short_are_skipped():
    source = Listed([record("a", ranking=(0, 1)), record("b", ranking=(2, 1, 0)), record("c")])
    data = RankingDataset(source, PLAIN, length=3)
    assert data.indices.tolist() == [1]
    assert data.skipped == 2
    with pytest.raises(ValueError, match="length 1"):
        RankingDataset(source, PLAIN, length=1)


def test_rankings_without_a_pixel_that_counts_in_all_masks_are_left_out():
    bad = ignored_record("a", ())
    bad = type(bad)(**{**bad.__dict__, "ranking": (0, 1, 2)})
    data = RankingDataset(Listed([bad, record("b", ranking=(0, 1, 2))]), PLAIN, length=3)
    batch = collate_rankings([data[0], data[1]])
    assert (batch.ids, batch.dropped) == (["b"], 1)
    assert collate_rankings([data[0]]).empty


def test_a_batch_feeds_the_loss():
    # A pixel of logit z gives a margin of z where the chosen mask is 1 and the rejected 0, −z the other way.
    batch = batch_of(record("a", pairs=((2, 0), (0, 1))), record("b", pairs=((0, 2),)), pipeline=PADDED)
    logits = torch.tensor([0.5, -2.0]).reshape(2, 1, 1, 1).expand(2, 1, 12, 12)
    pairs = {"valid": batch.valid, "image_index": batch.image_index}
    scores = score_pairs(logits, batch.chosen, batch.rejected, reduction="sum", **pairs)
    torch.testing.assert_close(scores.margin, torch.tensor([0.5 * 16, -0.5 * 8, 2.0 * 16]))
    loss = PreferenceLoss(partial(objectives.dpo, beta=0.1), score=Score(reduction="sum"))
    terms = loss.on_logits(logits, 0 * logits, batch.chosen, batch.rejected, weight=batch.weight, **pairs)
    expected = -torch.nn.functional.logsigmoid(0.1 * scores.margin)
    torch.testing.assert_close(terms.total, expected.mean())


def test_to_moves_every_tensor_and_keeps_the_rest():
    batch = batch_of(record("a"), record("b", pairs=((1, 2),)))
    moved = batch.to("meta", non_blocking=True)
    tensors = {name for name, value in vars(batch).items() if isinstance(value, torch.Tensor)}
    assert tensors == {*vars(PairBatch(**vars(batch)))} - {"ids", "index", "shared", "identical", "dropped", "empty"}
    assert all(getattr(moved, name).device.type == "meta" for name in tensors)
    index = moved.shared.index.rows if moved.index is None else moved.index
    assert index.position.device.type == "meta"
    assert moved.chosen.dtype == torch.uint8
    assert moved.ids == batch.ids


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
        ("first", record("bad", masks=0, pairs=(), gold=False)),
        ("any", record("bad", masks=0, pairs=(), gold=False)),
        ("nobody", record("bad")),
    ],
)
def test_a_missing_target_is_an_error_that_names_what_there_is(target, records):
    with pytest.raises(DataError, match=f"'{target}'.*'bad'.*gold: .*masks: "):
        data_of(records, target=target)[0]


def black_and_white(count=3, **gold):
    """Masks of which 255 is the object, as pictures of masks have it."""
    return Listed([replace(one, masks=one.masks * 255, **gold) for one in toys(count).records])


def test_masks_of_0_and_255_stop_training():
    source = black_and_white()
    for items in (PreferenceDataset, partial(SupervisedDataset, target="any")):
        with pytest.raises(DataError, match=r"class 1 .'object'.* 0 and 255 alone, as in .*'toy\d'.*values={255: 1}"):
            DataModule(source, Pipeline(), Pipeline(), items=items).train_dataloader()
    SupervisedDataset(source, Pipeline()).check_classes()  # gold is not of that kind
    with pytest.raises(DataError, match="0 and 255 alone"):
        SupervisedDataset(black_and_white(gold=toys(1)[0].gold * 255), Pipeline()).check_classes()
    PreferenceDataset(Listed(source.records, ("background", "cell", "edge")), Pipeline()).check_classes()


def test_0_and_255_in_some_masks_are_legal():
    empty = [replace(one, masks=one.masks * 0) for one in toys(100).records]
    edges = [replace(one, masks=np.where(one.masks, 255, 0).astype(np.uint8)) for one in empty]
    for one in edges:
        one.masks[:, 0] = 255
    last = toys(1).records
    PreferenceDataset(Listed(empty), Pipeline()).check_classes()
    PreferenceDataset(Listed(edges + last), Pipeline()).check_classes()
    with pytest.raises(DataError, match="0 and 255 alone"):
        PreferenceDataset(Listed(edges), Pipeline()).check_classes()


def test_a_batch_of_which_no_pixel_counts():
    ignored = Listed([replace(one, masks=one.masks * 0 + 255) for one in toys(3, ranking=(0, 1, 2)).records])
    pairs = collate_pairs([PreferenceDataset(ignored, Pipeline())[i] for i in range(3)])
    assert (pairs.empty, pairs.ids, pairs.weight.tolist(), pairs.dropped) == (True, ["toy0"], [0.0], 3)
    assert pairs.index.valid.tolist() == [0]
    rankings = collate_rankings([RankingDataset(ignored, Pipeline(), length=3)[i] for i in range(3)])
    assert (rankings.empty, len(rankings.ranking), rankings.dropped) == (True, 1, 3)
    assert collate_supervised([SupervisedDataset(ignored, Pipeline(), target="first")[0]]).empty
    mixed = collate_pairs([PreferenceDataset(source, Pipeline())[0] for source in (ignored, toys())])
    assert (mixed.empty, mixed.ids, mixed.dropped) == (False, ["toy0"], 1)
    assert not mixed.to("cpu").empty

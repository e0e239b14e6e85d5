"""Splits: partitions that never part a group, keep what was given, and refuse what cannot be."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_records import Listed, record

from segdpo.data.record import RecordInfo
from segdpo.data.splits import infos_of, split_by_fold, split_by_fraction
from segdpo.files import DataError


def infos(groups, splits=None):
    return [RecordInfo(f"r{i}", group=group, split=splits[i] if splits else "") for i, group in enumerate(groups)]


def parts(splits):
    return {"train": splits.train.tolist(), "val": splits.val.tolist(), "test": splits.test.tolist()}


def check_partition(records, splits):
    found = parts(splits)
    assert sorted(number for numbers in found.values() for number in numbers) == list(range(len(records)))
    groups = [{records[n].group or f"id {records[n].id}" for n in numbers} for numbers in found.values()]
    for a in range(3):
        for b in range(a):
            assert not groups[a] & groups[b]
    assert splits.groups == tuple(len(group) for group in groups)


group_lists = st.lists(st.sampled_from(["", "a", "b", "c", "d", "e"]), min_size=1, max_size=40)


@settings(deadline=None, max_examples=150)
@given(group_lists, st.sampled_from([0, 0.1, 0.3]), st.sampled_from([0, 0.2]), st.integers(0, 3))
def test_fractions(names, val, test, seed):
    records = infos(names)
    count = len({record.group or record.id for record in records})
    if count < 1 + (val > 0) + (test > 0):
        with pytest.raises(DataError, match=r"draw (val|test)"):
            split_by_fraction(records, val=val, test=test, seed=seed)
        return
    splits = split_by_fraction(records, val=val, test=test, seed=seed)
    check_partition(records, splits)
    assert [bool(len(splits.train)), bool(len(splits.val)), bool(len(splits.test))] == [True, val > 0, test > 0]
    # The order of the records does not matter.
    order = np.random.default_rng(0).permutation(len(records))
    again = split_by_fraction([records[i] for i in order], val=val, test=test, seed=seed)
    assert sorted(order[again.val].tolist()) == splits.val.tolist()


@settings(deadline=None, max_examples=100)
@given(group_lists, st.integers(2, 5), st.integers(0, 3))
def test_folds(names, folds, seed):
    records = infos(names)
    sizes = Counter(item.group or item.id for item in records)
    if len(sizes) < folds:
        return
    every = [split_by_fold(records, folds=folds, fold=fold, val=0, seed=seed) for fold in range(folds)]
    tests = [len(splits.test) for splits in every]
    assert sorted(np.concatenate([splits.test for splits in every]).tolist()) == list(range(len(records)))
    assert min(tests) >= 1
    assert max(tests) - min(tests) <= max(sizes.values())
    for fold, splits in enumerate(every):
        check_partition(records, splits)
        if splits.groups[0] == 1:  # nothing to lend to val
            with pytest.raises(DataError, match="draw val"):
                split_by_fold(records, folds=folds, fold=fold, val=0.2, seed=seed)
            continue
        with_val = split_by_fold(records, folds=folds, fold=fold, val=0.2, seed=seed)
        check_partition(records, with_val)
        assert with_val.test.tolist() == splits.test.tolist()
        assert len(with_val.train)
        assert len(with_val.val)


def test_without_groups_the_fractions_are_exact():
    splits = split_by_fraction(infos([""] * 200), val=0.1, test=0.25, seed=4)
    assert (len(splits.train), len(splits.val), len(splits.test)) == (130, 20, 50)
    assert str(splits) == "train 130 records in 130 groups, val 20 records in 20 groups, test 50 records in 50 groups"
    other = split_by_fraction(infos([""] * 200), val=0.1, test=0.25, seed=5)
    assert parts(other) != parts(splits)


def test_a_giant_group_is_not_drawn_for_a_tenth():
    for seed in range(10):
        splits = split_by_fraction(infos(["giant"] * 90 + ["a"] * 5 + ["b"] * 5), val=0.05, test=0.05, seed=seed)
        assert splits.train.tolist() == list(range(90))


def test_given_splits_are_kept_and_a_missing_val_comes_from_train():
    given_splits = ["test"] * 10 + ["train"] * 20
    splits = split_by_fraction(infos([""] * 30, given_splits), val=0.1, test=0.5)
    assert splits.test.tolist() == list(range(10))
    assert len(splits.val) == 3
    assert set(splits.val.tolist()) < set(range(10, 30))


def test_unsplit_records_train_where_every_split_is_claimed():
    splits = split_by_fraction(infos([""] * 6, ["val", "test", "train", "", "", ""]))
    assert parts(splits) == {"train": [2, 3, 4, 5], "val": [0], "test": [1]}


def test_an_unsplit_record_goes_with_its_group():
    splits = split_by_fraction(infos(["a", "a", "b"], ["test", "", "train"]), val=0)
    assert parts(splits) == {"train": [2], "val": [], "test": [0, 1]}


def test_a_group_in_two_given_splits_is_a_leak():
    records = infos(["a", "a", "b"], ["test", "train", "train"])
    with pytest.raises(DataError, match=r"'a'.*test \(r0\).*train \(r1\)"):
        split_by_fraction(records)
    check_partition(records, split_by_fraction(records, val=0, given=False))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (
            lambda: split_by_fraction(infos(["a"] * 9), val=0.1, test=0),
            "draw val.* 1 left.* 1 ",
        ),
        (lambda: split_by_fraction(infos([""] * 4, ["train"] * 4)), "draw test from"),
        (lambda: split_by_fraction(infos([""] * 2, ["test"] * 2), val=0), "train"),
        (lambda: split_by_fraction(infos([""] * 4), val=1.0), "val.*1.0"),
        (lambda: split_by_fold(infos(["a", "a", "b"]), folds=3), "2 to 2 folds"),
        (lambda: split_by_fold(infos([""] * 9), folds=3, fold=3), "fold.*0 to 2.*3"),
        (lambda: split_by_fold(infos([""] * 2), folds=2), "draw val from"),
    ],
)
def test_impossible_requests(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def golden(golds, groups=None, splits=None):
    """Records r00, r01 …, of which those numbered in `golds` have gold."""
    groups = groups or [""] * 40
    return [
        RecordInfo(f"r{i:02d}", group, splits[i] if splits else "", gold=i in golds) for i, group in enumerate(groups)
    ]


def golds_in(records, splits):
    return {name: sum(bool(records[n].gold) for n in numbers) for name, numbers in parts(splits).items()}


@pytest.mark.parametrize("gold", [True, False, None])
def test_where_all_or_none_have_gold_the_splits_of_published_tables_stay(gold):
    # Printed by the version before gold was spread.
    records = [RecordInfo(f"r{i:02d}", "" if i % 3 else f"g{i // 6}", gold=gold) for i in range(20)]
    splits = split_by_fraction(records, val=0.1, test=0.2)
    assert (splits.val.tolist(), splits.test.tolist()) == ([7, 18], [4, 5, 16, 17])
    splits = split_by_fold(records, folds=4, fold=1, val=0.2)
    assert (splits.val.tolist(), splits.test.tolist()) == ([1, 2, 13, 18], [6, 8, 9, 14, 17])
    assert splits.gold is None


def test_gold_is_spread_by_the_fractions():
    # Of 8 gold masks, a fifth is 1.6 and a tenth 0.8; of 40 images, 8 and 4.
    records = golden(range(0, 40, 5))
    for seed in range(5):
        splits = split_by_fraction(records, val=0.1, test=0.2, seed=seed)
        check_partition(records, splits)
        assert golds_in(records, splits) == {"train": 5, "val": 1, "test": 2}
        assert [len(numbers) for numbers in parts(splits).values()] == [28, 4, 8]
    assert splits.gold == (5, 1, 2)
    assert str(splits) == (
        "train 28 records (5 with gold) in 28 groups, val 4 records (1 with gold) in 4 groups, "
        "test 8 records (2 with gold) in 8 groups"
    )


@pytest.mark.parametrize(
    ("golds", "expected"),
    [([7], (1, 0, 0)), ([7, 9], (1, 0, 1)), ([7, 9, 30], (1, 1, 1)), ([7, 8, 9, 30], (2, 1, 1))],
)
def test_few_gold_masks_go_to_train_first_then_test_then_val(golds, expected):
    for seed in range(5):
        splits = split_by_fraction(golden(golds), val=0.1, test=0.2, seed=seed)
        assert splits.gold == expected
        assert [len(numbers) for numbers in parts(splits).values()] == [28, 4, 8]
    assert split_by_fraction(golden([7, 9]), val=0.1, test=0).gold == (1, 1, 0)


def test_a_group_with_gold_is_not_cut():
    # Patients of four slices, of which one is drawn: three of ten patients have gold.
    groups = [f"patient {i // 4}" for i in range(40)]
    records = golden([1, 22, 39], groups)
    for seed in range(5):
        splits = split_by_fraction(records, val=0.1, test=0.2, seed=seed)
        check_partition(records, splits)
        assert splits.gold == (1, 1, 1)
        # One of gold is half of what test is to have, and all of what val is to have.
        assert [len(numbers) for numbers in parts(splits).values()] == [28, 4, 8]


def test_given_splits_keep_their_gold():
    given_splits = ["test"] * 10 + ["train"] * 30
    splits = split_by_fraction(golden([0, 20, 30], splits=given_splits), val=0.1)
    assert splits.test.tolist() == list(range(10))
    assert splits.gold == (1, 1, 1)
    assert len(splits.val) == 4


def test_folds_have_equally_many_gold_masks():
    # 10 gold masks of 40 images in 5 parts: 2 of 8.
    records = golden(range(0, 40, 4))
    every = [split_by_fold(records, folds=5, fold=fold, val=0.1) for fold in range(5)]
    assert sorted(np.concatenate([splits.test for splits in every]).tolist()) == list(range(40))
    for splits in every:
        check_partition(records, splits)
        assert splits.gold == (7, 1, 2)
        assert [len(numbers) for numbers in parts(splits).values()] == [28, 4, 8]


@settings(deadline=None, max_examples=100)
@given(group_lists, st.integers(0, 3), st.data())
def test_gold_anywhere(names, seed, data):
    golds = data.draw(st.lists(st.booleans(), min_size=len(names), max_size=len(names)))
    records = [RecordInfo(f"r{i}", group, gold=gold) for i, (group, gold) in enumerate(zip(names, golds, strict=True))]
    groups = {one.group or f"id {one.id}" for one in records}
    with_some = len({one.group or f"id {one.id}" for one in records if one.gold})
    if len(groups) < 3:
        return
    splits = split_by_fraction(records, val=0.1, test=0.2, seed=seed)
    check_partition(records, splits)
    assert all(map(len, parts(splits).values()))
    found = golds_in(records, splits)
    if 0 < sum(golds) < len(golds):
        assert splits.gold == tuple(found.values())
        assert [count > 0 for count in found.values()] == [True, with_some > 2, with_some > 1]


def test_infos_of_a_source_that_does_not_describe():
    source = Listed([record("a", group="g", split="val", pairs=((0, 1), (1, 2))), record("b", ranking=(0, 1, 2))])
    assert infos_of(source) == [RecordInfo("a", "g", "val", 2, 0, True), RecordInfo("b", "", "", 1, 3, True)]

"""debug=fast reads a few images of each split and no others."""

import numpy as np
from small import composed

from segdpo.data import RecordInfo, Splits, limited
from segdpo.data.shapes import Shapes
from segdpo.recipes.collect import collect_preferences
from segdpo.recipes.run import open_run


def test_only_a_few_images_of_each_split_are_read(tmp_path, monkeypatch):
    read, made = [], Shapes._make
    monkeypatch.setattr(Shapes, "_make", lambda self, index: read.append(index) or made(self, index))
    run = open_run(composed("debug=fast", "data.count=5000", "data.size=32", folder=tmp_path))
    assert len(read) <= 1  # the size of one test image
    splits = collect_preferences(run, run.splits.train, None).splits
    assert [len(splits.train), len(splits.val), len(splits.test)] == [24, 24, 24]
    assert sorted(read) == sorted(np.concatenate([run.splits.train, run.splits.val, run.splits.test]))


def test_images_for_the_reference_come_on_top(tmp_path):
    few = ["reference_training=few_masks", "reference_training.images=30"]
    run = open_run(composed("debug=fast", *few, folder=tmp_path))
    assert len(run.splits.train) == 54


def test_half_of_them_have_gold_where_some_have():
    infos = [RecordInfo("a", gold=number in (5, 8, 9)) for number in range(10)]
    every = Splits(np.arange(10, dtype=np.uint32), np.array([2, 3], np.uint32), np.array([9], np.uint32), (10, 2, 1))
    found = limited(every, infos, 4, more=1)
    assert found.train.tolist() == [0, 1, 5, 8, 9]
    assert found.val.tolist() == [2, 3]
    assert found.test.tolist() == [9]
    assert limited(every, infos, 1).train.tolist() == [5]

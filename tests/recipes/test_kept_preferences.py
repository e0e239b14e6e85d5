"""Mined records in the cache: the same as mined anew, made once, also by jobs that start together."""

import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest
from small import composed
from toy_records import record as toy

from segdpo.data.record import Candidates, Record
from segdpo.data.shapes import Shapes
from segdpo.preferences.candidates import existing
from segdpo.preferences.judges import iou
from segdpo.preferences.mining import Mined
from segdpo.preferences.questions import all_pairs, best_worst
from segdpo.recipes.collect import KeptCandidates, preferences_key
from segdpo.recipes.kept_preferences import KeptMined

NO_MASKS = np.empty((0, 4, 4), np.uint8)


class Toys:
    classes = ("background", "object")

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return toy(f"toy{index}")


def noisy(record, rng):
    masks = np.stack([np.where(rng.random(record.gold.shape) < share, 1, record.gold) for share in (0.1, 0.3, 0.5)])
    return Candidates(masks.astype(np.uint8), ("a", "b", "c ü"))


def nothing(record, rng):
    return Candidates(record.masks[:1], record.mask_names[:1])


def refused(*given):
    raise AssertionError("made again")


@pytest.mark.parametrize("questions", [best_worst, all_pairs, partial(best_worst, min_gap=2.0)])
@pytest.mark.parametrize("candidates", [existing, noisy, nothing])
@pytest.mark.parametrize("source", [Toys(), Shapes(4, 32)])
def test_kept_records_are_those_that_are_mined_anew(source, candidates, questions, tmp_path):
    plain = Mined(source, candidates, iou, questions, seed=3)
    first = KeptMined(source, candidates, iou, questions, seed=3, folder=tmp_path)
    assert [record.id for record in map(first.__getitem__, range(4))]
    again = KeptMined(source, refused, refused, refused, seed=3, folder=tmp_path)
    for index in range(4):
        expected = plain[index]
        for found in (first[index], again[index]):
            np.testing.assert_array_equal(found.masks, expected.masks)
            np.testing.assert_array_equal(found.image, expected.image)
            assert (found.mask_names, found.pairs, found.ranking) == (
                expected.mask_names,
                expected.pairs,
                expected.ranking,
            )
            assert found.meta == expected.meta
        assert again.describe(index) == plain.describe(index)


def test_a_damaged_file_is_made_again(tmp_path):
    first = KeptMined(Toys(), existing, iou, best_worst, folder=tmp_path)[0]
    (path,) = tmp_path.glob("*.npz")
    path.write_bytes(path.read_bytes()[:40])
    assert KeptMined(Toys(), existing, iou, best_worst, folder=tmp_path)[0].pairs == first.pairs
    assert KeptMined(Toys(), refused, refused, refused, folder=tmp_path)[0].pairs == first.pairs


def test_two_jobs_that_start_together_make_the_candidates_once(tmp_path):
    made = []

    def slow(record, rng):
        made.append(record.id)
        time.sleep(0.02)
        return Candidates(rng.integers(0, 2, (3, 4, 4)).astype(np.uint8), ("a", "b", "c"))

    def job(number):
        source = KeptCandidates(slow, tmp_path)
        records = [Record(str(name), np.zeros((4, 4, 3), np.uint8), NO_MASKS, ()) for name in range(4)]
        return [source(record, np.random.default_rng(number)).masks.tobytes() for record in records]

    with ThreadPoolExecutor(3) as jobs:
        found = list(jobs.map(job, range(3)))
    assert sorted(made) == ["0", "1", "2", "3"]
    assert found[0] == found[1] == found[2]


def test_the_name_depends_on_what_the_preferences_depend_on(tmp_path):
    def key(*overrides, weights=None):
        return preferences_key(composed(*overrides, folder=tmp_path), weights)

    same = key()
    assert same is not None
    assert key("loss=sft", "trainer.max_steps=3", "model=unet", "datamodule.split.test=.3") == same
    others = ("seed=1", "judge=dice", "questions=all_pairs", "candidates=corruptions", "data.seed=4", "background=true")
    names = [key(other) for other in others]
    assert len({same, *names}) == len(others) + 1
    # Of a network that is not a file, or with a function of the user's, nothing is kept.
    assert key("candidates=logit_noise") is None
    assert key("candidates=logit_noise", weights=tmp_path / "a.safetensors") is not None
    assert key("judge=function", "judge.function._target_=my.function") is None

from functools import partial

import numpy as np
import pytest

from segdpo.data.record import Candidates, Record
from segdpo.preferences.candidates import mixture
from segdpo.preferences.diversity import diversity_by_source, report_sources

RECORD = Record("a", np.zeros((1, 4, 3), np.uint8), np.zeros((0, 1, 4), np.uint8), ())


def source(name, count, first=0):
    masks = np.arange(first, first + count, dtype=np.uint8)[:, None, None] * np.ones((1, 1, 4), np.uint8)
    return lambda record, rng: Candidates(masks, tuple(f"{name}-{k}" for k in range(count)))


def rng(seed=0):
    return np.random.default_rng(seed)


def test_masks_of_all_sources_when_there_are_few():
    mixed = mixture(RECORD, rng(), sources={"few": source("tta", 2), "many": source("mc", 3, 10)}, count=9)
    assert mixed.names == ("few-0", "few-1", "many-0", "many-1", "many-2")
    assert mixed.masks[:, 0, 0].tolist() == [0, 1, 10, 11, 12]


def test_sources_are_drawn_by_weight_whatever_number_of_masks_they_offer():
    draw = partial(mixture, RECORD, sources={"few": source("x", 2), "many": source("x", 20)}, count=1)
    first = np.mean([draw(rng(seed), weights={"few": 3, "many": 1}).names[0].startswith("few") for seed in range(2000)])
    assert first == pytest.approx(0.75, abs=4 * np.sqrt(0.75 * 0.25 / 2000))
    assert draw(rng(5)).names == draw(rng(5)).names


def test_a_source_of_weight_zero_is_not_called_and_no_other_notices():
    def noisy(record, rng):
        return Candidates(rng.integers(0, 9, (3, 1, 4)).astype(np.uint8), ("n-0", "n-1", "n-2"))

    def broken(record, rng):
        raise AssertionError

    alone = mixture(RECORD, rng(), sources={"off": broken, "on": noisy}, weights={"off": 0, "on": 1}, count=3)
    beside = mixture(RECORD, rng(), sources={"off": source("x", 1), "on": noisy}, count=9)
    np.testing.assert_array_equal(alone.masks, beside.masks[1:])


def test_sources_that_offer_nothing():
    nothing = source("x", 0)
    mixed = mixture(RECORD, rng(), sources={"none": nothing, "one": source("x", 1)}, count=3)
    assert mixed.names == ("one-0",)
    assert mixture(RECORD, rng(), sources={"none": nothing}, count=3).masks.shape == (0, 1, 4)


def test_weights_that_do_not_fit():
    with pytest.raises(ValueError, match=r"for each source \(a, b\) but got weights for a, c"):
        mixture(RECORD, rng(), sources={"a": source("a", 1), "b": source("b", 1)}, weights={"a": 1, "c": 1}, count=1)
    with pytest.raises(ValueError, match=r"weights\.a to be finite and at least 0"):
        mixture(RECORD, rng(), sources={"a": source("a", 1)}, weights={"a": -1.0}, count=1)


MASKS = np.array([[1, 1, 0, 0], [0, 1, 1, 0], [1, 1, 0, 0], [1, 1, 1, 1]], np.uint8)[:, None]
NAMES = ("tta-as_is", "tta-flip_x", "tta-flip_y", "polygon")


def test_diversity_of_each_source():
    gold = np.array([[1, 1, 0, 0]], np.uint8)
    record = Record("a", RECORD.image, MASKS, NAMES, gold=gold)
    found = diversity_by_source(record, Candidates(MASKS, NAMES))
    tta = found["tta"]
    assert (tta.masks, tta.identical) == (3, 1)
    assert tta.pairwise_iou == pytest.approx((1 / 3 + 1 + 1 / 3) / 3)
    assert (tta.worst_quality, tta.best_quality) == pytest.approx((1 / 3, 1))
    assert tta.mean_quality == pytest.approx((1 + 1 / 3 + 1) / 3)
    assert found["polygon"].masks == 1
    assert np.isnan(found["polygon"].pairwise_iou)
    assert found["polygon"].best_quality == pytest.approx(0.5)
    together = found["(together)"]
    assert (together.masks, together.identical) == (4, 1)
    assert together.pairwise_iou == pytest.approx((1 / 3 + 1 + 1 / 3 + 2 / 4 * 3) / 6)
    assert together.best_quality - together.worst_quality == pytest.approx(2 / 3)


def test_report_is_the_mean_over_the_images():
    with_gold = Record("a", RECORD.image, MASKS, NAMES, gold=np.array([[1, 1, 0, 0]], np.uint8))
    first = diversity_by_source(with_gold, Candidates(MASKS, NAMES))
    second = diversity_by_source(RECORD, Candidates(MASKS[:2], NAMES[:2]))
    polygon, tta, together = report_sources([first, second])
    assert (together.source, together.images, together.masks) == ("(together)", 1, 4)
    assert (tta.source, tta.images, tta.masks) == ("tta", 2, 5)
    assert tta.identical == pytest.approx(1 / 5)
    assert tta.pairwise_iou == pytest.approx((5 / 9 + 1 / 3) / 2)
    assert tta.spread == pytest.approx(2 / 3)  # of the image whose gold is known
    assert (polygon.images, polygon.masks) == (1, 1)
    assert np.isnan(polygon.pairwise_iou)

"""Reports on sources of candidates."""

import numpy as np
import pytest

from segdpo.data.record import Candidates, Record
from segdpo.preferences.diversity import diversity_by_source, report_sources

RECORD = Record("a", np.zeros((1, 4, 3), np.uint8), np.zeros((0, 1, 4), np.uint8), ())

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

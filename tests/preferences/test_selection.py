from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest

from segdpo.data.record import Candidates, Record, record_rng
from segdpo.preferences.selection import at_random, disagreement, entropy, everything, most_promising, part


def records(levels):
    return [Record(f"r{n}", np.full((2, 3, 3), v, np.uint8), np.zeros((0, 2, 3), np.uint8), ()) for n, v in levels]


LEVELS = records(enumerate([10, 200, 50, 200, 0]))


def brightness(record, rng):
    return float(record.image.mean())


def test_the_most_promising_come_first_and_the_earlier_of_equals():
    assert most_promising(LEVELS, budget=3, acquisition=brightness) == [1, 3, 2]
    assert most_promising(LEVELS, budget=99, acquisition=brightness) == [1, 3, 2, 0, 4]
    assert everything(LEVELS) == [0, 1, 2, 3, 4]


def test_parts_are_equal_and_together_everything():
    assert [part(LEVELS, number=number, parts=2) for number in (0, 1)] == [[0, 1], [2, 3, 4]]
    assert [one for number in range(7) for one in part(LEVELS, number=number, parts=7)] == everything(LEVELS)
    with pytest.raises(ValueError, match="from 0 to 1, since parts is 2, but got 2"):
        part(LEVELS, number=2, parts=2)


def test_the_random_baseline():
    draws = [at_random(LEVELS, budget=2, seed=seed) for seed in range(300)]
    assert all(len(set(drawn)) == 2 for drawn in draws)
    assert draws == [at_random(LEVELS, budget=2, seed=seed) for seed in range(300)]
    counts = np.bincount(np.ravel(draws), minlength=5)
    assert counts.sum() == 600
    assert (abs(counts - 120) < 4 * np.sqrt(120)).all()
    assert sorted(at_random(LEVELS, budget=99)) == [0, 1, 2, 3, 4]


def test_what_is_drawn_for_a_record_depends_on_the_record_alone():
    lottery = partial(most_promising, budget=99, acquisition=lambda record, rng: rng.random())
    order = [LEVELS[n].id for n in lottery(LEVELS)]
    assert [LEVELS[::-1][n].id for n in lottery(LEVELS[::-1])] == order
    assert [LEVELS[n].id for n in lottery(LEVELS, seed=1)] != order


def test_entropy_in_nats():
    def network(logits):
        values = np.array(logits, np.float32)[None, :, None, None]
        return SimpleNamespace(predict=lambda images: np.broadcast_to(values, (1, len(logits), 2, 3)))

    def plain(*p):
        return -sum(x * np.log(x) for x in p)

    value = partial(entropy, LEVELS[0], None)
    assert value(network=network([0.0])) == pytest.approx(np.log(2))
    assert value(network=network([2.0])) == pytest.approx(plain(1 / (1 + np.exp(-2)), 1 / (1 + np.exp(2))))
    assert value(network=network([-2.0])) == pytest.approx(value(network=network([2.0])))
    assert value(network=network(np.log([0.7, 0.2, 0.1]))) == pytest.approx(plain(0.7, 0.2, 0.1))
    for sure in ([1000.0], [-1000.0], [1000.0, 0.0, 0.0]):
        assert value(network=network(sure)) == pytest.approx(0, abs=1e-9)


def test_disagreement_is_one_minus_the_mean_iou_of_the_candidates():
    masks = np.array([[1, 1, 0, 0], [0, 1, 1, 0], [1, 1, 0, 0]], np.uint8)[:, None]
    found = disagreement(LEVELS[0], None, candidates=lambda record, rng: Candidates(masks, ("a", "b", "c")))
    assert found == pytest.approx(1 - (1 / 3 + 1 + 1 / 3) / 3)
    assert disagreement(LEVELS[0], None, candidates=lambda record, rng: Candidates(masks[:1], ("a",))) == 0


def test_bad_budgets_and_acquisitions():
    for selection in (at_random, partial(most_promising, acquisition=brightness)):
        with pytest.raises(ValueError, match="budget to be at least 1"):
            selection(LEVELS, budget=0)
    with pytest.raises(ValueError, match="'r0' but got NaN"):
        most_promising(LEVELS, budget=1, acquisition=lambda record, rng: np.nan)


def test_a_generator_belongs_to_seed_record_and_purpose():
    first = record_rng(0, "a", "mine").random(4)
    np.testing.assert_array_equal(first, record_rng(0, "a", "mine").random(4))
    for other in ((1, "a", "mine"), (0, "b", "mine"), (0, "a", "select"), (0, "é \udcff", "mine")):
        assert not np.array_equal(first, record_rng(*other).random(4))

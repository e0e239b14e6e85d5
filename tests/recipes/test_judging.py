"""What an image's judgements cost, by what is read of them; wrong answers are learned from, never measured against."""

from functools import partial

import numpy as np
import pytest
from small import STARTED, composed
from toy_records import record as toy

from segdpo.data.record import RecordInfo
from segdpo.data.splits import Splits
from segdpo.preferences.questions import all_pairs, best_worst
from segdpo.recipes.collect import answers_given, price_of, unerring, with_preferences
from segdpo.recipes.finetune import PRICES


@pytest.mark.parametrize(
    ("overrides", "prices"),
    [
        # Of 2, 4 and 8 masks: the best, K − 1; best and worst, ⌈3K/2⌉ − 2; every pair; an order, ⌈log₂ K!⌉.
        (["loss=sft"], [1, 3, 7]),
        (["loss=dpo"], [1, 4, 10]),
        (["loss=sft", "questions=noisy_best_worst"], [1, 4, 10]),
        (["loss=sft", "questions.min_gap=0.05"], [1, 4, 10]),
        (["loss=sft", "questions=all_pairs"], [1, 6, 28]),
        (["loss=sft", "questions=weighted_all_pairs"], [1, 6, 28]),
        (["loss=dpo", "questions=adjacent_ranks"], [1, 5, 16]),
        (["loss=plackett_luce", "datamodule=ranking", "datamodule.items.length=4"], [1, 5, 16]),
    ],
    ids=str,
)
def test_prices_by_what_is_read(overrides, prices):
    config = composed(*STARTED, *overrides)
    assert [price_of(config)(masks) for masks in (2, 4, 8)] == prices
    if "loss=sft" in overrides:
        assert [PRICES["chosen"](config)(masks) for masks in (2, 4, 8)] == prices


def test_rankings_that_the_data_came_with_are_paid_as_rankings():
    assert answers_given(RecordInfo("a", pairs=3, ranking=4)) == 3
    assert answers_given(RecordInfo("a", pairs=0, ranking=4)) == 5
    assert answers_given(RecordInfo("a")) == 0


def test_no_rule_errs_without_its_choice():
    def coin(*_):
        return True

    rule = unerring(partial(all_pairs, min_gap=0.25, choice=coin))
    assert (rule.func, rule.keywords) == (all_pairs, {"min_gap": 0.25})
    assert unerring(best_worst) is best_worst


class Toys:
    """Six records; of each, mask 2 is gold and mask 0 the farthest from it."""

    classes = ("background", "object")

    def __len__(self):
        return 6

    def __getitem__(self, index):
        return toy(f"toy{index}")


def test_answers_are_turned_round_in_training_and_nowhere_else():
    noisy = [
        "questions=noisy_best_worst",
        "questions.choice.probability=0.999",
        "questions.choice.choice.temperature=1e-6",
    ]
    config = composed(*STARTED, *noisy)
    numbers = [np.array(part, np.uint32) for part in ([0, 1, 2], [3], [4, 5])]
    judged = with_preferences(config, Toys(), Splits(*numbers, (3, 1, 2)), {})
    pairs = {
        name: {judged.source[int(number)].pairs[0].chosen for number in getattr(judged.splits, name)}
        for name in ("train", "val", "test")
    }
    assert pairs == {"train": {0}, "val": {2}, "test": {2}}

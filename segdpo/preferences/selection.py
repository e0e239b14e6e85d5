"""Which images to have judged when judging is dear: the most promising ones under a budget.

A selection is a plain function `(records, *, seed, …) -> record numbers`, most promising first. How promising an image
is says an acquisition, `(record, rng) -> float`, larger = sooner.
"""

from collections.abc import Callable, Iterator
from typing import Protocol

import numpy as np
from scipy.special import expit, log_softmax

from segdpo.data import MaskSource, Record, record_rng
from segdpo.masks import mean_pairwise_iou
from segdpo.preferences.prediction import Predict, logits_of

Acquisition = Callable[[Record, np.random.Generator], float]


class Records(Protocol):
    """Any numbered collection of records: a list, a data set."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Record: ...


def everything(records: Records, *, seed: int = 0) -> list[int]:
    """Select all records, in their order."""
    return list(range(len(records)))


def at_random(records: Records, *, budget: int, seed: int = 0) -> list[int]:
    """Draw `budget` records: the baseline that every other selection must beat; looks at no image."""
    _check_budget(budget)
    return [int(number) for number in np.random.default_rng(seed).permutation(len(records))[:budget]]


def most_promising(records: Records, *, budget: int, acquisition: Acquisition, seed: int = 0) -> list[int]:
    """Select the `budget` records of largest acquisition, the earlier of equals first; all if there are fewer."""
    _check_budget(budget)
    values = np.fromiter(_values(records, acquisition, seed), dtype=np.float64, count=len(records))
    return [int(number) for number in np.argsort(-values, kind="stable")[:budget]]


def entropy(record: Record, rng: np.random.Generator, *, predict: Predict) -> float:
    """Mean over the pixels of −Σ_c p_c log p_c of the prediction, in nats: where the model is unsure."""
    logits = logits_of(predict, record.image[None])[0].astype(np.float64)
    if len(logits) == 1:
        # −p log p − q log q = log(1 + e^z) − p z, without the logarithm of a vanishing probability.
        return float((np.logaddexp(0, logits) - expit(logits) * logits).mean())
    log_p = log_softmax(logits, axis=0)
    return float(-(np.exp(log_p) * log_p).sum(0).mean())


def disagreement(
    record: Record, rng: np.random.Generator, *, mask_source: MaskSource, background: bool = False
) -> float:
    """1 − the mean IoU of all pairs of candidates of a source: where its masks leave something to judge."""
    masks = mask_source(record, rng).masks
    if len(masks) < 2:
        return 0.0
    return 1 - mean_pairwise_iou(masks, background=background)


def _values(records: Records, acquisition: Acquisition, seed: int) -> Iterator[float]:
    for number in range(len(records)):
        record = records[number]
        value = acquisition(record, record_rng(seed, record.id, "select"))
        if np.isnan(value):
            raise ValueError(f"Expected the acquisition to give a number for record {record.id!r} but got NaN.")
        yield value


def _check_budget(budget: int) -> None:
    if budget < 1:
        raise ValueError(f"Expected budget to be at least 1 record but got {budget}.")

"""Selections: which images to collect preferences for when there is a budget.

A selection is a function `(records, *, seed, …) -> record numbers`. `most_promising` ranks the images by an
acquisition, a function `(record, rng) -> float` whose larger values come first.
"""

from collections.abc import Callable
from typing import Protocol

import numpy as np
from scipy.special import expit, log_softmax

from segdpo.checks import check_range
from segdpo.data import MaskSource, Record, record_rng
from segdpo.masks import mean_pairwise_iou
from segdpo.preferences.network import Network, with_network

Acquisition = Callable[..., float]
"""Called as (record, rng), and with `network` if it asks one."""


class Records(Protocol):
    """Any numbered collection of records: a list, a data set."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Record: ...


def everything(records: Records, *, seed: int = 0) -> list[int]:
    """Select all records, in their order."""
    return list(range(len(records)))


def part(records: Records, *, number: int, parts: int, seed: int = 0) -> list[int]:
    """Select part `number` (0 … parts − 1) of the records, in their order; sizes differ by one at most."""
    check_range("parts", parts, least=1)
    if not 0 <= number < parts:
        raise ValueError(f"Expected number from 0 to {parts - 1}, since parts is {parts}, but got {number}.")
    count = len(records)
    return list(range(number * count // parts, (number + 1) * count // parts))


def at_random(records: Records, *, budget: int, seed: int = 0) -> list[int]:
    """Draw `budget` records without reading any: the baseline for every other selection."""
    _check_budget(budget)
    return [int(number) for number in np.random.default_rng(seed).permutation(len(records))[:budget]]


def most_promising(
    records: Records, *, budget: int, acquisition: Acquisition, network: Network | None = None, seed: int = 0
) -> list[int]:
    """Select the `budget` records of largest acquisition, the earlier of equals first; all if there are fewer.

    `network` is passed to the acquisition if it asks one.
    """
    _check_budget(budget)
    acquire = with_network(acquisition, network)
    values = np.array([_value(acquire, records[number], seed) for number in range(len(records))], dtype=np.float64)
    return [int(number) for number in np.argsort(-values, kind="stable")[:budget]]


def entropy(record: Record, rng: np.random.Generator, *, network: Network) -> float:
    """Mean over the pixels of −Σ_c p_c log p_c of the prediction, in nats."""
    logits = network.predict(record.image[None])[0].astype(np.float64)
    if len(logits) == 1:
        # −p log p − q log q = log(1 + e^z) − p z, which never takes the logarithm of a probability that underflows.
        return float((np.logaddexp(0, logits) - expit(logits) * logits).mean())
    log_p = log_softmax(logits, axis=0)
    return float(-(np.exp(log_p) * log_p).sum(0).mean())


def disagreement(
    record: Record,
    rng: np.random.Generator,
    *,
    candidates: MaskSource,
    network: Network | None = None,
    background: bool = False,
) -> float:
    """1 − the mean IoU of all pairs of candidates; `network` is passed to the source if it asks one."""
    masks = with_network(candidates, network)(record, rng).masks
    if len(masks) < 2:
        return 0.0
    return 1 - mean_pairwise_iou(masks, background=background)


def _value(acquire: Acquisition, record: Record, seed: int) -> float:
    value = acquire(record, record_rng(seed, record.id, "select"))
    if np.isnan(value):
        raise ValueError(f"Expected the acquisition to give a number for record {record.id!r} but got NaN.")
    return value


def _check_budget(budget: int) -> None:
    if budget < 1:
        raise ValueError(f"Expected budget to be at least 1 record but got {budget}.")

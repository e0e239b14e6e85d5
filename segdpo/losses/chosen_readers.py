"""Which terms read s⁺ or s⁻, and not the margin alone: found by asking them once."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from segdpo.losses.terms import GIVEN, Term, asks_for
from segdpo.scores import PairScores, Score


@dataclass(frozen=True)
class ChosenReaders:
    """Scores whose s⁺ or s⁻ is read: under the policy by a term that is optimised, and under the reference by any."""

    policy: frozenset[Score]
    reference: frozenset[Score]


def chosen_readers(terms: Mapping[str, tuple[Term, Score]], watched: Collection[str]) -> ChosenReaders:
    """Call each term on two even pairs that note who reads them; `watched` are the terms of weight 0.

    A watched term may compute the policy's s⁺ when it asks, without a gradient and so without much memory.
    """
    found: dict[str, set[Score]] = {"policy": set(), "reference": set()}
    with torch.no_grad():
        for name, (term, score) in terms.items():
            for network, others in found.items():
                if network == "policy" and name in watched:
                    continue
                given = {key: _even() for key in GIVEN[:2]} | {"drift": torch.zeros(2)}
                given |= {network: _spy(partial(others.add, score))}
                term(**{key: given[key] for key in asks_for(term) & set(GIVEN)})
    return ChosenReaders(frozenset(found["policy"]), frozenset(found["reference"]))


def _even() -> PairScores:
    return PairScores(chosen=torch.full((2,), -1.0), rejected=torch.full((2,), -1.0))


def _spy(note: Callable[[], None]) -> PairScores:
    def chosen() -> Tensor:
        note()
        return torch.full((2,), -1.0)

    return PairScores(chosen=chosen, margin=torch.zeros(2))

"""Which terms read s⁺ or s⁻, and not the margin alone: found by asking them once."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from segdpo.losses.terms import Term, asks_for
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
    policy: set[Score] = set()
    reference: set[Score] = set()
    with torch.no_grad():
        for name, (term, score) in terms.items():
            given = {"policy": _spy(set() if name in watched else policy, score), "reference": _spy(reference, score)}
            asked = asks_for(term)
            term(**{key: value for key, value in (given | {"drift": torch.zeros(2)}).items() if key in asked})
    return ChosenReaders(frozenset(policy), frozenset(reference))


def _spy(noted: set[Score], score: Score) -> PairScores:
    def chosen() -> Tensor:
        noted.add(score)
        return torch.full((2,), -1.0)

    return PairScores(chosen=chosen, margin=torch.zeros(2))

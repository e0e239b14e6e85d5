"""Scores of pairs of masks under one network."""

from collections.abc import Callable

import torch
from torch import Tensor

from segdpo.checks import check_same_shape


class PairScores:
    """Scores of the chosen and the rejected masks under one network, one number a pair each.

    `margin` is s⁺ − s⁻, computed on its own. `chosen` is computed when first asked for, and `rejected` is
    chosen − margin. `ranked` [lists, K] holds the scores of whole rankings, best first, each up to a constant of its
    list; for a plain pair that is (margin, 0).

    Whoever brings scores of their own writes `PairScores(chosen=…, rejected=…)`.

    >>> scores = PairScores(chosen=torch.tensor([-1.0]), rejected=torch.tensor([-3.0]))
    >>> scores.margin
    tensor([2.])
    """

    __slots__ = ("_chosen", "_grad", "_ranked", "_rejected", "margin")

    def __init__(
        self,
        chosen: Tensor | Callable[[], Tensor],
        rejected: Tensor | None = None,
        margin: Tensor | None = None,
        ranked: Tensor | None = None,
    ) -> None:
        if margin is None:
            if rejected is None or callable(chosen):
                raise ValueError("Expected PairScores(chosen, rejected) or PairScores(chosen, margin=…).")
            check_same_shape("rejected", rejected, "chosen", chosen)
            margin = chosen - rejected
        self.margin = margin
        self._chosen = chosen
        self._rejected = rejected
        self._ranked = ranked
        self._grad = torch.is_grad_enabled()

    @property
    def chosen(self) -> Tensor:
        """s⁺: the score of the chosen mask."""
        if callable(self._chosen):
            # Whoever asks first may be a logger under no_grad; the next one still needs the gradient.
            with torch.set_grad_enabled(self._grad):
                self._chosen = self._chosen()
        return self._chosen

    @property
    def rejected(self) -> Tensor:
        """s⁻: the score of the rejected mask, s⁺ − margin."""
        return self.chosen - self.margin if self._rejected is None else self._rejected

    @property
    def ranked(self) -> Tensor:
        """Scores of K masks, best first, up to a constant of their list: [lists, K]."""
        if self._ranked is None:
            return torch.stack([self.margin, torch.zeros_like(self.margin)], dim=1)
        return self._ranked

    def detach(self) -> "PairScores":
        """Return the same numbers without their history; computes `chosen`, and lets go of the logits."""
        ranked = None if self._ranked is None else self._ranked.detach()
        return PairScores(self.chosen.detach(), self.rejected.detach(), self.margin.detach(), ranked)

    def __repr__(self) -> str:
        chosen = "not asked for yet" if callable(self._chosen) else self._chosen
        return f"PairScores(margin={self.margin}, chosen={chosen})"

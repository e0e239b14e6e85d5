"""`Score`: what is measured. `PairScores`: the result."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from segdpo.checks import check_choice, check_same_shape
from segdpo.scores.regions import REDUCTIONS, RegionFunction

Quantity = Literal["log_likelihood", "log_odds"]
Reduction = Literal["sum", "mean", "class_balanced"]
RegionName = Literal["image", "disagreement", "boundary", "given"]
RegionChoice = RegionName | RegionFunction | Tensor


@dataclass(frozen=True)
class Score:
    """A score of a mask: s = Σ w · q over the pixels of a region. Equal Scores are computed once a step.

    Args:
        quantity: q, "log_likelihood" (log p of the mask's class) or "log_odds" (log p/(1−p)).
        region: "image", "disagreement", "boundary", a function of (chosen, rejected) such as `Boundary(width=5)`, or
            "given": the `region_mask` (of images) or `pair_region` (of pairs) that comes with each batch.
        reduction: the weights w, "sum", "mean", or "class_balanced" (each class of the chosen mask weighs the same).
    """

    quantity: Quantity = "log_likelihood"
    region: RegionName | RegionFunction = "image"
    reduction: Reduction = "mean"

    def __post_init__(self) -> None:
        """Check the names."""
        check_choice("quantity", self.quantity, get_args(Quantity))
        check_choice("reduction", self.reduction, REDUCTIONS)
        if not callable(self.region):
            check_choice("region", self.region, get_args(RegionName))

    @property
    def is_even(self) -> bool:
        """Whether every pixel where the masks differ counts, and all pixels of a pair weigh the same."""
        named = isinstance(self.region, str) and self.region in ("image", "disagreement")
        return named and self.reduction in ("sum", "mean")


class PairScores:
    """Scores of the chosen and the rejected masks under one network, one number for each pair.

    Args:
        chosen: s⁺ [pairs], or a function that returns it; it is called when `chosen` is first read.
        rejected: s⁻ [pairs]; None: chosen − margin.
        margin: s⁺ − s⁻ [pairs]; None: chosen − rejected.
        ranked: scores of rankings [lists, K], best first, each up to a constant of its list; None: (margin, 0).
        scored: bool [pairs]; False = no pixel of the pair counts, so that its scores are 0 and losses leave it out.
            None: every pair has such pixels.

    >>> scores = PairScores(chosen=torch.tensor([-1.0]), rejected=torch.tensor([-3.0]))
    >>> scores.margin
    tensor([2.])
    """

    __slots__ = ("_chosen", "_grad", "_ranked", "_rejected", "margin", "scored")

    def __init__(
        self,
        chosen: Tensor | Callable[[], Tensor],
        rejected: Tensor | None = None,
        margin: Tensor | None = None,
        ranked: Tensor | None = None,
        scored: Tensor | None = None,
    ) -> None:
        if margin is None:
            if rejected is None or callable(chosen):
                raise ValueError("Expected PairScores(chosen, rejected) or PairScores(chosen, margin=…).")
            check_same_shape("rejected", rejected, "chosen", chosen)
            margin = chosen - rejected
        self.margin, self.scored = margin, scored
        self._chosen = chosen
        self._rejected = rejected
        self._ranked = ranked
        self._grad = torch.is_grad_enabled()

    @property
    def chosen(self) -> Tensor:
        """s⁺: the score of the chosen mask."""
        if callable(self._chosen):
            # The first reader may be a logger under no_grad; the next one still needs the gradient.
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

    def map(self, function: Callable[[Tensor], Tensor]) -> "PairScores":
        """Return the scores with a function applied to each tensor; to `chosen` when it is first read."""
        given = (self._rejected, self.margin, self._ranked)
        rejected, margin, ranked = (None if values is None else function(values) for values in given)
        return PairScores(lambda: function(self.chosen), rejected, margin, ranked, self.scored)

    def detach(self) -> "PairScores":
        """Return the same numbers without their graph. Computes `chosen`, and keeps no reference to the logits."""
        ranked = None if self._ranked is None else self._ranked.detach()
        return PairScores(self.chosen.detach(), self.rejected.detach(), self.margin.detach(), ranked, self.scored)

    def __repr__(self) -> str:
        chosen = "not computed yet" if callable(self._chosen) else self._chosen
        return f"PairScores(margin={self.margin}, chosen={chosen})"

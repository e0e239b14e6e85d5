"""Schedules of the learning rate and of β."""

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from segdpo.checks import check_range
from segdpo.losses import PreferenceLoss, Term


def constant(optimizer: Optimizer, *, steps: int, warmup: float = 0.0) -> LambdaLR:
    """Hold the rate, after a linear warm-up over the share `warmup` of the steps."""
    return _scheduler(optimizer, steps, warmup, lambda progress: 1.0)


def linear(optimizer: Optimizer, *, steps: int, warmup: float = 0.0, floor: float = 0.0) -> LambdaLR:
    """Lower the rate in a line to the share `floor` of itself, after a linear warm-up."""
    return _scheduler(optimizer, steps, warmup, lambda progress: 1 - (1 - floor) * progress)


def cosine(optimizer: Optimizer, *, steps: int, warmup: float = 0.0, floor: float = 0.0) -> LambdaLR:
    """Lower the rate along half a cosine to the share `floor` of itself, after a linear warm-up."""
    return _scheduler(
        optimizer, steps, warmup, lambda progress: floor + (1 - floor) * (1 + math.cos(math.pi * progress)) / 2
    )


def _scheduler(optimizer: Optimizer, steps: int, warmup: float, after: Callable[[float], float]) -> LambdaLR:
    if not 0 <= warmup < 1:
        raise ValueError(f"Expected warmup to be a share of the steps, from 0 to below 1, but got {warmup}.")
    return LambdaLR(optimizer, partial(_factor, steps=steps, first=round(warmup * steps), after=after))


def _factor(step: int, *, steps: int, first: int, after: Callable[[float], float]) -> float:
    """Return the share of the rate at a step; the first of a warm-up has some rate already."""
    if step < first:
        return (step + 1) / (first + 1)
    return after(min((step - first) / max(1, steps - first), 1.0))


Beta = Callable[[int, Tensor], float | Tensor]


def constant_beta() -> None:
    """Return no rule: β stays what the loss says."""


def linear_beta(step: int, margin: Tensor, *, first: float, last: float, steps: int) -> float:
    """Return a factor that goes from `first` to `last` in a line over `steps` steps, and stays there.

    >>> [linear_beta(step, torch.tensor(0.0), first=1.0, last=3.0, steps=4) for step in (0, 1, 4, 9)]
    [1.0, 1.5, 3.0, 3.0]
    """
    return first + (last - first) * min(step / steps, 1.0)


def cosine_beta(step: int, margin: Tensor, *, first: float, last: float, steps: int) -> float:
    """Return a factor that goes from `first` to `last` along half a cosine over `steps` steps, and stays there."""
    return first + (last - first) * (1 - math.cos(math.pi * min(step / steps, 1.0))) / 2


class Adaptive:
    """β-DPO: factor 1 + α(M − M0), M the batch's mean margin, M0 its moving average; kept within [low, high].

    A batch whose pairs are far apart already gets a larger β and stays nearer to the reference.
    M0 ← momentum · M0 + (1 − momentum) · M after each batch, from 0, where h starts.
    Wu et al., "β-DPO: Direct Preference Optimization with Dynamic β", 2024 (arXiv 2407.08639).
    """

    def __init__(self, alpha: float, *, momentum: float = 0.9, low: float = 0.1, high: float = 10.0) -> None:
        check_range("alpha", alpha, least=0)
        check_range("momentum", momentum, least=0, below=1)
        check_range("low", low, above=0)
        check_range("high", high, least=low)
        self._alpha, self._momentum, self._low, self._high = alpha, momentum, low, high
        self._usual = torch.zeros(())

    def __call__(self, step: int, margin: Tensor) -> Tensor:
        """Return the factor, and move M0 on."""
        usual = self._usual.to(margin)
        self._usual = self._momentum * usual + (1 - self._momentum) * margin
        return (1 + self._alpha * (margin - usual)).clamp(self._low, self._high)

    def state_dict(self) -> dict[str, Any]:
        """Return M0."""
        return {"usual": self._usual}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from M0."""
        self._usual = state["usual"]


class BoundBeta:
    """A loss whose β follows a rule; the β of anchors keeps its ratio to the objective's.

    The terms get β as a tensor that is filled anew each step: binding the terms anew would cost more than the loss.
    """

    def __init__(self, loss: PreferenceLoss, rule: Beta) -> None:
        terms = {"objective": loss.objective} | {name: anchor.term for name, anchor in loss.anchors.items()}
        self._own = {name: own for name, term in terms.items() if (own := beta_of(term)) is not None}
        if not self._own:
            raise ValueError(
                f"Expected a loss with a beta to change but none of {', '.join(terms)} has one; "
                "choose beta_schedule=constant, or a loss with a beta (dpo, ipo, slic, cpo, …)."
            )
        # Float64, so that a factor of 1 leaves β what it was.
        self._bound = {name: torch.tensor(own, dtype=torch.float64) for name, own in self._own.items()}
        self._rule = rule
        self._base = next(iter(self._own.values()))
        bound = {name: partial(terms[name], beta=self._bound[name]) for name in self._own}
        anchors = {name: replace(anchor, term=bound.get(name, anchor.term)) for name, anchor in loss.anchors.items()}
        self.loss = replace(loss, objective=bound.get("objective", loss.objective), anchors=anchors)

    @property
    def value(self) -> Tensor:
        """β of the objective, or of the first anchor that has one."""
        return next(iter(self._bound.values()))

    @torch.no_grad()
    def set(self, step: int, margin: Tensor) -> None:
        """Set β for this step; `margin` is the batch's mean h."""
        factor = self._rule(step, self._base * margin)
        for name, bound in self._bound.items():
            if isinstance(factor, Tensor) and bound.device != factor.device:
                bound.data = bound.data.to(factor.device)
            bound.copy_(factor * self._own[name]) if isinstance(factor, Tensor) else bound.fill_(
                factor * self._own[name]
            )

    def state_dict(self) -> dict[str, Any]:
        """Return what the rule has learnt."""
        return self._rule.state_dict() if isinstance(self._rule, Adaptive) else {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with what the rule had learnt; a rule that has begun anew starts from 0."""
        if isinstance(self._rule, Adaptive) and state:
            self._rule.load_state_dict(state)


def beta_of(term: Term) -> float | None:
    """Return the β that the term is bound to, or None if it has none."""
    parameter = inspect.signature(term).parameters.get("beta")
    return float(parameter.default) if parameter and isinstance(parameter.default, int | float) else None

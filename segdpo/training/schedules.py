"""Schedules of the learning rate and of β, of the same shapes: constant, linear, cosine."""

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

BetaSchedule = Callable[[int, Tensor], float | Tensor]
"""A function of (step, mean margin β·h of the batch) that returns the factor by which β is multiplied."""


def constant(optimizer: Optimizer, *, steps: int, warmup: float = 0.0) -> LambdaLR:
    """Keep the learning rate, after a linear warm-up.

    Args:
        optimizer: its learning rate is the highest one.
        steps: steps of the whole training.
        warmup: share of the steps over which the rate rises.
    """
    return _learning_rate(optimizer, steps, warmup, partial(_line, 1.0, 1.0))


def linear(optimizer: Optimizer, *, steps: int, warmup: float = 0.0, floor: float = 0.0) -> LambdaLR:
    """Lower the learning rate linearly, after a linear warm-up.

    Args:
        optimizer: its learning rate is the highest one.
        steps: steps of the whole training.
        warmup: share of the steps over which the rate rises.
        floor: share of the rate at the last step.
    """
    return _learning_rate(optimizer, steps, warmup, partial(_line, 1.0, floor))


def cosine(optimizer: Optimizer, *, steps: int, warmup: float = 0.0, floor: float = 0.0) -> LambdaLR:
    """Lower the learning rate along half a cosine, after a linear warm-up.

    Args:
        optimizer: its learning rate is the highest one.
        steps: steps of the whole training.
        warmup: share of the steps over which the rate rises.
        floor: share of the rate at the last step.
    """
    return _learning_rate(optimizer, steps, warmup, partial(_half_cosine, 1.0, floor))


def constant_beta() -> None:
    """Return no schedule: β stays what the loss says."""


def linear_beta(step: int, margin: Tensor, *, first: float, last: float, steps: int) -> float:
    """Return a factor of β that changes linearly from `first` to `last` over `steps` steps, and then stays.

    >>> [linear_beta(step, torch.tensor(0.0), first=1.0, last=3.0, steps=4) for step in (0, 1, 4, 9)]
    [1.0, 1.5, 3.0, 3.0]
    """
    return _line(first, last, min(step / steps, 1.0))


def cosine_beta(step: int, margin: Tensor, *, first: float, last: float, steps: int) -> float:
    """Return a factor of β that changes along half a cosine from `first` to `last` over `steps` steps, and then stays.

    >>> [round(cosine_beta(step, torch.tensor(0.0), first=1.0, last=3.0, steps=4), 3) for step in (0, 1, 2, 9)]
    [1.0, 1.293, 2.0, 3.0]
    """
    return _half_cosine(first, last, min(step / steps, 1.0))


class Adaptive:
    """β-DPO: factor 1 + α(M − M0), M the batch's mean margin, M0 its moving average; kept within [low, high].

    A batch whose pairs are far apart already gets a larger β and stays nearer to the reference.
    M0 ← momentum · M0 + (1 − momentum) · M after each batch, from 0, where h starts.
    Wu et al., "β-DPO: Direct Preference Optimization with Dynamic β", 2024 (arXiv 2407.08639).

    Args:
        alpha: change of the factor per unit of margin.
        momentum: of the moving average.
        low: least factor.
        high: largest factor.
    """

    def __init__(self, alpha: float, *, momentum: float = 0.9, low: float = 0.1, high: float = 10.0) -> None:
        check_range("alpha", alpha, least=0)
        check_range("momentum", momentum, least=0, below=1)
        check_range("low", low, above=0)
        check_range("high", high, least=low)
        self._alpha, self._momentum, self._low, self._high = alpha, momentum, low, high
        self._average = torch.zeros(())

    def __call__(self, step: int, margin: Tensor) -> Tensor:
        """Return the factor, and update M0."""
        average = self._average.to(margin)
        self._average = self._momentum * average + (1 - self._momentum) * margin
        return (1 + self._alpha * (margin - average)).clamp(self._low, self._high)

    def state_dict(self) -> dict[str, Any]:
        """Return M0."""
        return {"usual": self._average}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore M0."""
        self._average = state["usual"]


class ScheduledBeta:
    """A loss whose β follows a schedule; the β of each anchor keeps its ratio to the objective's.

    The terms get β as a tensor that is overwritten at each step: building the loss anew would cost more than the loss
    itself.

    Args:
        loss: the loss; its own β is what the factors multiply.
        schedule: called with the step and the batch's mean β·h.
    """

    def __init__(self, loss: PreferenceLoss, schedule: BetaSchedule) -> None:
        terms = {"objective": loss.objective} | {name: anchor.term for name, anchor in loss.anchors.items()}
        self._initial = {name: value for name, term in terms.items() if (value := beta_of(term)) is not None}
        if not self._initial:
            raise ValueError(
                f"Expected a loss with a beta to change but none of {', '.join(terms)} has one; "
                "choose beta_schedule=constant, or a loss with a beta (dpo, ipo, slic, cpo, …)."
            )
        # Float64, so that a factor of 1 leaves β unchanged.
        self._current = {name: torch.tensor(value, dtype=torch.float64) for name, value in self._initial.items()}
        self._schedule = schedule
        self._base = next(iter(self._initial.values()))
        bound = {name: partial(terms[name], beta=beta) for name, beta in self._current.items()}
        anchors = {name: replace(anchor, term=bound.get(name, anchor.term)) for name, anchor in loss.anchors.items()}
        self.loss = replace(loss, objective=bound.get("objective", loss.objective), anchors=anchors)

    @property
    def value(self) -> Tensor:
        """β of the objective, or of the first anchor that has one."""
        return next(iter(self._current.values()))

    @torch.no_grad()
    def set(self, step: int, margin: Tensor) -> None:
        """Set β for this step.

        Args:
            step: number of the step.
            margin: the batch's mean h, a scalar.
        """
        factor = self._schedule(step, self._base * margin)
        for name, beta in self._current.items():
            if isinstance(factor, Tensor):
                if beta.device != factor.device:
                    beta.data = beta.data.to(factor.device)
                beta.copy_(factor * self._initial[name])
            else:
                beta.fill_(factor * self._initial[name])

    def state_dict(self) -> dict[str, Any]:
        """Return the state of an adaptive schedule; others have none."""
        return self._schedule.state_dict() if isinstance(self._schedule, Adaptive) else {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore an adaptive schedule; a checkpoint of another schedule leaves it at its start."""
        if isinstance(self._schedule, Adaptive) and state:
            self._schedule.load_state_dict(state)


def beta_of(term: Term) -> float | None:
    """Return the β that the term is bound to, or None if it has none."""
    parameter = inspect.signature(term).parameters.get("beta")
    return float(parameter.default) if parameter and isinstance(parameter.default, int | float) else None


def _line(first: float, last: float, progress: float) -> float:
    return first + (last - first) * progress


def _half_cosine(first: float, last: float, progress: float) -> float:
    return last + (first - last) * (1 + math.cos(math.pi * progress)) / 2


def _learning_rate(optimizer: Optimizer, steps: int, warmup: float, shape: Callable[[float], float]) -> LambdaLR:
    if not 0 <= warmup < 1:
        raise ValueError(f"Expected warmup to be a share of the steps, from 0 to below 1, but got {warmup}.")
    return LambdaLR(optimizer, partial(_factor, steps=steps, first=round(warmup * steps), shape=shape))


def _factor(step: int, *, steps: int, first: int, shape: Callable[[float], float]) -> float:
    """Return the share of the rate at a step; it is above 0 at the first step of a warm-up."""
    if step < first:
        return (step + 1) / (first + 1)
    return shape(min((step - first) / max(1, steps - first), 1.0))

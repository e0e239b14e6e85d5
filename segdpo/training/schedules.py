"""Learning-rate schedules over the whole of training: functions of the optimiser and the number of steps.

Any scheduler of torch.optim.lr_scheduler by `_target_` does as well; it is stepped after every step.
"""

import math
from collections.abc import Callable
from functools import partial

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


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

"""S1–S5: whole steps of preference training beside a supervised step of the same network and optimiser."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from bench.rounds import rounds_of
from bench.row import Row, at_least, at_most
from bench.scale import Scale
from bench.step_kinds import Bench, hinge_loss, make_bench

# id, what, the side above, the side below, target
RATIOS = (
    ("S1", "step with cached reference ÷ supervised step", "cached", "supervised", at_most(1.05)),
    ("S1", "the same with the default loss (hinge anchor)", "anchored", "supervised", at_most(1.05)),
    ("S2", "step with live reference ÷ supervised step", "live", "supervised", at_most(1.38)),
    ("S3", "language-model layout ÷ our live step", "language model", "live", at_least(1.9)),
    ("S4", "language-model layout ÷ our cached step", "language model", "cached", at_least(2.5)),
    ("S5", "all 28 pairs of 8 masks, cached ÷ supervised step", "pairs", "supervised", at_most(1.10)),
)


def rows(scale: Scale, folder: Path) -> Iterator[Row]:
    """Measure steps for a binary network and for one of 21 classes."""
    for classes in (2, 21):
        bench = make_bench(scale, classes)
        check(bench)
        where = f"U-Net ResNet-18, {'binary' if classes == 2 else f'{classes} classes'}, {scale.step_size}"
        found = rounds_of(steps_of(bench), scale.rounds, f"steps, {classes} classes", scale.device)
        for name, what, above, below, target in RATIOS:
            sides = ("naive", "ours") if above == "language model" else ("ours", "fair baseline")
            samples = dict(zip(sides, (found[above], found[below]), strict=True))
            yield Row(name, f"{what}; {where}", "ms", samples, sides, target)


def steps_of(bench: Bench) -> dict[str, Callable[[], Tensor]]:
    """Return every kind of step; all share one network, optimiser and batch."""
    return {
        "supervised": partial(bench.step, bench.supervised),
        "cached": partial(bench.step, bench.cached),
        "anchored": partial(bench.step, partial(bench.cached, hinge_loss())),
        "live": partial(bench.step, bench.live),
        "pairs": partial(bench.step, bench.all_pairs),
        "language model": partial(bench.step, bench.language_model),
    }


def check(bench: Bench) -> None:
    """Stop unless our live step and the language-model layout give the same loss and gradients."""
    found = []
    for total in (bench.live, bench.language_model):
        value = total()
        gradients = torch.autograd.grad(value, [*bench.policy.parameters()], allow_unused=True)
        found.append((value.detach(), [one for one in gradients if one is not None]))
    (value, ours), (expected, theirs) = found
    torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-5)
    largest = max(float(one.abs().max()) for one in theirs)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one / largest, other / largest, rtol=1e-2, atol=1e-3)

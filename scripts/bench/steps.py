"""S1–S5: whole steps of preference training beside a supervised step of the same network and optimiser."""

import copy
from collections.abc import Callable, Iterator
from dataclasses import replace
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
# The full set for many classes; where the loss itself is small, what it adds.
KINDS = {
    21: ("floor", "supervised", "cached", "anchored", "live", "pairs", "language model"),
    2: ("supervised", "cached", "anchored"),
}


def rows(scale: Scale, folder: Path) -> Iterator[Row]:
    """Measure steps for a network of 21 classes and for a binary one."""
    for classes, kinds in KINDS.items():
        bench = make_bench(scale, classes)
        check(bench)
        steps = {kind: step for kind, step in steps_of(bench).items() if kind in kinds}
        found = rounds_of(steps, scale, f"steps, {classes} classes")
        where = f"U-Net ResNet-18, {'binary' if classes == 2 else f'{classes} classes'}, {scale.step_size}"
        for name, what, above, below, target in RATIOS:
            if {above, below} <= set(kinds):
                over = ("naive", "ours") if above == "language model" else ("ours", "fair baseline")
                sides = dict(zip(over, (found[above], found[below]), strict=True))
                sides |= {"floor": found["floor"]} if "floor" in kinds else {}
                yield Row(name, f"{what}; {where}", "ms", sides, over, target)


def steps_of(bench: Bench) -> dict[str, Callable[[], Tensor]]:
    """Return every kind of step; all share one network, optimiser and batch."""
    kinds: dict[str, Callable[[], Tensor]] = {
        "floor": bench.without_loss,
        "supervised": bench.supervised,
        "cached": bench.cached,
        "anchored": partial(bench.cached, hinge_loss()),
        "live": bench.live,
        "pairs": bench.all_pairs,
        "language model": bench.language_model,
    }
    return {name: partial(bench.step, total) for name, total in kinds.items()}


def check(bench: Bench) -> None:
    """Stop unless our live step and the language-model layout give the same loss and gradients.

    Compared in float64: in float32 a pixel near the kink of a ReLU falls on one side in a batch of n images and on the
    other in one of 2n.
    """
    policy, reference = (copy.deepcopy(network).double() for network in (bench.policy, bench.reference))
    exact = replace(bench, policy=policy, reference=reference, image=bench.image.double())
    found = []
    for total in (exact.live, exact.language_model):
        value = total()
        gradients = torch.autograd.grad(value, [*policy.parameters()], allow_unused=True)
        found.append([value.detach(), *(one for one in gradients if one is not None)])
    torch.testing.assert_close(*found, rtol=1e-6, atol=1e-9, check_dtype=False)
    torch.testing.assert_close(bench.live().detach(), found[1][0].float(), rtol=1e-4, atol=1e-5)

"""F1: a step of preference training in Lightning, with all callbacks, against the same step in a bare loop."""

import gc
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from bench.rounds import ticking
from bench.row import Row, at_most
from bench.scale import Scale
from bench.training import Start, fit, loop, make_start
from segdpo.models import Segmenter

SIDE = 64

Loop = Callable[[Start], tuple[float, dict[str, torch.Tensor]]]


def rows(scale: Scale, folder: Path) -> Iterator[Row]:
    """Measure steps on batches of `data=shapes`, and what Lightning adds to them."""
    steps = 10  # logged once, as in training
    start = make_start(folder, scale, steps, f"data.size={SIDE}", "data.count=60")
    found = rounds_of_loops(start, f"steps at {SIDE}²")
    where = f"data=shapes, default network, 8 × {SIDE}², {steps} steps"
    sides = {"fair baseline": found[loop], "ours": found[fit]}
    yield Row("F1", f"step in Lightning ÷ bare loop; {where}", "ms", sides, target=at_most(1.03))
    tiny = replace(start, network=Segmenter(nn.Conv2d(3, 1, 3, padding=1), classes=2))
    added = rounds_of_loops(tiny, "steps of one convolution")
    # With a network of one convolution this is not hidden by other work of the machine.
    more = [ours - bare for ours, bare in zip(added[fit], added[loop], strict=True)]
    sides = {"fair baseline": found[loop], "ours": [a + b for a, b in zip(more, found[loop], strict=True)]}
    what = f"bare loop + what Lightning adds to one convolution ÷ bare loop; {where}"
    yield Row("F1", what, "ms", sides, target=at_most(1.03))


def rounds_of_loops(start: Start, what: str) -> dict[Loop, list[float]]:
    """Return the milliseconds a step of each loop; after every round the weights of ours and bare have to be equal."""
    milliseconds: dict[Loop, list[float]] = {fit: [], loop: []}
    for number in ticking(range(start.scale.rounds), what):
        weights = {}
        # The order alternates, so that neither always comes after the other.
        for way in list(milliseconds)[:: 1 if number % 2 else -1]:
            gc.collect()
            seconds, weights[way] = way(start)
            milliseconds[way].append(1e3 * seconds / len(start))
        assert_equal(weights[fit], weights[loop])
    return milliseconds


def assert_equal(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    """Stop if any weight differs in any bit."""
    assert ours.keys() == theirs.keys()
    assert not [name for name, weight in ours.items() if not torch.equal(weight, theirs[name])]

"""G1: how cost grows with pairs an image, classes and pixels; slopes in log-log."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from bench.cases import make_case, margin_loss
from bench.many_masks import make_many
from bench.rounds import rounds_of
from bench.row import Row, at_most
from bench.scale import Scale

PAIRS = (1, 2, 4, 8, 16, 28)
CLASSES = (2, 5, 10, 21, 50, 150)
LINEAR = at_most(1.0)
Points = Mapping[int, Sequence[float]]


def rows(scale: Scale, folder: Path) -> Iterator[Row]:
    """Measure steps of one convolution and dpo."""
    side = scale.growth_sides[0]
    steps = {pairs: step(side, 21, scale.device, pairs) for pairs in PAIRS}
    yield row(f"step ~ pairs an image; one convolution, 21 classes, {side}²", "pairs an image", measure(steps, scale))
    steps = {classes: step(side, classes, scale.device) for classes in CLASSES}
    yield row(f"step ~ classes; one convolution, one pair, {side}²", "classes", measure(steps, scale))
    steps = {size**2: step(size, 5, scale.device) for size in scale.growth_sides}
    yield row("step ~ pixels; one convolution, 5 classes, one pair", "pixels", measure(steps, scale))


def step(side: int, classes: int, device: torch.device, pairs: int | None = None) -> Callable[[], Tensor]:
    """Return a step: one convolution, dpo on one pair or on the first of 28, backward."""
    torch.manual_seed(0)
    network = nn.Conv2d(3, classes, 3, padding=1).to(device)
    image = torch.randn(1, 3, side, side, device=device)
    case, loss = make_case(1, classes, side, device), margin_loss()
    many = None if pairs is None else make_many(1, classes, side, device, pairs)
    index = case.index

    def run() -> Tensor:
        network.zero_grad()
        logits = network(image)
        if many is None:
            total = loss.on_logits(logits, case.cached, case.chosen, case.rejected, index=index).total
        else:
            total = loss(many.score(logits), many.cached).total
        total.backward()
        return total

    return run


def measure(steps: Mapping[int, Callable[[], Tensor]], scale: Scale) -> Points:
    """Return the milliseconds of each, all in the same rounds."""
    found = rounds_of({str(size): work for size, work in steps.items()}, scale, "growth")
    return {size: found[str(size)] for size in steps}


def row(what: str, against: str, points: Points) -> Row:
    """Return the slope of log cost against log size, fitted in each round; at most 1 is linear or better."""
    sizes = np.log(list(points))
    slopes = [float(np.polyfit(sizes, np.log(costs), 1)[0]) for costs in zip(*points.values(), strict=True)]
    said = ", ".join(f"{size:,}: {np.median(costs):.3g}" for size, costs in points.items())
    note = f"{what}: {said} ms."
    return Row("G1", what, "", {"ours": slopes}, ("ours",), LINEAR, note, curve=dict(points), against=f"{against}, ms")

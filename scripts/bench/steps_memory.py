"""S6: the most memory that a whole step holds, beside a supervised step."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

from torch import Tensor, nn

from bench.memory import held_bytes, peak_bytes
from bench.row import Row, at_most
from bench.scale import Scale
from bench.step_kinds import Bench, make_bench

MIB = 2**20


def rows(scale: Scale, folder: Path) -> Iterator[Row]:
    """Measure one step of each kind: weights, optimiser, batch and reference, and what the step adds to them."""
    images = 2 * scale.step_images
    bench = make_bench(replace(scale, step_images=images), 21)
    bench.step(bench.supervised)
    where = f"U-Net ResNet-18, 21 classes, {images} × {scale.step_side}²"
    supervised = whole(bench, bench.supervised, with_reference=False)
    cached = whole(bench, bench.cached, with_reference=False)
    live = whole(bench, bench.live, with_reference=True)
    layout = whole(bench, bench.language_model, with_reference=True)
    sides = {"fair baseline": [supervised], "naive": [layout]}
    for name, ours, limit in (("cached", cached, 1.02), ("live", live, 1.25)):
        what = f"peak of a step, {name} ÷ supervised; {where}"
        yield Row("S6", what, "MiB", {**sides, "ours": [ours]}, target=at_most(limit))


def whole(bench: Bench, total: Callable[[], Tensor], with_reference: bool) -> float:
    """Return the MiB that a step holds at its peak, with gradients made in it."""
    bench.optimizer.zero_grad()
    holders: list[nn.Module | Tensor] = [bench.policy, bench.image, bench.case.chosen, bench.case.rejected]
    holders += [value for one in bench.optimizer.state.values() for value in one.values() if isinstance(value, Tensor)]
    held = held_bytes([*holders, bench.reference] if with_reference else holders)
    return (held + peak_bytes(partial(bench.step, total), bench.image.device)) / MIB

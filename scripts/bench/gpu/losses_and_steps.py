"""The rows of scripts/benchmark.py that a GPU is asked for: L, S and C, at the sizes of a GPU."""

from collections.abc import Iterator
from pathlib import Path

from benchmark import measure

from bench.row import Row
from bench.scale import Scale

PARTS = ("loss_speed", "loss_memory", "loss_masks", "steps", "steps_memory", "compiling")


def rows(scale: Scale, folder: Path) -> Iterator[Row]:
    """Measure; a part that fails is a row of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    for part in PARTS:
        yield from measure(part, scale, folder / part)

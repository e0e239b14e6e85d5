"""Measure the data path and the training step; each figure stands beside its baseline.

    python scripts/benchmark.py
    python scripts/benchmark.py --only data --size 512 --masks 4 --classes 19 --rounds 9
    python scripts/benchmark.py --only step --steps 20

One process, one thread, baselines interleaved round by round; files come from the page cache. What is compared is
asserted to be equal in the same run. Figures are medians with their lowest and highest round. See docs/performance.md.
"""

import argparse
import tempfile
from collections.abc import Iterable
from pathlib import Path

from bench.figures import Figure
from rich.console import Console
from rich.progress import track
from rich.table import Table


def main() -> None:
    """Measure what was asked for and print a table of each group."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=("data", "step"), help="default: both")
    options = {"size": 512, "masks": 4, "classes": 19, "records": 16, "pairs": 10**6, "images": 10**5}
    for name, value in (options | {"rounds": 9, "steps": 20}).items():
        parser.add_argument(f"--{name}", type=int, default=value, help=f"default {value}")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if given.only != "step":
            scene = f"{given.size}², K = {given.masks}, {given.classes} classes"
            show(f"data: {scene}, {given.rounds} rounds", data_figures(Path(folder), given))
        if given.only != "data":
            steps = f"{given.rounds} rounds of {given.steps} steps"
            show(f"step: data=shapes, batches of 8, {steps}", step_figures(Path(folder), given))


def data_figures(root: Path, given: argparse.Namespace) -> list[Figure]:
    """Measure the store, the geometry of masks and the pair table."""
    import cv2
    from bench.data import geometry, store
    from bench.pair_table import pair_table
    from bench.scenes import Scenes, make_record

    cv2.setNumThreads(0)
    numbers = track(range(given.records), "making records")
    records = [make_record(number, given.size, given.masks, given.classes) for number in numbers]
    names = tuple(f"class{number}" for number in range(given.classes))
    return [
        *store(root / "jpg", Scenes(records, ".jpg", names), given.rounds),
        *store(root / "png", Scenes(records, ".png", names), given.rounds),
        *(geometry(records[0], count, given.rounds) for count in (given.masks, given.masks + 1, 2 * given.masks)),
        *pair_table(root, given.pairs, given.images, given.rounds),
    ]


def step_figures(root: Path, given: argparse.Namespace) -> list[Figure]:
    """Measure the step of preference training."""
    # Lightning takes seconds to import, and the data path does without.
    import torch
    from bench.step import step

    torch.set_num_threads(1)
    return step(root, given.steps, given.rounds)


def show(title: str, figures: Iterable[Figure]) -> None:
    """Print the figures."""
    title += ": median (lowest–highest)"
    table = Table("figure", "value", "baseline", "its value", "value / baseline", title=title)
    for figure in figures:
        table.add_row(*figure.row())
    Console(width=170).print(table)


if __name__ == "__main__":
    main()

"""Measure everything that is promised of speed and memory; print one table and write every sample as JSON.

    python scripts/benchmark.py
    python scripts/benchmark.py --only loss,S --json outputs/loss.json
    python scripts/benchmark.py --device cuda
    python scripts/benchmark.py --compare BEFORE.json AFTER.json

One process; all sides of a comparison take turns, round by round, on the same tensors, and what is compared is asserted
to be equal in the same run. How to read the table: docs/performance.md.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from bench.machine import machine
from bench.plots import plot_growth
from bench.row import Row, saying
from bench.scale import Scale, choose_scale
from rich.console import Console
from rich.table import Table

# Each is a module of scripts/bench/ and has rows(scale, folder). Losses first: after whole steps the C library keeps
# memory, which a new tensor of zeros finds paged in, and L2 would measure that.
PARTS = {
    "loss_speed": ("L1", "L2", "L3"),
    "loss_memory": ("L4",),
    "loss_masks": ("L5",),
    "loss_error": ("L6",),
    "steps": ("S1", "S2", "S3", "S4", "S5"),
    "steps_memory": ("S6",),
    "data_store": ("D1", "D"),
    "data_loader": ("D2",),
    "lightning_step": ("F1",),
    "reference_cache": ("R1",),
    "compiling": ("C1",),
    "peers": ("P1",),
    "growth": ("G1",),
}
COLUMNS = ("id", "what", "floor", "fair baseline", "naive", "ours", "ratio", "target", "")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what was asked for; a row that fails gives the reason, and the rest continues."""
    given = parse(arguments)
    if given.compare:
        print(compare(*(json.loads(path.read_text())["rows"] for path in given.compare)))
        return 0
    torch.set_num_threads(given.threads)
    scale = choose_scale(given.device, given.quick, given.rounds, given.clock)
    found: list[Row] = []
    taken: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        for part in chosen_parts(given.only):
            torch.use_deterministic_algorithms(False)
            start = time.monotonic()
            found += [row for row in measure(part, scale, Path(folder) / part) if is_chosen(part, row.id, given.only)]
            taken[part] = time.monotonic() - start
    show(found, taken, scale)
    write(given.json, found, taken, scale)
    if curves := [row for row in found if row.curve]:
        plot_growth(curves, given.json.with_suffix(".png"))
    return int(any(row.failed for row in found))


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    groups = ", ".join(PARTS)
    parser.add_argument("--only", type=lambda text: text.split(","), help=f"ids or their beginnings, or: {groups}")
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda, which measures larger sizes")
    parser.add_argument("--rounds", type=int, default=9, help="default 9")
    parser.add_argument("--threads", type=int, default=1, help="of the CPU; default 1")
    clocks = "wall (default), or cpu: for a machine that does other work beside it"
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help=clocks)
    parser.add_argument("--quick", action="store_true", help="tiny sizes and two rounds: shows that it runs")
    parser.add_argument(
        "--json", type=Path, default=Path("benchmark.json"), help="default benchmark.json; table and plot lie beside"
    )
    parser.add_argument(
        "--compare", type=Path, nargs=2, metavar="JSON", help="measure nothing; print the ratios of two earlier files"
    )
    given = parser.parse_args(arguments)
    if not chosen_parts(given.only):
        parser.error(f"--only {','.join(given.only)}: Expected ids such as S1 or L, or parts: {groups}.")
    return given


def chosen_parts(only: Sequence[str] | None) -> list[str]:
    """Return the parts with rows that were asked for."""
    return [part for part, ids in PARTS.items() if any(is_chosen(part, name, only) for name in ids)]


def is_chosen(part: str, name: str, only: Sequence[str] | None) -> bool:
    """Return whether a row was asked for, by its id or by its part."""
    return only is None or any(name.startswith(asked) or part.startswith(asked) for asked in only if asked)


def measure(part: str, scale: Scale, folder: Path) -> Iterator[Row]:
    """Yield the rows of a part; an error becomes a row too."""
    folder.mkdir()
    found = set()
    try:
        for row in import_module(f"bench.{part}").rows(scale, folder):
            found.add(row.id)
            yield row
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:400]
        for name in [name for name in PARTS[part] if name not in found] or PARTS[part][-1:]:
            yield Row(name, f"{part}: {reason}", failed=reason)


def show(found: Sequence[Row], taken: Mapping[str, float], scale: Scale) -> None:
    """Print the table and the notes of its rows."""
    size = "" if scale.rounds > 2 else ", sizes of a test: no figure means anything"
    said = f"{scale.rounds} rounds in turns, {scale.clock} clock"
    title = f"{said}; sides: medians; ratio: median (lowest–highest){size}"
    table = Table(*COLUMNS, title=title, caption=f"{sum(taken.values()):.0f} s")
    for row in found:
        table.add_row(*row.cells())
    console = Console(width=200)
    console.print(table)
    for row in found:
        if row.note:
            console.print(f"{row.id}: {row.note}", highlight=False, markup=False)


def compare(before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]]) -> str:
    """Return the ratios of the rows that stand in both files, side by side, as Markdown."""
    ratios = {(row["id"], row["what"]): row["ratio"]["samples"] for row in before}
    lines = [("id", "what", "before", "after", "target"), ("---",) * 5]
    for row in after:
        samples, now = ratios.get((row["id"], row["what"])), row["ratio"]["samples"]
        if samples and now:
            lines.append((row["id"], row["what"], saying(samples), saying(now), row["target"] or ""))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def write(path: Path, found: Sequence[Row], taken: Mapping[str, float], scale: Scale) -> None:
    """Write the machine, the versions and every sample; and the table as Markdown."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "machine": machine(scale.device),
        "scale": {key: str(value) if key == "device" else value for key, value in vars(scale).items()},
        "seconds": taken,
        "rows": [row.as_json() for row in found],
    }
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    heads = [name or "target met" for name in COLUMNS]
    lines = [heads, ["---"] * len(heads), *(row.cells() for row in found)]
    path.with_suffix(".md").write_text("".join(f"| {' | '.join(line)} |\n" for line in lines))


if __name__ == "__main__":
    sys.exit(main())

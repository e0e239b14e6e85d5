"""Test and measure everything that needs CUDA, and print tables for docs/performance.md; `make gpu` runs it.

    python scripts/gpu.py                          # everything, in less than 8 minutes on an H100
    python scripts/gpu.py --only tests,bandwidth
    python scripts/gpu.py --tune                   # other sizes of tiles of the kernels, and nothing else
    python scripts/gpu.py --dry                    # on a CPU at tiny sizes: shows that it runs

Each part runs in a process of its own with a time of its own, so that one that fails or hangs takes no other with it;
what a part has measured until then is kept. The status is 1 if a part or a check (X…) fails. It needs this checkout,
Python and the packages that the parts import; it installs nothing.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from bench.row import Row

ROOT = Path(__file__).parents[1]
TRAINING = ("torch", "triton", "lightning", "torchmetrics", "segmentation_models_pytorch")


@dataclass(frozen=True)
class Part:
    """A module of scripts/bench/gpu that has rows(scale, folder).

    Args:
        title: over its table.
        module: its name.
        seconds: after which it is stopped.
        rounds: of its measurements.
        packages: that it imports, beside jaxtyping and numpy.
    """

    title: str
    module: str
    seconds: int
    rounds: int
    packages: tuple[str, ...]


PARTS = {
    "tests": Part("Tests", "suite", 140, 1, ("torch", "triton", "pytest", "hypothesis", "coverage")),
    "bandwidth": Part("Losses and bandwidth", "bandwidth", 120, 7, ("torch", "triton", "rich")),
    "training": Part("Steps in Lightning", "steps", 90, 3, TRAINING),
    "resume": Part("Resume and DDP", "resume", 40, 1, (*TRAINING, "albumentations")),
    "benchmark": Part("Rows of scripts/benchmark.py", "losses_and_steps", 80, 5, (*TRAINING, "rich", "matplotlib")),
}
TUNE = Part("Sizes of tiles", "tiles", 300, 5, ("torch", "triton", "rich"))
VERSIONS = ("torch", "triton", "lightning", "segmentation-models-pytorch", "numpy")
HEADS = ("id", "what", "floor", "fair baseline", "naive", "ours", "ratio", "target", "target met")
Found = dict[str, list[dict[str, Any]]]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the parts that were asked for, print the tables and write them."""
    given = parse(arguments)
    if given.part:
        return run_part(given.part, given.rows, given.dry)
    parts = {"tune": TUNE} if given.tune else {name: PARTS[name] for name in given.only}
    machine = describe(given.dry)
    found: Found = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, part in parts.items():
            print(f"{part.title}: at most {part.seconds} s …", file=sys.stderr, flush=True)
            found[name] = collect(name, part, Path(folder) / f"{name}.jsonl", given.dry)
    text = tables(machine, found)
    print(text)
    given.json.parent.mkdir(parents=True, exist_ok=True)
    given.json.write_text(json.dumps({"machine": machine, "rows": found}, indent=1, ensure_ascii=False) + "\n")
    given.json.with_suffix(".md").write_text(text)
    return status(found)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = ",".join(PARTS)
    parser.add_argument("--only", type=lambda text: text.split(","), default=list(PARTS), help=f"parts: {names}")
    parser.add_argument("--tune", action="store_true", help="measure other sizes of tiles instead")
    parser.add_argument("--dry", action="store_true", help="on a CPU at tiny sizes; no figure means anything")
    default = Path("outputs/gpu.json")
    parser.add_argument("--json", type=Path, default=default, help=f"default {default}; the tables lie beside")
    parser.add_argument("--part", choices=[*PARTS, "tune"], help=argparse.SUPPRESS)
    parser.add_argument("--rows", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if unknown := set(given.only) - set(PARTS):
        parser.error(f"Expected --only with parts among {names} but got {', '.join(sorted(unknown))}.")
    return given


def describe(dry: bool) -> dict[str, str]:
    """Return the GPU and the versions; stop where there is no GPU."""
    found = {"device": "CPU, a dry run: no figure means anything", "python": sys.version.split()[0]}
    if not dry:
        code = (
            "import torch; assert torch.cuda.is_available(), f'torch {torch.__version__} finds none';"
            "p = torch.cuda.get_device_properties(0); print(f'{p.name}, {p.total_memory / 2**30:.0f} GiB, "
            "CUDA {torch.version.cuda}')"
        )
        # In a process of its own: this one must not hold memory of the GPU.
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise SystemExit(f"Expected a machine with CUDA but {reason}; use --dry on a machine without.")
        found["device"] = done.stdout.strip()
    return found | {name: installed(name) for name in VERSIONS}


def installed(name: str) -> str:
    """Return the version of a package, or that there is none."""
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def collect(name: str, part: Part, path: Path, dry: bool) -> list[dict[str, Any]]:
    """Run a part in a process of its own; return its rows as JSON, and one more if it did not end well."""
    missing = [package for package in (*part.packages, "jaxtyping", "numpy") if find_spec(package) is None]
    reason = f"not installed: {', '.join(missing)}" if missing else run(name, part, path, dry)
    lines = path.read_text().splitlines() if path.exists() else []
    rows = [json.loads(line) for line in lines]
    return [*rows, stored(Row("X", part.title, failed=reason))] if reason else rows


def run(name: str, part: Part, path: Path, dry: bool) -> str:
    """Run a part; return why it did not end well, or nothing."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    environment["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # deterministic matrix products, read when CUDA starts
    if dry:
        environment |= {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, __file__, "--part", name, "--rows", str(path), *(["--dry"] if dry else [])]
    begin = time.monotonic()
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True)
    try:
        _, said = process.communicate(timeout=None if dry else part.seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 9)  # its own processes too: pytest, compilers
        process.communicate()
        return f"stopped after {part.seconds} s"
    print(f"{part.title}: {time.monotonic() - begin:.0f} s", file=sys.stderr, flush=True)
    return "" if process.returncode == 0 else f"status {process.returncode}: {' '.join(said.split())[-400:]}"


def run_part(name: str, path: Path, dry: bool) -> int:
    """Measure a part in this process; append each row to a file as soon as it is there."""
    import torch
    from bench.scale import choose_scale

    part = TUNE if name == "tune" else PARTS[name]
    torch.set_num_threads(1 if dry else min(8, os.cpu_count() or 1))
    scale = choose_scale("cpu" if dry else "cuda", dry, part.rounds)
    with tempfile.TemporaryDirectory() as folder, path.open("a") as file:
        for row in import_module(f"bench.gpu.{part.module}").rows(scale, Path(folder)):
            file.write(json.dumps(stored(row), ensure_ascii=False) + "\n")
            file.flush()
    return 0


def stored(row: Row) -> dict[str, Any]:
    """Return a row as JSON, with its line of the table."""
    return {**row.as_json(), "cells": list(row.cells())}


def tables(machine: Mapping[str, str], found: Found) -> str:
    """Return what is measured as Markdown: the machine, a table for each part, and the notes of its rows."""
    said = [f"{machine['device']}; {', '.join(f'{key} {value}' for key, value in machine.items() if key != 'device')}."]
    targets = [row["met"] for rows in found.values() for row in rows if row["met"] is not None]
    said.append(f"{sum(targets)} of {len(targets)} targets are met.")
    for name, rows in found.items():
        part = TUNE if name == "tune" else PARTS[name]
        lines = [HEADS, ["---"] * len(HEADS), *(row["cells"] for row in rows)]
        said.append(f"### {part.title}")
        said.append("\n".join(f"| {' | '.join(line)} |" for line in lines))
        if notes := [f"- {row['id']}: {row['failed'] or row['note']}" for row in rows if row["failed"] or row["note"]]:
            said.append("\n".join(notes))
    return "\n\n".join(said) + "\n"


def status(found: Found) -> int:
    """Return 1 if anything failed or a check is not met. Speed that misses its target is no failure."""
    rows = [row for part in found.values() for row in part]
    return int(any(row["failed"] or (row["id"].startswith("X") and row["met"] is False) for row in rows))


if __name__ == "__main__":
    sys.exit(main())

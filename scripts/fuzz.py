"""Open mutated files of every kind with the public readers and count the outcomes.

    python scripts/fuzz.py --cases 10000 --seed 0
    python scripts/fuzz.py --only shard,weights
    python scripts/fuzz.py --case shard:17

Exit status 1 when opening a file ran code, wrote or read outside its folder, gave a wrong record, crashed, or took too
much memory or time. SECURITY.md lists the promises.
"""

import argparse
import logging
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from pathlib import Path

# Before NumPy or torch are imported: workers are forked, and threads do not survive a fork.
os.environ.update(
    {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "NO_ALBUMENTATIONS_UPDATE": "1"}
)

import torch
from fuzzing.cases import FAILURES
from fuzzing.data_kinds import DATA_KINDS
from fuzzing.kind import Kind
from fuzzing.run_kinds import RUN_KINDS
from fuzzing.table import Counts
from fuzzing.weight_kinds import WEIGHT_KINDS
from fuzzing.workers import CHUNK, Chunk, Fuzzer, Limits, run_all

KINDS = (*DATA_KINDS, *WEIGHT_KINDS, *RUN_KINDS)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the cases, print the table and return the exit status."""
    given = parse(arguments)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.disable()
    name, _, number = (given.case or "").partition(":")
    kinds = [kind for kind in KINDS if kind.name == name] if name else chosen(given.only)
    limits = Limits(given.memory << 20, given.seconds)
    counts = Counts([kind.name for kind in kinds])
    with tempfile.TemporaryDirectory(prefix="segdpo-fuzz-") as folder:
        fuzzer = Fuzzer.prepare(Path(folder), kinds, given.seed, limits)
        begun = time.monotonic()
        for kind, outcome in run_all(fuzzer, chunks_of(kinds, given.cases, number), given.workers):
            counts.add(kind.name, outcome)
            if (done := counts.files(kind.name)) == cases_of(kind, given.cases):
                print(f"{kind.name}: {done} files, {time.monotonic() - begun:.0f} s", file=sys.stderr)
            if given.case:
                print(f"{given.case}: {outcome.outcome}: {outcome.where}: {outcome.detail}")
    if not given.case:
        print(counts.markdown(given.seed))
    return int(any(counts.total(outcome) for outcome in FAILURES))


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=10_000, help="mutated files of each kind; slow kinds get a share")
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same files")
    parser.add_argument("--only", default="", help="names of kinds, or their beginnings, separated by commas")
    parser.add_argument("--case", metavar="KIND:NUMBER", help="one case again, with its message")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes (here: one a core)")
    parser.add_argument("--memory", type=int, default=2048, help="MiB that reading one file may take (here: 2048)")
    parser.add_argument("--seconds", type=float, default=10.0, help="that reading one file may take (here: 10)")
    return parser.parse_args(arguments)


def chosen(only: str) -> list[Kind]:
    """Return the kinds whose names begin with what was asked for."""
    asked = [word for word in only.split(",") if word]
    found = [kind for kind in KINDS if not asked or kind.name.startswith(tuple(asked))]
    if not found:
        raise SystemExit(f"Expected kinds of {', '.join(kind.name for kind in KINDS)} but got {only!r}.")
    return found


def cases_of(kind: Kind, cases: int) -> int:
    """Return how many cases a kind gets."""
    return max(1, round(cases * kind.share))


def chunks_of(kinds: Sequence[Kind], cases: int, number: str) -> list[Chunk]:
    """Return the cases in chunks, each for one worker."""
    if number:
        return [Chunk(kind, [int(number)]) for kind in kinds]
    sizes = {kind.name: cases_of(kind, cases) for kind in kinds}
    return [
        Chunk(kind, range(start, min(start + CHUNK, sizes[kind.name])))
        for kind in kinds
        for start in range(0, sizes[kind.name], CHUNK)
    ]


if __name__ == "__main__":
    sys.exit(main())

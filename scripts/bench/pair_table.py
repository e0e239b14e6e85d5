"""The table of a million pairs: opened, drawn from and walked in processes of their own, which tells its memory."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.rounds import ticking
from bench.row import Row
from segdpo.data import PairTable

TABLE_PROBE = """
import json, sys, time
import numpy as np
from segdpo.data.formats.arrow import PairTable
from segdpo.data.sampling import EpochSampler
def resident():
    return int(next(l for l in open("/proc/self/status") if l.startswith("VmRSS")).split()[1]) / 1024
empty, start = resident(), time.perf_counter()
if sys.argv[1] == "table":
    table = PairTable.open(sys.argv[2], int(sys.argv[3]))
    opened, start = time.perf_counter() - start, time.perf_counter()
    order = EpochSampler(len(table), seed=1).order()
    # The walk of an epoch: every pair is read once, in that order.
    total = sum(int(table.chosen[part].sum()) for part in np.array_split(order, 100))
else:
    rows = json.load(open(sys.argv[2] + ".json"))
    opened, start = time.perf_counter() - start, time.perf_counter()
    order = np.random.default_rng(1).permutation(len(rows)).tolist()
    total = sum(rows[number][1] for number in order)
print(json.dumps({"open": opened, "order": time.perf_counter() - start, "mib": resident() - empty, "total": total,
                  "distinct": len(set(order)) if len(order) < 1000 else int(np.bincount(order).max())}))
"""


# figure of the probe: what it is, unit
FIGURES = {
    "open": ("opening a table", "s"),
    "order": ("drawing an epoch's order and walking it", "s"),
    "mib": ("memory that the open, walked table adds", "MiB"),
}


def pair_table(folder: Path, pairs: int, records: int, rounds: int) -> Iterator[Row]:
    """Measure opening a table, drawing and walking an epoch in its order, and the memory that this adds."""
    path = folder / "pairs.arrow"
    columns = write_table(path, pairs, records)
    rows = [list(row) for row in zip(*(column.tolist() for column in columns), strict=True)]
    Path(f"{path}.json").write_text(json.dumps(rows))
    found: dict[str, list[dict[str, float]]] = {"table": [], "rows": []}
    for _ in ticking(range(rounds), "pair table"):
        for kind, probes in found.items():
            probes.append(probe(kind, path, records))
            assert probes[-1]["total"] == columns[1].sum()
            assert probes[-1]["distinct"] == 1
    for key, (what, unit) in FIGURES.items():
        ours, theirs = ([one[key] for one in found[kind]] for kind in ("table", "rows"))
        what = f"{what}: ours ÷ rows of JSON; {pairs:,} pairs of {records:,} images"
        yield Row("D", what, unit, {"ours": ours, "fair baseline": theirs})


def write_table(path: Path, pairs: int, records: int) -> list[NDArray[Any]]:
    """Write a table of random pairs of eight masks; return its columns."""
    rng = np.random.default_rng(0)
    chosen = rng.integers(0, 8, pairs)
    rejected = (chosen + rng.integers(1, 8, pairs)) % 8
    columns = [np.sort(rng.integers(0, records, pairs)), chosen, rejected, np.ones(pairs)]
    PairTable.from_columns(columns, records).write(path)
    return columns


def probe(kind: str, path: Path, records: int) -> dict[str, float]:
    """Open and walk the table, or the rows, in a process of its own; return its seconds and memory."""
    command = [sys.executable, "-c", TABLE_PROBE, kind, str(path), str(records)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    result: dict[str, float] = json.loads(done.stdout)
    return result

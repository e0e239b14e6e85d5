"""The table of a million pairs: opened, drawn from and walked in processes of their own, which tells its memory."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
from rich.progress import track

from bench.figures import Figure
from segdpo.data.pair_table import PairTable

TABLE_PROBE = """
import json, sys, time
import numpy as np
from segdpo.data.pair_table import PairTable
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


def pair_table(root: Path, pairs: int, records: int, rounds: int) -> list[Figure]:
    """Measure opening a table, drawing and walking an epoch in its order, and the memory that this adds."""
    rng = np.random.default_rng(0)
    chosen = rng.integers(0, 8, pairs)
    rejected = (chosen + rng.integers(1, 8, pairs)) % 8
    columns = [np.sort(rng.integers(0, records, pairs)), chosen, rejected, np.ones(pairs)]
    path = root / "pairs.arrow"
    PairTable.from_columns(columns, records).write(path)
    rows = [list(row) for row in zip(*(column.tolist() for column in columns), strict=True)]
    Path(f"{path}.json").write_text(json.dumps(rows))
    named = f"{pairs:,} pairs of {records:,} images"
    figures = {
        "open": Figure(f"opening a table of {named}", "s", "JSON rows"),
        "order": Figure("drawing an epoch's order and walking it", "s", "list of rows"),
        "mib": Figure("memory that the open, walked table adds", "MiB", "list of rows"),
    }
    for _ in track(range(rounds), "pair table"):
        found = {kind: _probe(kind, path, records) for kind in ("table", "rows")}
        assert found["table"]["total"] == found["rows"]["total"] == chosen.sum()
        assert found["table"]["distinct"] == found["rows"]["distinct"] == 1
        for key, figure in figures.items():
            figure.values.append(found["table"][key])
            figure.baseline.append(found["rows"][key])
    return list(figures.values())


def _probe(kind: str, path: Path, records: int) -> dict[str, float]:
    command = [sys.executable, "-c", TABLE_PROBE, kind, str(path), str(records)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    result: dict[str, float] = json.loads(done.stdout)
    return result

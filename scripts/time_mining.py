"""What mining costs per record: CPU time where records are mined, CPU time where they are written, and bytes.

    python scripts/time_mining.py data.size=256                  any options of segdpo mine
    python scripts/time_mining.py engine=ray data=pack data.path=PATH

CPU time does not depend on what else the machine does. The engine is given records that are mined already, so that what
it costs the process that writes is seen alone. docs/howto/clusters.md computes with these numbers.
"""

import sys
import tempfile
import time
import tracemalloc
from collections import deque
from collections.abc import Callable
from functools import partial
from operator import getitem
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir

from segdpo.data import PackWriter
from segdpo.files import conf_folder
from segdpo.preferences import Journal, journal_path
from segdpo.recipes import ConfiguredMiner, build


def main(words: list[str]) -> None:
    """Measure and print one line a number."""
    torch.set_num_threads(1)
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        config = compose("mine", words)
    miner = ConfiguredMiner(config)
    count = min(len(miner.source), 100)
    miner(0)  # opens and loads
    mining, results = timed(lambda: [miner(number) for number in range(count)])
    packed = [result.packed for result in results if result.packed is not None]
    handed_out = list(range(count)) * (1 + 3000 // count)
    stream = build(config.engine)(partial(getitem, results), handed_out)
    next(stream)  # starts Ray
    waiting, _ = timed(lambda: deque(stream, maxlen=0))
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "mined"
        journal = Journal(journal_path(out), {})
        journal.begin(list(range(count)))
        writing_lines, _ = timed(lambda: deque(map(journal.add, (result.line for result in results)), maxlen=0))
        writer = PackWriter(out, miner.source.classes, images="files")
        writing_records, _ = timed(lambda: deque(map(writer.write_packed, packed), maxlen=0))
        writer.finish()
        in_shards = sum(path.stat().st_size for path in out.glob("shard-*")) / len(packed)
        in_journal = journal_path(out).stat().st_size / count
        tracemalloc.start()
        opened = Journal(journal_path(out), {})
        memory = tracemalloc.get_traced_memory()[0] / len(opened.selected or [0])
    masks = sum(result.line.masks for result in results)
    print(f"{len(packed)} of {count} records have preferences, {masks / len(packed):.1f} masks each")
    print(f"mining: {mining / count * 1e3:.1f} ms a record on one core")
    print(f"engine: {waiting / len(handed_out) * 1e6:.0f} µs a record of the process that writes")
    print(
        f"journal: {writing_lines / count * 1e6:.0f} µs, {in_journal:.0f} bytes, {memory:.0f} bytes of memory a record"
    )
    print(f"pack: {writing_records / len(packed) * 1e6:.0f} µs, {in_shards:.0f} bytes a record")


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Return the seconds of CPU time that work took, and what it returned."""
    begin = time.process_time()
    found = work()
    return time.process_time() - begin, found


if __name__ == "__main__":
    main(sys.argv[1:])

"""The most memory that is held at once, exactly: from allocator events on a CPU, from the allocator itself on CUDA.

On a CPU torch's profiler reports every block that torch's allocator hands out and takes back, in order; the highest
sum is the peak. Nothing is sampled, so one round is exact. What oneDNN takes for itself is counted on no side.
"""

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile


def peak_bytes(work: Callable[[], object], device: torch.device) -> int:
    """Return by how many bytes memory grows at most while `work` runs."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        torch.cuda.synchronize(device)
        return int(torch.cuda.max_memory_allocated(device) - before)
    with without_stderr(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        work()
    events = [event for event in recorded.profiler.kineto_results.events() if event.name() == "[memory]"]
    ordered = sorted(events, key=lambda event: event.start_ns())
    return int(max(accumulate((event.nbytes() for event in ordered), initial=0)))


@contextmanager
def without_stderr() -> Iterator[None]:
    """Silence the messages of the profiler's C++ code, which bypass Python's streams."""
    sys.stderr.flush()
    kept = os.dup(2)
    with Path(os.devnull).open("w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def held_bytes(holders: Iterable[nn.Module | Tensor]) -> int:
    """Return how many bytes the modules and tensors take, shared memory counted once."""
    storages: dict[int, int] = {}
    for holder in holders:
        tensors = [holder] if isinstance(holder, Tensor) else [*holder.parameters(), *holder.buffers()]
        storages |= {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())

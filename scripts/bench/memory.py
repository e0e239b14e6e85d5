"""The most memory that is held at once, exactly: from allocator events on a CPU, from the allocator itself on CUDA.

On a CPU torch's profiler reports every block that torch's allocator hands out and takes back, in order; the highest
sum is the peak. Nothing is sampled, so one round is exact. What oneDNN takes for itself is counted on no side.
"""

import os
from collections.abc import Callable, Iterable
from itertools import accumulate

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

os.environ.setdefault("KINETO_LOG_LEVEL", "5")


def peak_bytes(work: Callable[[], object], device: torch.device) -> int:
    """Return by how many bytes memory grows at most while `work` runs."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        torch.cuda.synchronize(device)
        return int(torch.cuda.max_memory_allocated(device) - before)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        work()
    events = [event for event in recorded.profiler.kineto_results.events() if event.name() == "[memory]"]
    ordered = sorted(events, key=lambda event: event.start_ns())
    return int(max(accumulate((event.nbytes() for event in ordered), initial=0)))


def held_bytes(holders: Iterable[nn.Module | Tensor]) -> int:
    """Return how many bytes the modules and tensors take, what they share counted once."""
    storages: dict[int, int] = {}
    for holder in holders:
        tensors = [holder] if isinstance(holder, Tensor) else [*holder.parameters(), *holder.buffers()]
        storages |= {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())

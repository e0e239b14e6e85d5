"""Times of work on a GPU: CUDA events, all sides in turns, with nothing of the work before in the cache."""

import time
from collections.abc import Callable, Mapping
from functools import cache

import torch
from torch import Tensor

Work = Callable[[], object]

# Before each measurement 24 × 512 MiB are written. That empties the L2 cache and takes a few milliseconds, in which
# Python launches the work that is measured: what is measured is the GPU, not Python.
FLUSH_BYTES, FLUSHES = 512 * 2**20, 24


def in_turns(sides: Mapping[str, Work], rounds: int, device: torch.device) -> dict[str, list[float]]:
    """Return the milliseconds of each side, a sample a round; sides take turns in going first.

    Each side is called twice before, to warm up.
    """
    for work in [*sides.values()] * 2:
        work()
    samples: dict[str, list[float]] = {name: [] for name in sides}
    names = list(sides)
    for number in range(rounds):
        start = number % len(names)
        for name in names[start:] + names[:start]:
            samples[name].append(milliseconds(sides[name], device))
    return samples


def milliseconds(work: Work, device: torch.device) -> float:
    """Return how long the device computes; on a CPU, how long the call takes."""
    if device.type != "cuda":
        start = time.perf_counter()
        work()
        return 1e3 * (time.perf_counter() - start)
    buffer = _flush_buffer(device)
    for _ in range(FLUSHES):
        buffer.zero_()
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    work()
    end.record()
    torch.cuda.synchronize(device)
    return float(begin.elapsed_time(end))


def launch_milliseconds(work: Work, device: torch.device) -> float:
    """Return how long Python takes to launch the work, while the device is idle."""
    wait(device)
    start = time.perf_counter()
    work()
    found = 1e3 * (time.perf_counter() - start)
    wait(device)
    return found


def wait(device: torch.device) -> None:
    """Wait until the device has finished."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@cache
def _flush_buffer(device: torch.device) -> Tensor:
    return torch.empty(FLUSH_BYTES, dtype=torch.uint8, device=device)

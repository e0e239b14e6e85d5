"""Rounds: all sides of a comparison in turns, in one process, so that what else the machine does meets all alike."""

import gc
import time
from collections.abc import Callable, Iterator, Mapping

import torch
from rich.console import Console
from rich.progress import Progress

Work = Callable[[], object]


def rounds_of(
    sides: Mapping[str, Work], rounds: int, what: str, device: torch.device | None = None, shortest: float = 0.02
) -> dict[str, list[float]]:
    """Return the milliseconds a call of each side, a sample a round; sides take turns in going first.

    Each side is called once before, unmeasured. What takes less than `shortest` seconds is called several times.
    """
    device = device or torch.device("cpu")
    repeats = {}
    for name, work in sides.items():
        work()
        repeats[name] = max(1, min(100, int(shortest / max(seconds(work, device), 1e-6))))
    samples: dict[str, list[float]] = {name: [] for name in sides}
    names = list(sides)
    for number in ticking(range(rounds), what):
        start = number % len(names)
        gc.collect()
        for name in names[start:] + names[:start]:
            samples[name].append(1e3 * seconds(sides[name], device, repeats[name]) / repeats[name])
    return samples


def seconds(work: Work, device: torch.device | None = None, repeat: int = 1) -> float:
    """Return how long `repeat` calls take, until the device has finished."""
    waits = device is not None and device.type == "cuda"
    if waits:
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    for _ in range(repeat):
        work()
    if waits:
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def ticking(numbers: range, what: str) -> Iterator[int]:
    """Yield the numbers and show how far it is; not drawn by a thread of its own, which would take time."""
    with Progress(console=Console(stderr=True), auto_refresh=False, transient=True) as bar:
        task = bar.add_task(what, total=len(numbers))
        for number in numbers:
            yield number
            bar.update(task, advance=1, refresh=True)

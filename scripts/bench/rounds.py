"""Rounds: the sides of a comparison take turns in one process, so that other work of the machine affects all alike."""

import gc
from collections.abc import Callable, Iterator, Mapping

from rich.console import Console
from rich.progress import Progress

from bench.scale import Scale

Work = Callable[[], object]


def rounds_of(sides: Mapping[str, Work], scale: Scale, what: str, shortest: float = 0.02) -> dict[str, list[float]]:
    """Return the milliseconds a call of each side, a sample a round; sides take turns in going first.

    Each side is called once before, to warm up. What takes less than `shortest` seconds is called several times.
    """
    repeats = {name: _repeat(work, scale, shortest) for name, work in sides.items()}
    samples: dict[str, list[float]] = {name: [] for name in sides}
    names = list(sides)
    for number in ticking(range(scale.rounds), what):
        start = number % len(names)
        gc.collect()
        for name in names[start:] + names[:start]:
            samples[name].append(1e3 * seconds(sides[name], scale, repeats[name]) / repeats[name])
    return samples


def seconds(work: Work, scale: Scale, repeat: int = 1) -> float:
    """Return how long `repeat` calls take, until the device has finished."""
    scale.wait()
    start = scale.now()
    for _ in range(repeat):
        work()
    scale.wait()
    return scale.now() - start


def ticking(numbers: range, what: str) -> Iterator[int]:
    """Yield the numbers and show progress, without a thread of its own, which would take time."""
    with Progress(console=Console(stderr=True), auto_refresh=False, transient=True) as bar:
        task = bar.add_task(what, total=len(numbers))
        for number in numbers:
            yield number
            bar.update(task, advance=1, refresh=True)


def _repeat(work: Work, scale: Scale, shortest: float) -> int:
    # What takes long when cold is not repeated.
    if seconds(work, scale) > 10 * shortest:
        return 1
    return max(1, min(100, int(shortest / max(seconds(work, scale), 1e-6))))

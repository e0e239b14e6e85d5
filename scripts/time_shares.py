"""Where the time of a run goes: the networks' forwards, backwards and optimiser steps against everything else.

python scripts/time_shares.py                       the default run with an empty cache
python scripts/time_shares.py loss=sft threads=1    any options of train.py

Wall time is from the start of this script, so that imports count. CPU time is that of all threads; with threads=1 it
does not depend on what else the machine does. Validation, predictions and the comparison count by their forwards.
"""

import time

BEGIN = time.perf_counter(), time.process_time()

import os  # noqa: E402
import sys  # noqa: E402
import tempfile  # noqa: E402
from collections.abc import Callable, Iterator  # noqa: E402
from contextlib import contextmanager  # noqa: E402
from dataclasses import dataclass, field  # noqa: E402
from functools import wraps  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

Seconds = tuple[float, float]  # wall, CPU
STAGES = ("imports", "reference", "pairs", "policy", "comparison")


@dataclass
class Stopwatch:
    """Seconds in parts that do not contain each other, and a reading of both at the end of each stage."""

    parts: dict[str, Seconds] = field(default_factory=dict)
    laps: dict[str, tuple[Seconds, Seconds]] = field(default_factory=dict)
    _running: bool = False
    _last: tuple[Seconds, Seconds] = (BEGIN, (0.0, 0.0))

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count the seconds inside; parts inside others belong to the outer one."""
        if self._running:
            yield
            return
        self._running, begin = True, _now()
        try:
            yield
        finally:
            self._running = False
            self.parts[name] = _sum(self.parts.get(name, (0.0, 0.0)), _minus(_now(), begin))

    def lap(self, stage: str) -> None:
        """Give the seconds since the last lap, and those of the parts among them, to a stage."""
        now = _now(), _sum(*self.parts.values())
        lasted, inside = (_minus(new, old) for new, old in zip(now, self._last, strict=True))
        before = self.laps.get(stage, ((0.0, 0.0), (0.0, 0.0)))
        self.laps[stage], self._last = (_sum(before[0], lasted), _sum(before[1], inside)), now

    def table(self) -> str:
        """Return the seconds of each part and stage, with the networks' share of each."""
        total, networks = _minus(_now(), BEGIN), _sum(*self.parts.values())
        lines = [
            "| part | seconds | CPU seconds | networks' share | of CPU seconds |",
            "| --- | --- | --- | --- | --- |",
        ]
        lines += [f"| {name} | {wall:.1f} | {cpu:.1f} | | |" for name, (wall, cpu) in self.parts.items()]
        rows = {**self.laps, "**run**": (total, networks)}
        for name, (lasted, inside) in rows.items():
            shares = (f"{part / max(whole, 1e-9):.3f}" for part, whole in zip(inside, lasted, strict=True))
            lines.append(f"| {name} | {lasted[0]:.1f} | {lasted[1]:.1f} | {' | '.join(shares)} |")
        return "\n".join(lines)


def main() -> int:
    """Train once with an empty cache and print the table."""
    watch = Stopwatch()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["SEGDPO_CACHE"] = f"{folder}/cache"
        _watch_networks(watch)
        sys.argv[0] = str(Path(__file__).resolve().parents[1] / "train.py")
        from segdpo.cli import train

        status = train([*sys.argv[1:], f"hydra.run.dir={folder}/run"])
        watch.lap("comparison")
    print(watch.table())
    return status


def _watch_networks(watch: Stopwatch) -> None:
    """Replace forwards of whole networks, backwards, optimiser steps and the run's clock by ones that are timed."""
    import torch
    from lightning.pytorch.callbacks import Callback  # noqa: F401  # everything that the run imports counts as imports

    from segdpo.models import Segmenter
    from segdpo.recipes import Clock

    _replace(Segmenter, "forward", lambda old: _timed(old, watch, "forward"))
    _replace(torch.autograd, "backward", lambda old: _timed(old, watch, "backward"))
    for optimizer in (torch.optim.AdamW, torch.optim.Adam, torch.optim.SGD):
        if "step" in vars(optimizer):
            _replace(optimizer, "step", lambda old: _timed_step(old, watch))
    _replace(Clock, "__init__", lambda old: _and_lap(old, watch, "imports"))
    _replace(Clock, "lap", lambda old: _and_lap(old, watch))


def _replace(owner: Any, name: str, make: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    setattr(owner, name, make(getattr(owner, name)))


def _timed(function: Callable[..., Any], watch: Stopwatch, name: str) -> Callable[..., Any]:
    @wraps(function)
    def run(*given: Any, **options: Any) -> Any:
        with watch.part(name):
            return function(*given, **options)

    return run


def _timed_step(step: Callable[..., Any], watch: Stopwatch) -> Callable[..., Any]:
    """Return the step with its closure called first: Lightning's has the whole training step in it."""

    @wraps(step)
    def run(self: Any, closure: Callable[[], Any] | None = None) -> Any:
        loss = None if closure is None else closure()
        with watch.part("optimiser"):
            step(self)
        return loss

    return run


def _and_lap(function: Callable[..., Any], watch: Stopwatch, stage: str | None = None) -> Callable[..., Any]:
    @wraps(function)
    def run(self: Any, *given: Any) -> Any:
        watch.lap(stage or given[0])
        return function(self, *given)

    return run


def _now() -> Seconds:
    return time.perf_counter(), time.process_time()


def _sum(*seconds: Seconds) -> Seconds:
    return sum(wall for wall, _ in seconds), sum(cpu for _, cpu in seconds)


def _minus(after: Seconds, before: Seconds) -> Seconds:
    return after[0] - before[0], after[1] - before[1]


if __name__ == "__main__":
    sys.exit(main())

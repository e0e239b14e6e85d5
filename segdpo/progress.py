"""Progress of long work: bars in a terminal, and lines in a log file or a pipe, where a bar would only be a long line.

Everything that takes long shows itself through `track` or `Bars`, so that this is the one place that decides.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sized
from types import TracebackType
from typing import Protocol, TypeVar

import rich
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Column

Item = TypeVar("Item")

# Between two lines of the same work.
SECONDS = 10.0


class Display(Protocol):
    """What shows the progress of named tasks."""

    def update(self, name: str, done: int, total: int | None, numbers: str) -> None:
        """Show how far a task is."""

    def remove(self, name: str) -> None:
        """Forget a task."""

    def close(self) -> None:
        """Release the terminal."""


def in_terminal(console: Console) -> bool:
    """Return whether bars can be drawn; FORCE_COLOR, which CI sets, makes no terminal of a file."""
    return console.is_interactive and console.file.isatty()


class Bars:
    """The progress of one or more named tasks; `with` releases the terminal at the end.

    Args:
        console: where to show it; None: stdout.
        transient: whether bars vanish at the end, and short work gives no line.
        seconds: between two lines, where there is no terminal.
        clock: the time in seconds.

    >>> with Bars(Console(force_terminal=False), clock=iter([0.0, 4.0, 10.0, 11.0]).__next__) as bars:
    ...     for done in (1, 2, 3):
    ...         bars.update("train", done, 3, "loss 0.5")
    train 2/3 loss 0.5
    train 3/3 loss 0.5
    """

    def __init__(
        self,
        console: Console | None = None,
        *,
        transient: bool = False,
        seconds: float = SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        console = rich.get_console() if console is None else console
        self._display: Display = (
            _Drawn(console, transient) if in_terminal(console) else _Lines(console, transient, seconds, clock)
        )

    def update(self, name: str, done: int, total: int | None = None, numbers: str = "") -> None:
        """Show that a task has done so many of its steps; `total` None: how many there are is not known."""
        self._display.update(name, done, total, numbers)

    def remove(self, name: str) -> None:
        """Forget a task: its bar goes, and it starts anew."""
        self._display.remove(name)

    def close(self) -> None:
        """Release the terminal."""
        self._display.close()

    def __enter__(self) -> "Bars":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def track(
    items: Iterable[Item],
    name: str,
    *,
    total: int | None = None,
    console: Console | None = None,
    transient: bool = False,
) -> Iterator[Item]:
    """Yield the items and show how many are done; `total` is needed where the items have no length."""
    length = len(items) if total is None and isinstance(items, Sized) else total
    with Bars(console, transient=transient) as bars:
        bars.update(name, 0, length)
        for done, item in enumerate(items, 1):
            yield item
            bars.update(name, done, length)


class _Drawn:
    """Bars of rich."""

    def __init__(self, console: Console, transient: bool) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            # The bar fills the rest of the line.
            BarColumn(bar_width=None, table_column=Column(ratio=1)),
            MofNCompleteColumn(),
            TextColumn("{task.fields[numbers]}"),
            TimeRemainingColumn(compact=True, elapsed_when_finished=True),
            console=console,
            expand=True,
            transient=transient,
        )
        self._tasks: dict[str, TaskID] = {}
        self._progress.start()

    def update(self, name: str, done: int, total: int | None, numbers: str) -> None:
        if name not in self._tasks:
            self._tasks[name] = self._progress.add_task(name, total=total, numbers=numbers)
        finished = total is not None and done >= total
        self._progress.update(self._tasks[name], completed=done, total=total, numbers=numbers, refresh=finished)

    def remove(self, name: str) -> None:
        if name in self._tasks:
            self._progress.remove_task(self._tasks.pop(name))

    def close(self) -> None:
        self._progress.stop()


class _Lines:
    """A line every few seconds, and one at the end."""

    def __init__(self, console: Console, transient: bool, seconds: float, clock: Callable[[], float]) -> None:
        self._console, self._transient, self._seconds, self._clock = console, transient, seconds, clock
        self._printed: dict[str, tuple[float, str]] = {}
        self._begin = clock()

    def update(self, name: str, done: int, total: int | None, numbers: str) -> None:
        last, line = self._printed.get(name, (self._begin, ""))
        now = self._clock()
        finished = done == total and (bool(line) or not self._transient)
        if not finished and now - last < self._seconds:
            return
        words = f"{name} {done}{'' if total is None else f'/{total}'} {numbers}".rstrip()
        if words != line:
            self._console.print(words, soft_wrap=True, markup=False, highlight=False)
        self._printed[name] = (now, words)

    def remove(self, name: str) -> None:
        self._printed.pop(name, None)
        self._begin = self._clock()

    def close(self) -> None:
        pass

"""What `segdpo collect` prints and writes: the table of a sweep or of a frontier."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from segdpo.reports.frontier import read_frontier
from segdpo.reports.sweep import read_sweep


def collect_sweep(
    folder: Path, ignore: Sequence[str] = (), *, dense: str | None = None, against: str | None = None
) -> dict[str, bytes]:
    """Print the table of a sweep, in a terminal with colours and otherwise as Markdown, and return its files.

    Args:
        folder: where the sweep wrote its runs.
        ignore: options that make no new row.
        dense: the row trained on dense gold masks, for what the others recover.
        against: the row that every other row is compared with, seed by seed.
    """
    sweep = read_sweep(folder, ignore, dense=dense, against=against)
    markdown, console = sweep.markdown(), Console()
    if console.is_terminal:
        console.print(sweep.terminal())
        console.print("\n".join(sweep.notes()), soft_wrap=True, markup=False)
        console.print(sweep.unfinished_note(), style="yellow", soft_wrap=True, markup=False)
    else:
        print(markdown, end="")
    return {"sweep.md": markdown.encode(), "sweep.csv": sweep.csv().encode(), "sweep.png": sweep.png()}


def collect_frontier(folder: Path) -> dict[str, bytes]:
    """Print the table of a frontier as Markdown, and return its files."""
    frontier = read_frontier(folder)
    markdown = frontier.markdown()
    print(markdown, end="")
    pictures = {f"frontier.{form}": frontier.picture(form) for form in ("svg", "png")}
    return {"frontier.md": markdown.encode(), "frontier.csv": frontier.csv().encode(), **pictures}

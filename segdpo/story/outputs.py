"""What a run leaves for people to look at: a table, curves, a panel of masks."""

from pathlib import Path

from rich.console import Console

from segdpo.reports.curves import draw_curves
from segdpo.reports.table import comparison_table
from segdpo.story.configs import Plain


def show(folder: Path, summary: Plain) -> None:
    """Print the table of the run and draw its curves."""
    console = Console()
    if (folder / "metrics.csv").exists():
        draw_curves(folder / "metrics.csv", folder / "curves.png")
    console.print(comparison_table(summary))
    console.print(f"run folder: {folder}", soft_wrap=True)

"""The figure of how cost grows: a panel for each size, log-log, with the slope of one."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from bench.row import Row


def plot_growth(rows: Sequence[Row], path: Path) -> None:
    """Write one panel for each row with a curve: medians with lowest and highest, and a line of slope 1."""
    figure = Figure(figsize=(4 * len(rows), 3.6))
    panels = figure.subplots(1, len(rows), squeeze=False)
    for row, panel in zip(rows, panels[0], strict=True):
        sizes = np.array(list(row.curve), float)
        costs = np.array([list(samples) for samples in row.curve.values()])
        middle = np.median(costs, 1)
        panel.fill_between(sizes, costs.min(1), costs.max(1), alpha=0.2)
        panel.plot(sizes, middle, "o-", markersize=4)
        panel.plot(sizes, middle[-1] * sizes / sizes[-1], "--", color="0.6", label="linear")
        across, up = row.against.rsplit(", ", 1)
        panel.set(xscale="log", yscale="log", xlabel=across, ylabel=up)
        panel.set_title(f"slope {np.median(row.ratios):.2f}", fontsize=10)
        panel.legend(frameon=False, fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=100)

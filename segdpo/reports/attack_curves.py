"""The picture of an attack on a reward model: its reward and the true quality, step by step."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from segdpo.reports.colours import BLUE, VERMILION


def draw_attack(reward: Sequence[Sequence[float]], iou: Sequence[Sequence[float]], path: Path) -> None:
    """Draw both over the steps, [steps][images]: thin lines are single images, thick ones their mean."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    places = figure.subplots(1, 2)
    titles = ("what the reward model says", "IoU with gold")
    for place, values, colour, title in zip(places, (reward, iou), (BLUE, VERMILION), titles, strict=True):
        table = np.asarray(values, float)
        known = np.isfinite(table)
        counts = known.sum(1)
        mean = np.divide(np.where(known, table, 0).sum(1), counts, out=np.full(len(table), np.nan), where=counts > 0)
        place.plot(table, color=colour, alpha=0.25, linewidth=0.7)
        place.plot(mean, color=colour, linewidth=2)
        place.set_title(title, fontsize=10)
        place.set_xlabel("steps up the reward's gradient")
        place.spines[["top", "right"]].set_visible(False)
        place.tick_params(labelsize=8)
    figure.savefig(path, dpi=120)

"""What a run leaves for people to look at: a table, curves, a panel of masks."""

from pathlib import Path

import torch
from rich.console import Console
from torch import nn

from segdpo.data.batch import Batch
from segdpo.data.datamodule import DataModule
from segdpo.policies.pixel_policy import predicted_classes
from segdpo.reports.curves import draw_curves
from segdpo.reports.panels import draw_panel
from segdpo.reports.table import comparison_table
from segdpo.story.configs import Plain
from segdpo.story.evaluation_measure import as_taken
from segdpo.training.callbacks.panels import panel_rows


@torch.no_grad()
def draw_test_panel(
    policy: nn.Module, reference: nn.Module, data: DataModule, path: Path, device: torch.device, images: int = 6
) -> None:
    """Draw the first test images: chosen, rejected, and what reference and policy make of them."""
    loader = data.test_dataloader()
    if isinstance(loader, list):
        return
    batch: Batch = next(iter(loader)).to(device)
    masks = {
        name: predicted_classes(network.to(device).eval()(as_taken(network, batch.image, device)))
        for name, network in (("reference", reference), ("policy", policy))
    }
    draw_panel(panel_rows(batch, masks)[:images], path, classes=data.source.classes, title="test images")


def show(folder: Path, summary: Plain) -> None:
    """Print the table of the run and draw its curves."""
    console = Console()
    if (folder / "metrics.csv").exists():
        before = summary.get("validation", {}).get("reference", {}).get("iou", {}).get("mean")
        draw_curves(folder / "metrics.csv", folder / "curves.png", reference_iou=before)
    console.print(comparison_table(summary))
    console.print(f"run folder: {folder}", soft_wrap=True)

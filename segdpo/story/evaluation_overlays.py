"""Pictures of the images where the policy gained or lost most."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from segdpo.policies.pixel_policy import predicted_classes
from segdpo.reports.strips import draw_strip
from segdpo.story.evaluation_measure import Examination, Network, batches_of, logits_of
from segdpo.training.callbacks.panels import panel_rows

OURS = re.compile(r"(better|worse|lowest)_\d+_.*\.png")
# Ids may hold anything; long ones would meet the limits of file systems.
UNSAFE, LONGEST = re.compile(r"[^A-Za-z0-9.-]+"), 80


@dataclass(frozen=True)
class Shown:
    """An image to draw: what its file is called first, its number in the source, each network's value of a metric."""

    name: str
    number: int
    values: Mapping[str, str]
    metric: str


def draw_overlays(
    folder: Path,
    shown: Sequence[Shown],
    networks: Mapping[str, Network],
    examination: Examination,
    device: torch.device | str,
) -> None:
    """Draw image, gold, reference and policy of each, as the networks saw it; pictures of an earlier time go."""
    for old in folder.glob("*.png"):
        if OURS.fullmatch(old.name):
            old.unlink()
    for one in shown:
        draw_one(
            folder, one, networks, replace(examination, numbers=np.array([one.number], np.uint32), native=False), device
        )


@torch.no_grad()
def draw_one(
    folder: Path,
    one: Shown,
    networks: Mapping[str, Network],
    examination: Examination,
    device: torch.device | str,
) -> None:
    """Draw the one image of the examination."""
    masks = {}
    for name, network in networks.items():
        (found,) = batches_of(network, examination)
        batch = found.batch
        masks[name] = predicted_classes(logits_of(network.module, batch.image, device, batch.ids))
    (row,) = panel_rows(batch, masks, network.mean, network.std)
    notes = {name: f"{one.metric} {value}" for name, value in one.values.items()}
    path = folder / f"{one.name}_{file_name(row.id)}.png"
    draw_strip(row, path, classes=examination.source.classes, notes=notes)


def file_name(name: str) -> str:
    """Return what of an id can be in a file's name anywhere.

    >>> file_name("night/../Köln 3")
    'night_.._K_ln_3'
    """
    return UNSAFE.sub("_", name)[-LONGEST:]

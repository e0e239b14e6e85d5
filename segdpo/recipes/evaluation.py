"""The folder evaluation/: images.csv, classes.csv, summary.json, overlays/."""

import csv
import io
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import track

from segdpo.files import write_atomically
from segdpo.metrics import HIGHER_IS_BETTER, Interval, mean_interval, paired_difference, wilcoxon, win_rate
from segdpo.metrics import worst as worst_of
from segdpo.recipes.config import Plain
from segdpo.recipes.measure import (
    DIRECTED,
    Doubles,
    Examination,
    Measured,
    Network,
    batches_of,
    goodness,
    logits_of,
    of_class,
    of_images,
)
from segdpo.reports import draw_strip
from segdpo.scores import predicted_classes
from segdpo.training import panel_rows

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


# Numbers drawn for an interval: of thousands of images and many classes, fewer resamples, or this would take minutes.
AT_MOST, FEWEST, MOST = 4_000_000, 1_000, 10_000


def images_csv(networks: Mapping[str, Measured]) -> str:
    """Return a line an image, by id: policy_METRIC …, reference_METRIC …; nan where an image does not count."""
    first = next(iter(networks.values()))
    columns = [(name, metric) for name, measured in networks.items() for metric in measured.values]
    order = sorted(range(len(first.ids)), key=lambda at: (first.ids[at], at))
    rows = (
        [first.ids[at], *(repr(float(networks[name].values[metric][at])) for name, metric in columns)] for at in order
    )
    return _written(["id", *(f"{name}_{metric}" for name, metric in columns)], rows)


def classes_csv(networks: Mapping[str, Measured], classes: Sequence[str]) -> str:
    """Return a line a class, metric and network: mean, 95 % interval, and how many images have the class.

    With both networks, `difference` is a third: policy − reference, image by image. A class that never counts (class
    0, unless it is one like any other) is left out.
    """
    header = ["class", "metric", "network", "mean", "low", "high", "n"]
    metrics = list(next(iter(networks.values())).of_classes)
    rows: list[list[object]] = []
    for (number, name), metric in track(list(product(enumerate(classes), metrics)), "classes", transient=True):
        values = {network: measured.of_classes[metric][:, number] for network, measured in networks.items()}
        resamples = max(FEWEST, min(MOST, AT_MOST // max(1, len(values["policy"]))))
        lines: dict[str, Interval] = {
            network: mean_interval(column, resamples=resamples) for network, column in values.items()
        }
        if len(values) == 2:
            both = of_class(metric, number, networks["policy"], networks["reference"])
            lines["difference"] = paired_difference(*both, resamples=resamples)
        if any(line.n for line in lines.values()):
            rows += [
                [name, metric, network, *(repr(float(part)) for part in (line.mean, line.low, line.high)), line.n]
                for network, line in lines.items()
            ]
    return _written(header, rows)


def _written(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue()


# How many of the images that lost most are named, and how many are drawn on either side.
NAMED, DRAWN = 20, 6


@dataclass(frozen=True, eq=False)
class Evaluated:
    """What was measured of the policy, and of the reference on the same images where there is one."""

    policy: Measured
    reference: Measured | None = None

    def __post_init__(self) -> None:
        if self.reference is not None and self.reference.ids != self.policy.ids:
            raise ValueError("Expected policy and reference to be measured on the same images in the same order.")

    @property
    def networks(self) -> dict[str, Measured]:
        """Those that were measured, by name."""
        return {"policy": self.policy} | ({} if self.reference is None else {"reference": self.reference})

    @property
    def main(self) -> str:
        """The metric by which images are better, worse and worst: the first that says which mask is better."""
        return next(name for name in self.policy.values if name in DIRECTED)

    def changes(self) -> Doubles:
        """Return by how much each image got better in the main metric; without a reference, how good it is."""
        if self.reference is None:
            return goodness(self.main, self.policy.values[self.main])
        after, before = self.good(self.main)
        return after - before

    def good(self, name: str) -> tuple[Doubles, Doubles]:
        """Return a directed metric of both, image by image, so that more is better."""
        assert self.reference is not None
        ours, theirs = of_images(name, self.policy, self.reference)
        return goodness(name, ours), goodness(name, theirs)


def write_evaluation(
    folder: Path,
    evaluated: Evaluated,
    networks: Mapping[str, Network],
    examination: Examination,
    device: torch.device | str,
    said: Plain,
) -> Plain:
    """Write the folder and return what its summary.json says; `said` (the split, the files …) is put before it.

    The same networks and images give the same bytes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    summary = said | summarise(evaluated, examination)
    write_atomically(folder / "images.csv", images_csv(evaluated.networks).encode())
    write_atomically(folder / "classes.csv", classes_csv(evaluated.networks, examination.source.classes).encode())
    draw_overlays(folder / "overlays", shown_of(evaluated), networks, examination, device)
    write_atomically(folder / "summary.json", json.dumps(summary, indent=1).encode())
    return summary


def summarise(evaluated: Evaluated, examination: Examination) -> Plain:
    """Return means with intervals of each network, and of the difference, with all that says how sure it is."""
    policy, reference = evaluated.policy, evaluated.reference
    missing = {name: _not_counted(measured) for name, measured in evaluated.networks.items()}
    summary: dict[str, Any] = {
        "classes": list(examination.source.classes),
        "background": examination.background,
        "native": examination.native,
        "tolerance": examination.tolerance,
        "metrics": list(policy.values),
        "higher_is_better": {name: HIGHER_IS_BETTER[name] for name in policy.values},
        "images": len(policy.ids),
        "without_gold": policy.without_gold,
        "not_counted": missing,
        "calibration": {name: measured.calibration for name, measured in evaluated.networks.items()},
    }
    for network, measured in evaluated.networks.items():
        summary[network] = {name: asdict(mean_interval(values)) for name, values in measured.values.items()}
    if reference is None:
        return summary
    good = {name: evaluated.good(name) for name in policy.values if name in DIRECTED}
    differences = {name: _difference(name, policy, reference, good.get(name)) for name in policy.values}
    main = evaluated.main
    return summary | {
        "difference": {**differences, "win_rate": asdict(win_rate(*good[main]))},
        "win_rate": {name: asdict(win_rate(*both)) for name, both in good.items()},
        "wilcoxon": {name: asdict(wilcoxon(*both)) for name, both in good.items()},
        "main": main,
        "better": differences[main]["better"],
        "worse": differences[main]["worse"],
        "worst": [list(one) for one in worst_of(policy.ids, *good[main], NAMED)],
    }


def shown_of(evaluated: Evaluated) -> list[Shown]:
    """Return the images to draw: those that gained most and lost most; of one network alone, the lowest."""
    changes = evaluated.changes()
    order = sorted(np.flatnonzero(~np.isnan(changes)).tolist(), key=lambda at: (changes[at], evaluated.policy.ids[at]))
    if evaluated.reference is None:
        return _ranked("lowest", order[:DRAWN], evaluated)
    better = [at for at in order[::-1] if changes[at] > 0][:DRAWN]
    return _ranked("better", better, evaluated) + _ranked(
        "worse", [at for at in order if changes[at] < 0][:DRAWN], evaluated
    )


def _ranked(side: str, places: Sequence[int], evaluated: Evaluated) -> list[Shown]:
    return [
        Shown(
            f"{side}_{rank}",
            evaluated.policy.numbers[at],
            {name: _said(measured.values[evaluated.main][at]) for name, measured in evaluated.networks.items()},
            evaluated.main,
        )
        for rank, at in enumerate(places, 1)
    ]


def _said(value: float) -> str:
    return "nothing found" if np.isnan(value) else f"{value:.3f}"


def _difference(name: str, policy: Measured, reference: Measured, good: tuple[Doubles, Doubles] | None) -> Plain:
    """Return policy − reference as it is, with the images counted by which way is better (`good`), if one way is."""
    found = asdict(paired_difference(*of_images(name, policy, reference)))
    if good is None:
        return {key: value for key, value in found.items() if key not in ("better", "worse")}
    change = good[0] - good[1]
    return found | {"better": int((change > 0).sum()), "worse": int((change < 0).sum())}


def _not_counted(measured: Measured) -> dict[str, int]:
    counts = {name: int(np.isnan(values).sum()) for name, values in measured.values.items()}
    return {name: count for name, count in counts.items() if count}

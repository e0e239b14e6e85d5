"""The folder evaluation/: summary.json, images.csv, classes.csv and overlays/."""

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

from segdpo.checks import IGNORE
from segdpo.data import PanelRow
from segdpo.files import write_atomically
from segdpo.metrics import HIGHER_IS_BETTER, Interval, mean_interval, paired_difference, wilcoxon, win_rate
from segdpo.metrics import worst as worst_of
from segdpo.preferences import Network
from segdpo.progress import track
from segdpo.recipes.config import Plain
from segdpo.recipes.measure import (
    DIRECTED,
    Doubles,
    Measured,
    Measurement,
    Predictions,
    compare_class,
    compare_images,
    higher_is_better,
)
from segdpo.reports import draw_strip

# How many of the worst images are listed, and how many are drawn on either side.
LISTED, DRAWN = 20, 6
# Random numbers for an interval: with many images and classes there are fewer resamples, else this would take minutes.
AT_MOST, FEWEST, MOST = 4_000_000, 1_000, 10_000
OUR_PICTURES = re.compile(r"(better|worse|lowest)_\d+_.*\.png")
# Ids may contain any character and be longer than a file name may be.
UNSAFE, LONGEST = re.compile(r"[^A-Za-z0-9.-]+"), 80


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What was measured of the policy and, if there is one, of the reference on the same images."""

    policy: Measured
    reference: Measured | None = None

    def __post_init__(self) -> None:
        if self.reference is not None and self.reference.ids != self.policy.ids:
            raise ValueError("Expected policy and reference to be measured on the same images in the same order.")

    @property
    def networks(self) -> dict[str, Measured]:
        """What was measured, by the network's name."""
        return {"policy": self.policy} | ({} if self.reference is None else {"reference": self.reference})

    @property
    def main(self) -> str:
        """The metric by which images are better or worse: the first that has a better direction."""
        return next(name for name in self.policy.values if name in DIRECTED)

    def changes(self) -> Doubles:
        """Return by how much each image improved in the main metric; without a reference, its value."""
        if self.reference is None:
            return higher_is_better(self.main, self.policy.values[self.main])
        after, before = self.both(self.main)
        return after - before

    def both(self, name: str) -> tuple[Doubles, Doubles]:
        """Return a directed metric of each image under both networks, so that higher is better."""
        assert self.reference is not None
        ours, theirs = compare_images(name, self.policy, self.reference)
        return higher_is_better(name, ours), higher_is_better(name, theirs)


def write_evaluation(
    folder: Path,
    evaluation: Evaluation,
    networks: Mapping[str, Network],
    measurement: Measurement,
    inputs: Plain,
) -> Plain:
    """Write the folder; the same networks and images give the same bytes.

    Args:
        folder: where to write.
        evaluation: the measured values.
        networks: the networks, to draw their masks.
        measurement: the images and options.
        inputs: the first entries of summary.json: the split, the files.

    Returns:
        What summary.json holds.
    """
    folder.mkdir(parents=True, exist_ok=True)
    preparation = {name: network.preparation.words for name, network in networks.items()}
    summary = inputs | {"preparation": preparation} | summarise(evaluation, measurement)
    write_atomically(folder / "images.csv", images_csv(evaluation.networks).encode())
    write_atomically(folder / "classes.csv", classes_csv(evaluation.networks, measurement.source.classes).encode())
    _draw_overlays(folder / "overlays", pictures_of(evaluation), networks, measurement)
    write_atomically(folder / "summary.json", json.dumps(summary, indent=1).encode())
    return summary


def summarise(evaluation: Evaluation, measurement: Measurement) -> Plain:
    """Return means with intervals of each network and, with a reference, of their differences, with tests."""
    policy, reference = evaluation.policy, evaluation.reference
    summary: dict[str, Any] = {
        "classes": list(measurement.source.classes),
        "background": measurement.background,
        "measured_at": measurement.measured_at,
        "tolerance": measurement.tolerance,
        "metrics": list(policy.values),
        "higher_is_better": {name: HIGHER_IS_BETTER[name] for name in policy.values},
        "images": len(policy.ids),
        "without_gold": policy.without_gold,
        "not_counted": {name: _not_counted(measured) for name, measured in evaluation.networks.items()},
        "calibration": {name: measured.calibration for name, measured in evaluation.networks.items()},
    }
    for network, measured in evaluation.networks.items():
        summary[network] = {name: asdict(mean_interval(values)) for name, values in measured.values.items()}
    if reference is None:
        return summary
    both = {name: evaluation.both(name) for name in policy.values if name in DIRECTED}
    differences = {name: _difference(name, policy, reference, both.get(name)) for name in policy.values}
    main = evaluation.main
    return summary | {
        "difference": {**differences, "win_rate": asdict(win_rate(*both[main]))},
        "win_rate": {name: asdict(win_rate(*values)) for name, values in both.items()},
        "wilcoxon": {name: asdict(wilcoxon(*values)) for name, values in both.items()},
        "main": main,
        "better": differences[main]["better"],
        "worse": differences[main]["worse"],
        "worst": [list(one) for one in worst_of(policy.ids, *both[main], LISTED)],
    }


def images_csv(networks: Mapping[str, Measured]) -> str:
    """Return one line an image, sorted by id: policy_METRIC …, reference_METRIC …; nan where it does not count."""
    first = next(iter(networks.values()))
    columns = [(name, metric) for name, measured in networks.items() for metric in measured.values]
    order = sorted(range(len(first.ids)), key=lambda at: (first.ids[at], at))
    rows = (
        [first.ids[at], *(repr(float(networks[name].values[metric][at])) for name, metric in columns)] for at in order
    )
    return _csv(["id", *(f"{name}_{metric}" for name, metric in columns)], rows)


def classes_csv(networks: Mapping[str, Measured], classes: Sequence[str]) -> str:
    """Return one line a class, metric and network: mean, 95 % interval, and the number of images with the class.

    With both networks, `difference` is a third: policy − reference, image by image. Classes that never count (class 0,
    unless background is true) are left out.
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
            both = compare_class(metric, number, networks["policy"], networks["reference"])
            lines["difference"] = paired_difference(*both, resamples=resamples)
        if any(line.n for line in lines.values()):
            rows += [
                [name, metric, network, *(repr(float(part)) for part in (line.mean, line.low, line.high)), line.n]
                for network, line in lines.items()
            ]
    return _csv(header, rows)


@dataclass(frozen=True)
class Picture:
    """An image to draw.

    Attributes:
        name: the beginning of the file's name.
        number: the image's number in the source.
        values: the value of a metric, by the network's name, to write beside its mask.
        metric: the metric.
    """

    name: str
    number: int
    values: Mapping[str, str]
    metric: str


def pictures_of(evaluation: Evaluation) -> list[Picture]:
    """Return the images that improved most and those that got worse most; of one network alone, the lowest."""
    changes = evaluation.changes()
    order = sorted(np.flatnonzero(~np.isnan(changes)).tolist(), key=lambda at: (changes[at], evaluation.policy.ids[at]))
    if evaluation.reference is None:
        return _ranked("lowest", order[:DRAWN], evaluation)
    better = [at for at in order[::-1] if changes[at] > 0][:DRAWN]
    worse = [at for at in order if changes[at] < 0][:DRAWN]
    return _ranked("better", better, evaluation) + _ranked("worse", worse, evaluation)


def _ranked(side: str, places: Sequence[int], evaluation: Evaluation) -> list[Picture]:
    return [
        Picture(
            f"{side}_{rank}",
            evaluation.policy.numbers[at],
            {name: _text_of(measured.values[evaluation.main][at]) for name, measured in evaluation.networks.items()},
            evaluation.main,
        )
        for rank, at in enumerate(places, 1)
    ]


def _text_of(value: float) -> str:
    return "nothing found" if np.isnan(value) else f"{value:.3f}"


def _draw_overlays(
    folder: Path, pictures: Sequence[Picture], networks: Mapping[str, Network], measurement: Measurement
) -> None:
    """Draw each image with the masks of gold, reference and policy; pictures of an earlier evaluation are removed."""
    for old in folder.glob("*.png"):
        if OUR_PICTURES.fullmatch(old.name):
            old.unlink()
    for picture in pictures:
        one = replace(measurement, numbers=np.array([picture.number], np.uint32))
        _draw_overlay(folder, picture, networks, one)


def _draw_overlay(folder: Path, picture: Picture, networks: Mapping[str, Network], measurement: Measurement) -> None:
    """Draw the one image of the measurement."""
    masks = {}
    for name, network in networks.items():
        (found,) = Predictions(network, measurement)
        masks[name] = np.where(found.gold == IGNORE, IGNORE, found.mask).astype(np.uint8)
    row = PanelRow(found.id, found.image, **masks, gold=found.gold)
    notes = {name: f"{picture.metric} {value}" for name, value in picture.values.items()}
    path = folder / f"{picture.name}_{file_name(row.id)}.png"
    draw_strip(row, path, classes=measurement.source.classes, notes=notes)


def file_name(name: str) -> str:
    """Return the part of an id that can be in a file name on any system.

    >>> file_name("night/../Köln 3")
    'night_.._K_ln_3'
    """
    return UNSAFE.sub("_", name)[-LONGEST:]


def _difference(name: str, policy: Measured, reference: Measured, both: tuple[Doubles, Doubles] | None) -> Plain:
    """Return policy − reference; `both`, values whose higher ones are better, count the better and worse images."""
    found = asdict(paired_difference(*compare_images(name, policy, reference)))
    if both is None:
        return {key: value for key, value in found.items() if key not in ("better", "worse")}
    change = both[0] - both[1]
    return found | {"better": int((change > 0).sum()), "worse": int((change < 0).sum())}


def _not_counted(measured: Measured) -> dict[str, int]:
    counts = {name: int(np.isnan(values).sum()) for name, values in measured.values.items()}
    return {name: count for name, count in counts.items() if count}


def _csv(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue()

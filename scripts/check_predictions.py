"""Whether `segdpo predict` gives the masks that `segdpo evaluate` scored, for each run, as a Markdown table.

    python scripts/check_predictions.py outputs/mine outputs/other

The files of a run's test images are predicted, and the masks compared with gold in NumPy: the IoU of an image is the
mean over the classes that are in the mask or in gold, without class 0 unless the run has background=true.
"""

import argparse
import csv
import sys
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image as Pillow

from segdpo.cli import evaluate, predict
from segdpo.data import ImageFile, RecordSource, encode_image, file_of
from segdpo.files import conf_folder
from segdpo.masks import Mask
from segdpo.recipes import build, config_for, images_of_split

CLOSE = 1e-6


@dataclass(frozen=True)
class Row:
    """A run's test images: their mean IoU by both commands, and the largest difference in one image."""

    run: Path
    images: int
    evaluated: float
    predicted: float
    largest: float


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return the exit status: 1 if any two IoUs differ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="the folder of a finished run")
    parser.add_argument("--native", action="store_true", help="with --native of both commands")
    options = parser.parse_args(arguments)
    print("| run | test images | `evaluate` | `predict`, then NumPy | largest difference |\n|---|---|---|---|---|")
    rows = []
    for run in options.runs:
        with TemporaryDirectory() as folder:
            rows.append(compare(run, Path(folder), ["--native"] if options.native else []))
        one = rows[-1]
        print(f"| {run} | {one.images} | {one.evaluated:.6f} | {one.predicted:.6f} | {one.largest:.1e} |", flush=True)
    return int(not all(max(one.largest, abs(one.evaluated - one.predicted)) <= CLOSE for one in rows))


def compare(run: Path, folder: Path, words: list[str]) -> Row:
    """Predict and evaluate the test images of a run in a folder, on the CPU."""
    config = config_for(run, ["measured_at=image"], conf_folder())
    source: RecordSource = build(config.data)
    numbers = images_of_split("test", config, source)
    golds: dict[str, Mask] = {}
    for number in map(int, numbers):
        record = source[number]
        file = file_of(source, number) or ImageFile(".png", encode_image(record.image).data)
        path = folder / "images" / f"{record.id}{file.suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(file.data)
        if record.gold is not None:
            golds[record.id] = record.gold
    with redirect_stdout(sys.stderr):
        common = ["--device", "cpu", *words]
        failed = predict([str(run), str(folder / "images"), "--out", str(folder / "predicted"), *common])
        out = ["--out", str(folder / "evaluated"), "--metrics", "iou"]
        failed += evaluate([str(run), "measured_at=image", *out, *common])
    if failed:
        raise SystemExit(f"{run}: not predicted, or not evaluated")
    with open(folder / "evaluated" / "images.csv", newline="") as lines:
        evaluated = {row["id"]: float(row["policy_iou"]) for row in csv.DictReader(lines)}
    masks = {name: np.array(Pillow.open(folder / "predicted" / "masks" / f"{name}.png")) for name in golds}
    first = 0 if config.background else 1
    found = {name: iou(masks[name], gold, range(first, len(source.classes))) for name, gold in golds.items()}
    both = np.array([(evaluated[name], value) for name, value in found.items()])
    if (np.isnan(both[:, 0]) != np.isnan(both[:, 1])).any() or set(found) != set(evaluated):
        raise SystemExit(f"{run}: the commands measured other images")
    means = np.nanmean(both, 0)
    return Row(run, len(both), means[0], means[1], float(np.nanmax(abs(both[:, 0] - both[:, 1]))))


def iou(mask: Mask, gold: Mask, classes: range) -> float:
    """Return the mean IoU of the classes that are in the mask or in gold; NaN if none is.

    >>> iou(np.array([[1, 1, 1, 0]], np.uint8), np.array([[1, 0, 255, 0]], np.uint8), range(1, 2))
    0.5
    """
    known = gold != 255
    both = [((mask == one) & known, (gold == one) & known) for one in classes]
    each = [(a & b).sum() / (a | b).sum() for a, b in both if (a | b).any()]
    return float(np.mean(each)) if each else float("nan")


if __name__ == "__main__":
    sys.exit(main())

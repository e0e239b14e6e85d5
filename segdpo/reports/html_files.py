"""What a run left on disk, read for the report: what is missing, cut or no number is said instead of failing."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from segdpo.reports.curves import Series
from segdpo.reports.html_overlays import Overlay, read_overlays
from segdpo.reports.html_tolerant import Tree, number, read_json, read_rows, read_text, read_yaml, tree_of

EVALUATE = "python scripts/evaluate.py RUN writes it"


@dataclass(frozen=True, eq=False)
class ImageValues:
    """One line of images.csv: an id and a number for each column, such as `policy_iou`.

    `silent` is the network, if it was one of two, that rightly found nothing where the other invented something: its
    IoU is written as nan.
    """

    id: str
    values: Mapping[str, float]
    silent: str = ""

    def iou(self, network: str) -> float:
        """Return a network's IoU as it is compared: that of the silent one is 1."""
        return 1.0 if network == self.silent else self.values.get(f"{network}_iou", math.nan)

    def change(self) -> float:
        """Return by how much the policy's IoU is above the reference's; NaN where one of them is not known."""
        change = self.iou("policy") - self.iou("reference")
        return change if math.isfinite(change) else math.nan


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What lies in evaluation/, or in the folder that scripts/evaluate.py was given."""

    summary: Tree = field(default_factory=dict)
    images: Sequence[ImageValues] = ()
    classes: Sequence[Mapping[str, str]] = ()
    overlays: Sequence[Overlay] = ()


@dataclass(frozen=True, eq=False)
class RunFiles:
    """Everything that the report reads of a run; `missing` says in words what is not there.

    `alone`: not a run but what scripts/evaluate.py wrote to a folder of its own.
    """

    folder: Path
    missing: Sequence[str]
    evaluation: Evaluation
    summary: Tree = field(default_factory=dict)
    config_text: str = ""
    config: Tree = field(default_factory=dict)
    hydra: Tree = field(default_factory=dict)
    overrides: Sequence[str] = ()
    series: Mapping[str, Series] = field(default_factory=dict)
    alone: bool = False


def is_run(folder: Path) -> bool:
    """Say whether a folder is a run's, finished or not, or an evaluation's; a sweep's own folder has none of these."""
    names = ("summary.json", "config.yaml", "metrics.csv", "images.csv", ".hydra/overrides.yaml")
    return any((folder / name).is_file() for name in names)


def read_files(folder: Path) -> RunFiles:
    """Read a run's folder, or an evaluation's."""
    missing: list[str] = []
    if (folder / "images.csv").is_file():
        missing.append("This is an evaluation alone, not a run: no curves and no configuration.")
        return RunFiles(folder, missing, _evaluation(folder, missing), alone=True)
    summary = read_json(
        folder / "summary.json",
        "the run did not come to its end, so there are no results; the same command goes on, or begins again",
        missing,
    )
    config_text = read_text(folder / "config.yaml", "it is written at the end of a run", missing)
    overrides = read_yaml(read_text(folder / ".hydra" / "overrides.yaml", "the command is not known", missing))
    hydra = tree_of(read_yaml(read_text(folder / ".hydra" / "hydra.yaml", "", None)))
    return RunFiles(
        folder,
        missing,
        _evaluation(folder / "evaluation", missing),
        summary,
        config_text,
        tree_of(read_yaml(config_text)),
        tree_of(hydra.get("hydra")),
        [str(word) for word in overrides] if isinstance(overrides, list) else [],
        _series(folder / "metrics.csv", missing),
    )


def _evaluation(folder: Path, missing: list[str]) -> Evaluation:
    if not folder.is_dir():
        missing.append(f"evaluation/ is not there: nothing image by image; {EVALUATE}.")
        return Evaluation()
    return Evaluation(
        read_json(folder / "summary.json", EVALUATE, missing),
        _images(folder / "images.csv", missing),
        list(read_rows(folder / "classes.csv", EVALUATE, missing)),
        read_overlays(folder / "overlays", missing),
    )


def _series(path: Path, missing: list[str]) -> dict[str, Series]:
    series: dict[str, Series] = {}
    for row in read_rows(path, "there are no curves", missing):
        step = number(row.get("step"))
        for name, cell in row.items() if math.isfinite(step) else ():
            if name not in ("step", "epoch") and cell:
                steps, values = series.setdefault(name, ([], []))
                steps.append(step)
                values.append(number(cell))
    if path.is_file() and not series:
        missing.append("metrics.csv has no steps: the run stopped before the first was logged.")
    broken = sorted(name for name, (_, values) in series.items() if not all(map(math.isfinite, values)))
    if broken:
        missing.append(f"metrics.csv is not finite in {_listed(broken)}: training broke down there.")
    return series


def _images(path: Path, missing: list[str]) -> list[ImageValues]:
    images = [
        ImageValues(
            row["id"],
            {name: number(cell) for name, cell in row.items() if name != "id"},
            _silent(row),
        )
        for row in read_rows(path, EVALUATE, missing)
        if "id" in row
    ]
    if not images:
        if path.is_file():
            missing.append("evaluation/images.csv has no images.")
    elif not any("policy_iou" in image.values for image in images):
        missing.append("evaluation/images.csv has no IoU, by which images are compared: evaluate with --metrics iou.")
    elif empty := [image.id for image in images if not math.isfinite(image.iou("policy"))]:
        missing.append(
            f"{len(empty)} of {len(images)} images have no IoU and do not count (nothing to find, nothing found): "
            f"{_listed(empty)}."
        )
    return images


def _silent(row: Mapping[str, str]) -> str:
    sides = ("policy", "reference"), ("reference", "policy")
    found = (
        one for one, other in sides if row.get(f"{one}_iou") == "nan" and math.isfinite(number(row.get(f"{other}_iou")))
    )
    return next(found, "")


def _listed(names: Iterable[str], most: int = 5) -> str:
    kept = list(names)
    return ", ".join(kept[:most]) + (f" and {len(kept) - most} more" if len(kept) > most else "")

"""What a run left on disk, read for the report: what is missing, cut or no number is said instead of failing."""

import csv
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from segdpo.reports.curves import Series
from segdpo.reports.html_overlays import Overlay, read_overlays

Tree = Mapping[str, Any]
AGAIN = "run the same command again"
EVALUATE = "python scripts/evaluate.py RUN writes it"


@dataclass(frozen=True, eq=False)
class ImageValues:
    """One line of images.csv: an id and a number for each column, such as `policy_iou`."""

    id: str
    values: Mapping[str, float]

    def change(self, metric: str) -> float:
        """Return policy − reference; NaN where one of them is not known."""
        nan = math.nan
        return self.values.get(f"policy_{metric}", nan) - self.values.get(f"reference_{metric}", nan)


@dataclass(frozen=True, eq=False)
class RunFiles:
    """Everything that the report reads of a run; `missing` says in words what is not there."""

    folder: Path
    summary: Tree
    evaluation: Tree
    config_text: str
    config: Tree
    hydra: Tree
    overrides: Sequence[str]
    series: Mapping[str, Series]
    images: Sequence[ImageValues]
    classes: Sequence[Mapping[str, str]]
    overlays: Sequence[Overlay]
    missing: Sequence[str]


def is_run(folder: Path) -> bool:
    """Say whether a folder is a run's, finished or not.

    A sweep's folder has none of these itself; its runs have.
    """
    return any((folder / name).is_file() for name in ("summary.json", "config.yaml", "metrics.csv")) or (
        (folder / ".hydra" / "overrides.yaml").is_file()
    )


def read_files(folder: Path) -> RunFiles:
    """Read a run's folder."""
    missing: list[str] = []
    evaluation = folder / "evaluation"
    if (folder / "images.csv").is_file():
        return _evaluation_alone(folder)
    summary = _json(
        folder / "summary.json", f"the run did not come to its end, so there are no results; {AGAIN}", missing
    )
    config_text = _text(folder / "config.yaml", "written at the end of a run", missing)
    overrides = read_yaml(_text(folder / ".hydra" / "overrides.yaml", "the command is not known", missing))
    if not evaluation.is_dir():
        missing.append(f"evaluation/ is not there: nothing image by image; {EVALUATE}.")
    return RunFiles(
        folder=folder,
        summary=summary,
        evaluation=_json(evaluation / "summary.json", EVALUATE, missing) if evaluation.is_dir() else {},
        config_text=config_text,
        config=_tree(read_yaml(config_text)),
        hydra=_tree(_tree(read_yaml(_text(folder / ".hydra" / "hydra.yaml", "", None))).get("hydra")),
        overrides=[str(word) for word in overrides] if isinstance(overrides, list) else [],
        series=_series(folder / "metrics.csv", missing),
        images=_images(evaluation / "images.csv", missing) if evaluation.is_dir() else [],
        classes=list(_rows(evaluation / "classes.csv", None, "")) if evaluation.is_dir() else [],
        overlays=read_overlays(evaluation / "overlays", missing) if evaluation.is_dir() else [],
        missing=missing,
    )


def _evaluation_alone(folder: Path) -> RunFiles:
    """Read what scripts/evaluate.py wrote into a folder of its own."""
    missing = ["This is an evaluation alone, not a run: no curves and no configuration."]
    return RunFiles(
        folder=folder,
        summary={},
        evaluation=_json(folder / "summary.json", EVALUATE, missing),
        config_text="",
        config={},
        hydra={},
        overrides=[],
        series={},
        images=_images(folder / "images.csv", missing),
        classes=list(_rows(folder / "classes.csv", None, "")),
        overlays=read_overlays(folder / "overlays", missing),
        missing=missing,
    )


def number(value: object) -> float:
    """Return a cell or a value of JSON as a number, NaN where it is none.

    >>> number("0.5"), number(None), number("half")
    (0.5, nan, nan)
    """
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return math.nan
    try:
        return float(value)
    except (ValueError, OverflowError):
        return math.nan


def at(tree: object, *keys: str) -> Any:
    """Return what lies in a tree of mappings under the keys, None where the path ends early."""
    for key in keys:
        tree = tree.get(key) if isinstance(tree, Mapping) else None
    return tree


def _text(path: Path, why: str, missing: list[str] | None) -> str:
    name = "/".join(path.parts[-2:]) if path.parent.name in ("evaluation", ".hydra") else path.name
    try:
        return path.read_bytes().decode("utf-8-sig", errors="replace")
    except FileNotFoundError:
        said = f"{name} is not there: {why}." if why else f"{name} is not there."
    except OSError as error:
        said = f"{name} cannot be read ({error.strerror})."
    if missing is not None:
        missing.append(said)
    return ""


def _json(path: Path, why: str, missing: list[str]) -> Tree:
    text = _text(path, why, missing)
    if not text and not path.is_file():
        return {}
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        missing.append(f"{_name(path)} is cut or damaged ({error}); it was left out.")
        return {}
    if not isinstance(found, Mapping):
        missing.append(f"{_name(path)} holds no mapping; it was left out.")
    return _tree(found)


def read_yaml(text: str) -> Any:
    """Return what a YAML says, its ${…} as they stand; None where it is damaged."""
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError):
        return None


def _tree(found: object) -> Tree:
    return found if isinstance(found, Mapping) else {}


def _name(path: Path) -> str:
    return f"evaluation/{path.name}" if path.parent.name == "evaluation" else path.name


def _rows(path: Path, missing: list[str] | None, why: str) -> Iterator[dict[str, str]]:
    """Give the rows of a CSV; a last line that was cut is left out."""
    text = _text(path, why, missing)
    lines = text.splitlines(keepends=True)
    if lines and not lines[-1].endswith("\n"):
        lines.pop()
        if missing is not None:
            missing.append(f"{_name(path)}: its last line is cut; it was left out.")
    try:
        for row in csv.DictReader(lines):
            yield {str(name): value for name, value in row.items() if name and isinstance(value, str)}
    except csv.Error as error:
        if missing is not None:
            missing.append(f"{_name(path)} is damaged ({error}); what follows was left out.")


def _series(path: Path, missing: list[str]) -> dict[str, Series]:
    series: dict[str, Series] = {}
    for row in _rows(path, missing, "there are no curves"):
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
        ImageValues(row["id"], {name: number(cell) for name, cell in row.items() if name != "id"})
        for row in _rows(path, missing, EVALUATE)
        if "id" in row
    ]
    if path.is_file() and not images:
        missing.append("evaluation/images.csv has no images.")
    if images and not any("policy_iou" in image.values for image in images):
        missing.append(
            "evaluation/images.csv has no IoU, by which images are compared: evaluate with iou among --metrics."
        )
        return images
    empty = [image.id for image in images if not math.isfinite(image.values.get("policy_iou", math.nan))]
    if empty:
        missing.append(f"evaluation/images.csv has no IoU for {len(empty)} of {len(images)} images: {_listed(empty)}.")
    return images


def _listed(names: Iterable[str], most: int = 5) -> str:
    kept = list(names)
    return ", ".join(kept[:most]) + (f" and {len(kept) - most} more" if len(kept) > most else "")


def natural(text: str) -> list[tuple[int, int, str]]:
    """Return a key that sorts 2 before 10."""
    parts = re.split(r"(\d+)", text)
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts if part]

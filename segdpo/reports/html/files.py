"""The files of a run, read so that a damaged one is reported and does not stop the report."""

import base64
import csv
import json
import math
import re
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from segdpo.reports.curves import Series

Tree = Mapping[str, Any]


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


def read_text(path: Path, why: str, missing: list[str] | None) -> str:
    """Return a file's text; without the file nothing, and `why` that matters (to nobody: `missing` is None)."""
    try:
        return path.read_bytes().decode("utf-8-sig", errors="replace")
    except FileNotFoundError:
        said = f"{_name(path)} is not there: {why}."
    except OSError as error:
        said = f"{_name(path)} cannot be read ({error.strerror})."
    if missing is not None:
        missing.append(said)
    return ""


def read_json(path: Path, why: str, missing: list[str]) -> Tree:
    """Return the mapping that a file holds, an empty one where it is missing or damaged."""
    text = read_text(path, why, missing)
    if not text and not path.is_file():
        return {}
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        missing.append(f"{_name(path)} is cut or damaged ({error}); it was left out.")
        return {}
    if not isinstance(found, Mapping):
        missing.append(f"{_name(path)} holds no mapping; it was left out.")
    return tree_of(found)


def read_yaml(text: str) -> Any:
    """Return what a YAML says, its ${…} as they stand; None where it is damaged."""
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError):
        return None


def tree_of(found: object) -> Tree:
    """Return a mapping as it is, an empty one for anything else."""
    return found if isinstance(found, Mapping) else {}


def read_rows(path: Path, why: str, missing: list[str]) -> Iterator[dict[str, str]]:
    """Give the rows of a CSV; a last line that was cut is left out."""
    text = read_text(path, why, missing)
    lines = text.splitlines(keepends=True)
    if lines and not lines[-1].endswith("\n"):
        lines.pop()
        missing.append(f"{_name(path)}: its last line is cut; it was left out.")
    try:
        for row in csv.DictReader(lines):
            yield {str(name): value for name, value in row.items() if name and isinstance(value, str)}
    except csv.Error as error:
        missing.append(f"{_name(path)} is damaged ({error}); what follows was left out.")


def natural(text: str) -> list[tuple[int, int, str]]:
    """Return a key that sorts 2 before 10."""
    parts = re.split(r"(\d+)", text)
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts if part]


def _name(path: Path) -> str:
    return f"{path.parent.name}/{path.name}" if path.parent.name in ("evaluation", ".hydra") else path.name


SIGNATURE, END = b"\x89PNG\r\n\x1a\n", b"IEND\xaeB`\x82"
NAME = re.compile(r"(better|worse|lowest)_(\d+)_(.+)\.png", re.DOTALL)


@dataclass(frozen=True, eq=False)
class Overlay:
    """A whole PNG: the `rank`-th image that got `kind` ("better", "worse"; of one network: "lowest"), and its size."""

    kind: str
    rank: int
    name: str
    content: bytes

    @property
    def uri(self) -> str:
        """The picture as text that needs no file beside it."""
        return f"data:image/png;base64,{base64.b64encode(self.content).decode('ascii')}"

    @property
    def size(self) -> tuple[int, int]:
        """Width and height, as the file's header says."""
        width, height = struct.unpack(">II", self.content[16:24])
        return int(width), int(height)


def read_overlays(folder: Path, missing: list[str]) -> list[Overlay]:
    """Return the pictures by kind and rank; those that are cut are named in `missing`."""
    found, cut = [], []
    for path in folder.glob("*.png"):
        match = NAME.fullmatch(path.name)
        if not match:
            continue
        content = path.read_bytes() if path.is_file() else b""
        # A data: address of anything but a picture has no place in a page that others open.
        if content.startswith(SIGNATURE) and content.endswith(END):
            found.append(Overlay(match[1], int(match[2]), match[3], content))
        else:
            cut.append(path.name)
    if cut:
        missing.append(f"evaluation/overlays: {', '.join(sorted(cut))} cut or no PNG; left out.")
    if not found and not cut:
        missing.append("evaluation/overlays/ has no pictures: better and worse images are listed, but not shown.")
    return sorted(found, key=lambda overlay: (overlay.kind, overlay.rank))


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

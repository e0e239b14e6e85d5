"""Read the files of a run for a report: what is missing or damaged is said in words, and nothing raises."""

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

from segdpo.files import MAX_TEXT_BYTES, DataError, exists, read_file
from segdpo.metrics import Interval

Tree = Mapping[str, Any]
# Steps and the values logged at them.
Series = tuple[list[float], list[float]]

EVALUATE = "segdpo evaluate RUN writes it"
NO_GOLD = "no test image has gold, so IoU is not known"
SIGNATURE, END = b"\x89PNG\r\n\x1a\n", b"IEND\xaeB`\x82"
OVERLAY_NAME = re.compile(r"(better|worse|lowest)_(\d+)_(.+)\.png", re.DOTALL)


@dataclass(frozen=True, eq=False)
class Overlay:
    """A whole PNG of `evaluation/overlays/`, and its place among those of its kind.

    `kind` is "better" or "worse" for the images that gained or lost most, "lowest" in an evaluation of one network.
    """

    kind: str
    rank: int
    name: str
    content: bytes

    @property
    def uri(self) -> str:
        """The picture as a `data:` address."""
        return f"data:image/png;base64,{base64.b64encode(self.content).decode('ascii')}"

    @property
    def size(self) -> tuple[int, int]:
        """Width and height, as the file's header says."""
        width, height = struct.unpack(">II", self.content[16:24])
        return int(width), int(height)


@dataclass(frozen=True, eq=False)
class ImageValues:
    """One line of images.csv: an id and a number for each column, such as `policy_iou`.

    `empty_network` is the network that rightly found nothing where the other network found an object that is not there.
    Its IoU is written as nan and counts as 1.
    """

    id: str
    values: Mapping[str, float]
    empty_network: str = ""

    def iou(self, network: str) -> float:
        """Return the IoU by which networks are compared."""
        return 1.0 if network == self.empty_network else self.values.get(f"{network}_iou", math.nan)

    def change(self) -> float:
        """Return the policy's IoU minus the reference's; NaN where either is not known."""
        change = self.iou("policy") - self.iou("reference")
        return change if math.isfinite(change) else math.nan


@dataclass(frozen=True, eq=False)
class EvaluationFiles:
    """The content of a run's `evaluation/`, or of the folder that segdpo evaluate wrote."""

    summary: Tree = field(default_factory=dict)
    images: Sequence[ImageValues] = ()
    classes: Sequence[Mapping[str, str]] = ()
    overlays: Sequence[Overlay] = ()


@dataclass(frozen=True, eq=False)
class RunFiles:
    """Everything that a report reads of a run; `missing` lists in words what is not there or damaged.

    `only_evaluation`: the folder is no run but was written by segdpo evaluate.
    """

    folder: Path
    missing: Sequence[str]
    evaluation: EvaluationFiles
    summary: Tree = field(default_factory=dict)
    config_text: str = ""
    config: Tree = field(default_factory=dict)
    hydra: Tree = field(default_factory=dict)
    overrides: Sequence[str] = ()
    series: Mapping[str, Series] = field(default_factory=dict)
    only_evaluation: bool = False


def find_runs(path: Path) -> list[Path]:
    """Return the folder itself if it is a run's, else the runs below it, 2 before 10."""
    if is_run(path):
        return [path]
    depths = {".hydra/overrides.yaml": 1, "summary.json": 0, "metrics.csv": 0}
    found = {
        file.parents[depth] for name, depth in depths.items() for file in path.rglob(name) if file.is_file()
    }  # fmt: skip
    # A run's own evaluation/ has a summary.json too.
    return sorted((run for run in found if not found & set(run.parents)), key=lambda run: natural(str(run)))


def is_run(folder: Path) -> bool:
    """Return whether a folder is a run's (finished or not) or an evaluation's; the folder of a sweep is neither."""
    names = ("summary.json", "config.yaml", "metrics.csv", "images.csv", ".hydra/overrides.yaml")
    return any((folder / name).is_file() for name in names)


def read_files(folder: Path) -> RunFiles:
    """Read the folder of a run or of an evaluation."""
    missing: list[str] = []
    if (folder / "images.csv").is_file():
        missing.append("This is an evaluation, not a run: it has no curves and no configuration.")
        return RunFiles(folder, missing, _read_evaluation(folder, missing), only_evaluation=True)
    unfinished = "the run is unfinished, so there are no results; the same command resumes it or starts it again"
    summary = _read_json(folder / "summary.json", unfinished, missing)
    without_gold = at(summary, "gold", "with_gold") == 0
    config_text = _read_text(folder / "config.yaml", "it is written at the end of a run", missing)
    overrides = read_yaml(_read_text(folder / ".hydra" / "overrides.yaml", "the command is not known", missing))
    hydra = mapping_at(read_yaml(_read_text(folder / ".hydra" / "hydra.yaml", "", [])), "hydra")
    return RunFiles(
        folder,
        missing,
        _read_evaluation(folder / "evaluation", missing, NO_GOLD if without_gold else EVALUATE),
        summary,
        config_text,
        mapping_at(read_yaml(config_text)),
        hydra,
        [str(word) for word in overrides] if isinstance(overrides, list) else [],
        read_series(folder / "metrics.csv", missing),
    )


def read_series(path: Path, missing: list[str] | None = None) -> dict[str, Series]:
    """Return (steps, values) for each metric of a metrics.csv, without its empty cells.

    What is missing or damaged is appended to `missing`.
    """
    missing = [] if missing is None else missing
    series: dict[str, Series] = {}
    for row in _read_rows(path, "there are no curves", missing):
        step = number(row.get("step"))
        for name, text in row.items() if math.isfinite(step) else ():
            if name not in ("step", "epoch") and text:
                steps, values = series.setdefault(name, ([], []))
                steps.append(step)
                values.append(number(text))
    if path.is_file() and not series:
        missing.append("metrics.csv has no steps: the run stopped before the first one was logged.")
    broken = sorted(name for name, (_, values) in series.items() if not all(map(math.isfinite, values)))
    if broken:
        missing.append(f"metrics.csv has values that are not finite in {_listed(broken)}: training diverged.")
    return series


def read_yaml(text: str) -> Any:
    """Return the content of a YAML, its ${…} unchanged; None if it is damaged."""
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError):
        return None


def number(value: object) -> float:
    """Return a cell of a CSV or a value of a JSON as a number; NaN if it is none.

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
    """Return the value under the keys of nested mappings; None where the path ends early.

    >>> at({"a": {"b": 1}}, "a", "b"), at({"a": 2}, "a", "b")
    (1, None)
    """
    for key in keys:
        tree = tree.get(key) if isinstance(tree, Mapping) else None
    return tree


def mapping_at(tree: object, *keys: str) -> Tree:
    """Return the mapping under the keys, an empty one if there is none."""
    found = at(tree, *keys)
    return found if isinstance(found, Mapping) else {}


def interval_at(tree: object, *keys: str) -> Interval:
    """Return the interval under the keys; its numbers are NaN, and n is 0, where they are not known."""
    found = at(tree, *keys)
    mean, low, high, n = (number(at(found, name)) for name in ("mean", "low", "high", "n"))
    return Interval(mean, low, high, int(n) if math.isfinite(n) else 0)


def natural(text: str) -> list[tuple[int, int, str]]:
    """Return a key that sorts 2 before 10."""
    parts = re.split(r"(\d+)", text)
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts if part]


def _read_text(path: Path, why: str, missing: list[str]) -> str:
    """Return a file's text; without the file nothing, and `missing` gets a line that ends in `why`."""
    if not exists(path):
        missing.append(f"{_name(path)} is not there: {why}.")
        return ""
    try:
        return read_file(path, MAX_TEXT_BYTES).decode("utf-8-sig", errors="replace")
    except DataError as error:
        missing.append(f"{_name(path)} cannot be read ({error}).")
    return ""


def _read_json(path: Path, why: str, missing: list[str]) -> Tree:
    """Return the mapping that a file holds, an empty one where it is missing or damaged."""
    text = _read_text(path, why, missing)
    if not text and not path.is_file():
        return {}
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        missing.append(f"{_name(path)} is cut or damaged ({error}); it was left out.")
        return {}
    if not isinstance(found, Mapping):
        missing.append(f"{_name(path)} holds no mapping; it was left out.")
    return mapping_at(found)


def _read_rows(path: Path, why: str, missing: list[str]) -> Iterator[dict[str, str]]:
    """Yield the rows of a CSV; a last line that was cut is left out."""
    lines = _read_text(path, why, missing).splitlines(keepends=True)
    if lines and not lines[-1].endswith("\n"):
        lines.pop()
        missing.append(f"{_name(path)}: its last line is cut; it was left out.")
    try:
        for row in csv.DictReader(lines):
            yield {str(name): value for name, value in row.items() if name and isinstance(value, str)}
    except csv.Error as error:
        missing.append(f"{_name(path)} is damaged ({error}); the rest of it was left out.")


def _name(path: Path) -> str:
    return f"{path.parent.name}/{path.name}" if path.parent.name in ("evaluation", ".hydra") else path.name


def _read_evaluation(folder: Path, missing: list[str], why: str = EVALUATE) -> EvaluationFiles:
    if not folder.is_dir():
        missing.append(f"evaluation/ is not there: no values image by image; {why}.")
        return EvaluationFiles()
    return EvaluationFiles(
        _read_json(folder / "summary.json", EVALUATE, missing),
        read_images(folder / "images.csv", missing),
        list(_read_rows(folder / "classes.csv", EVALUATE, missing)),
        _read_overlays(folder / "overlays", missing),
    )


def read_images(path: Path, missing: list[str] | None = None) -> list[ImageValues]:
    """Return the lines of an images.csv. What is missing or damaged is appended to `missing`."""
    missing = [] if missing is None else missing
    images = [
        ImageValues(row["id"], {name: number(text) for name, text in row.items() if name != "id"}, _empty_network(row))
        for row in _read_rows(path, EVALUATE, missing)
        if "id" in row
    ]
    if not images:
        if path.is_file():
            missing.append("evaluation/images.csv has no images.")
    elif not any("policy_iou" in image.values for image in images):
        missing.append("evaluation/images.csv has no IoU, by which images are compared: evaluate with --metrics iou.")
    elif unknown := [image.id for image in images if not math.isfinite(image.iou("policy"))]:
        missing.append(
            f"{len(unknown)} of {len(images)} images have no IoU and do not count (nothing to find, nothing found): "
            f"{_listed(unknown)}."
        )
    return images


def _empty_network(row: Mapping[str, str]) -> str:
    for one, other in (("policy", "reference"), ("reference", "policy")):
        if row.get(f"{one}_iou") == "nan" and math.isfinite(number(row.get(f"{other}_iou"))):
            return one
    return ""


def _read_overlays(folder: Path, missing: list[str]) -> list[Overlay]:
    """Return the pictures by kind and rank; those that are cut are named in `missing`."""
    found, cut = [], []
    for path in folder.glob("*.png"):
        match = OVERLAY_NAME.fullmatch(path.name)
        if not match:
            continue
        content = path.read_bytes() if path.is_file() else b""
        # Only a picture may become a data: address of a page that is sent to others.
        if content.startswith(SIGNATURE) and content.endswith(END):
            found.append(Overlay(match[1], int(match[2]), match[3], content))
        else:
            cut.append(path.name)
    if cut:
        missing.append(f"evaluation/overlays: {', '.join(sorted(cut))} cut or no PNG; left out.")
    if not found and not cut:
        missing.append("evaluation/overlays/ has no pictures: better and worse images are listed, but not shown.")
    return sorted(found, key=lambda overlay: (overlay.kind, overlay.rank))


def _listed(names: Iterable[str], most: int = 5) -> str:
    kept = list(names)
    return ", ".join(kept[:most]) + (f" and {len(kept) - most} more" if len(kept) > most else "")

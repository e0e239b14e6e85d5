"""Reading files that may be missing, cut or damaged: what is wrong is added to a list in words, and reading goes on."""

import csv
import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

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

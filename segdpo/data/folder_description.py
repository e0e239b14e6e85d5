"""dataset.json beside the manifest: the classes, the version, and a checksum that damage to either breaks."""

import json
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from segdpo.data.errors import DataError
from segdpo.data.files import MAX_TEXT_BYTES, exists, read_file
from segdpo.data.manifest import Entry, format_jsonl, parse_jsonl
from segdpo.data.manifest_csv import format_csv, parse_csv
from segdpo.data.names import check_classes

VERSION = 1
DESCRIPTION = "dataset.json"
PARSERS = {"jsonl": parse_jsonl, "csv": parse_csv}
FORMATTERS = {"jsonl": format_jsonl, "csv": format_csv}
MAX_DESCRIPTION_BYTES = 2**24
KEYS = {"version", "classes", "checksum"}


def read_description(root: Path) -> tuple[tuple[str, ...], list[Entry]]:
    """Return the classes and the manifest's entries of a folder."""
    path = root / DESCRIPTION
    if not exists(path):
        raise DataError(
            f"{path}: no such file; a folder of ours has one. For images and mask folders without it, "
            "see data=plain in docs/data.md."
        )
    values = _parse(path)
    manifest = _manifest_path(root)
    text = decode_text(read_file(manifest, MAX_TEXT_BYTES), str(manifest))
    classes = check_classes(values["classes"], f"{path}: ")
    if "checksum" in values and values["checksum"] != checksum(classes, text):
        raise DataError(
            f"{manifest}: has changed since it was written (checksum {checksum(classes, text)}, {DESCRIPTION} says "
            f'{values["checksum"]}). If you edited it on purpose, remove "checksum" from {path}; else restore it.',
            "damaged",
        )
    return classes, PARSERS[manifest.suffix[1:]](text, str(manifest))


def write_description(root: Path, classes: tuple[str, ...], entries: Sequence[Entry], manifest: str) -> None:
    """Write the manifest as "jsonl" or "csv", and dataset.json with its checksum."""
    text = FORMATTERS[manifest](entries)
    values = {"version": VERSION, "classes": list(classes), "checksum": checksum(classes, text)}
    (root / f"manifest.{manifest}").write_bytes(text.encode())
    (root / DESCRIPTION).write_text(json.dumps(values, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def checksum(classes: tuple[str, ...], text: str) -> str:
    """Return crc32 over the classes and the manifest's text, as 8 hexadecimal digits."""
    return f"{zlib.crc32(json.dumps([classes, text]).encode()):08x}"


def decode_text(data: bytes, name: str) -> str:
    """Return UTF-8 text."""
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise DataError(f"{name}: Expected UTF-8 but got {error}; save it as UTF-8.", "manifest") from None


def parse_object(data: bytes, name: str) -> dict[str, Any]:
    """Return the JSON object in `data`."""
    try:
        values = json.loads(decode_text(data, name))
    except (ValueError, RecursionError, MemoryError) as error:
        said = error if str(error) else type(error).__name__
        raise DataError(f"{name}: Expected a JSON object but got {said}; correct the file.", "manifest") from None
    if not isinstance(values, dict):
        raise DataError(f"{name}: Expected a JSON object but got {type(values).__name__}.", "manifest")
    return values


def check_version(found: object, expected: int, name: str, mend: str) -> None:
    """Raise if a file is of another version than this program reads."""
    if found != expected or isinstance(found, bool):
        raise DataError(f"{name}: Expected version {expected} but got {found!r}; {mend}", "version")


def _parse(path: Path) -> dict[str, Any]:
    values = parse_object(read_file(path, MAX_DESCRIPTION_BYTES), str(path))
    check_version(values.get("version", VERSION), VERSION, str(path), "write the folder again with this program.")
    if (unknown := sorted(values.keys() - KEYS)) or not isinstance(values.get("classes"), list):
        raise DataError(
            f'{path}: Expected a list "classes" and at most {sorted(KEYS)} but got {unknown or values.get("classes")}.',
            "manifest",
        )
    return values


def _manifest_path(root: Path) -> Path:
    found = [path for suffix in PARSERS if exists(path := root / f"manifest.{suffix}")]
    if len(found) != 1:
        got = "both" if found else "neither"
        raise DataError(f"{root}: Expected manifest.jsonl or manifest.csv but got {got}; keep one.", "manifest")
    return found[0]

"""A data set as a folder: images/, masks/NAME/, gold/, dataset.json and a manifest."""

import json
import os
import shutil
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from segdpo.data.formats.manifest import Entry, NamedPair, check_entry, format_csv, format_jsonl, parse_csv, parse_jsonl
from segdpo.data.images import (
    ImageFile,
    ValueRange,
    check_value_range,
    decode_image,
    eight_bit_file,
    encode_image,
    encode_mask,
)
from segdpo.data.mask_files.decode import MaskFormat, decode_mask
from segdpo.data.record import Image, Pair, Record, RecordInfo, RecordSource, check_classes, check_record
from segdpo.data.sources import Progress, records_with_files
from segdpo.files import MAX_TEXT_BYTES, DataError, decode_text, exists, parse_json, path_inside, raise_all, read_file
from segdpo.masks import Mask, Masks

VERSION = 1
DESCRIPTION = "dataset.json"
PARSERS = {"jsonl": parse_jsonl, "csv": parse_csv}
FORMATTERS = {"jsonl": format_jsonl, "csv": format_csv}
MAX_DESCRIPTION_BYTES = 2**24
KEYS = {"version", "classes", "checksum"}
ManifestKind = Literal["jsonl", "csv"]


class FolderDataset:
    """The records of a folder in the manifest's order; `folder[i]` reads image i and its masks.

    Args:
        root: the folder, written by `write_folder` or by hand.
        channels: 3 repeats the channel of grey images to RGB, 1 converts to grey, None leaves images as stored.
        value_range: (low, high) of 16-bit and float images, which become 0 and 255; see `decode_image`.
    """

    def __init__(self, root: str | Path, channels: int | None = 3, value_range: ValueRange | None = None):
        self.root, self.channels = Path(root), channels
        self.value_range = None if value_range is None else check_value_range(value_range)
        self.classes, entries = _read_description(self.root)
        found = _masks_found(self.root) if any(entry.masks is None for entry in entries) else {}
        self.entries = tuple(entries)
        self.mask_names = tuple(
            tuple(found.get(entry.id, ())) if entry.masks is None else entry.masks for entry in entries
        )
        raise_all([error for index in range(len(entries)) if (error := self._unknown_mask(index))])

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> Record:
        entry, names = self.entries[index], self.mask_names[index]
        number = {name: k for k, name in enumerate(names)}
        path = self.root / self._image_path(entry)
        image = decode_image(read_file(path), str(path), self.channels, self.value_range)
        masks, gold = self._read_masks(entry, names, image)
        return Record(
            id=entry.id,
            image=image,
            masks=masks,
            mask_names=names,
            pairs=tuple(Pair(number[p.chosen], number[p.rejected], p.weight) for p in entry.pairs),
            ranking=tuple(number[name] for name in entry.ranking),
            gold=gold,
            group=entry.group,
            split=entry.split,
            meta=dict(entry.meta),
        )

    def describe(self, index: int) -> RecordInfo:
        """Return what the manifest says of a record, without opening its image."""
        entry = self.entries[index]
        pairs, ranking = len(entry.pairs), len(entry.ranking)
        return RecordInfo(entry.id, entry.group, entry.split, pairs, ranking, self._has_gold(entry))

    def image_file(self, index: int) -> ImageFile:
        """Return the image's file as it lies on disk; of 16-bit and float images, a PNG by the value range."""
        return eight_bit_file(self.root / self._image_path(self.entries[index]), self.value_range)

    def _read_masks(self, entry: Entry, names: tuple[str, ...], image: Image) -> tuple[Masks, Mask | None]:
        paths = [self.root / "masks" / name / f"{entry.id}.png" for name in names]
        gold, has_gold = self._gold_path(entry), self._has_gold(entry)
        files = [(path, MaskFormat()) for path in paths + [gold] * has_gold]
        masks = read_masks(files, image, self.classes)
        return masks[: len(names)], masks[-1] if has_gold else None

    def _has_gold(self, entry: Entry) -> bool:
        return exists(self._gold_path(entry)) if entry.gold is None else entry.gold

    def _gold_path(self, entry: Entry) -> Path:
        return self.root / "gold" / f"{entry.id}.png"

    def _image_path(self, entry: Entry) -> Path:
        return Path("images", entry.id + entry.suffix)

    def _unknown_mask(self, index: int) -> DataError | None:
        entry, names = self.entries[index], self.mask_names[index]
        named = {*entry.ranking, *(name for pair in entry.pairs for name in (pair.chosen, pair.rejected))}
        if unknown := sorted(named.difference(names)):
            message = f"id {entry.id!r}: Expected preferences between {list(names)} but got {', '.join(unknown)}"
            return DataError(f"{self.root}: {message}; add masks/{unknown[0]}/{entry.id}.png.", "preference")
        return None


def is_our_folder(root: Path) -> bool:
    """Return whether there is a dataset.json of ours, and not one of nnU-Net."""
    path = root / DESCRIPTION
    if not exists(path) or any(exists(root / f"manifest.{suffix}") for suffix in PARSERS):
        return exists(path)
    return "labels" not in parse_object(read_file(path, MAX_DESCRIPTION_BYTES), str(path))


def write_folder(
    root: str | Path,
    records: RecordSource | Iterable[Record],
    classes: Iterable[str],
    manifest: ManifestKind = "jsonl",
    progress: Progress = iter,
) -> None:
    """Write records as a folder that FolderDataset reads.

    The folder is made beside `root` and renamed at the end, so a killed run leaves no half of a data set.

    Args:
        root: must not exist yet, or be empty.
        records: images are copied byte for byte from a source that has their files; others are written as PNG.
        classes: names of the classes, in the order of their ids.
        manifest: "jsonl" or "csv".
        progress: wraps the loop over the records to show progress.
    """
    root, names = Path(root), check_classes(tuple(classes))
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise DataError(f"{root}: Expected nothing there, or an empty folder; remove it or write to another path.")
    partial = root.absolute().with_name(f".{root.absolute().name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    (partial / "images").mkdir(parents=True)
    entries = [_write_record(partial, record, file, names) for record, file in records_with_files(records, progress)]
    if len({entry.id for entry in entries}) < len(entries):
        raise DataError("Expected each id once but one comes twice, with images of two suffixes.", "id")
    text = FORMATTERS[manifest](entries)
    values = {"version": VERSION, "classes": list(names), "checksum": checksum(names, text)}
    _write(partial / f"manifest.{manifest}", text.encode())
    _write(partial / DESCRIPTION, (json.dumps(values, ensure_ascii=False, indent=1) + "\n").encode())
    os.replace(partial, root)


def checksum(classes: tuple[str, ...], text: str) -> str:
    """Return crc32 over the classes and the manifest's text, as 8 hexadecimal digits."""
    return f"{zlib.crc32(json.dumps([classes, text]).encode()):08x}"


def entry_of(record: Record, suffix: str) -> Entry:
    """Return the manifest's entry of a record whose image's file has this suffix."""
    names = record.mask_names
    return Entry(
        id=record.id,
        suffix=suffix,
        masks=names,
        gold=record.gold is not None,
        pairs=tuple(NamedPair(names[p.chosen], names[p.rejected], float(p.weight)) for p in record.pairs),
        ranking=tuple(names[k] for k in record.ranking),
        group=record.group,
        split=record.split,
        meta=dict(record.meta),
    )


def read_masks(files: Sequence[tuple[Path, MaskFormat]], image: Image, classes: tuple[str, ...]) -> Masks:
    """Return the masks of an image as uint8 [K, H, W]; everything that is wrong with them comes as one error.

    Args:
        files: the file of each mask, and how it becomes class ids.
        image: the masks' image; they must have its size.
        classes: names of the classes; each pixel must be below their number, or 255.
    """
    height, width = image.shape[:2]
    masks: Masks = np.zeros((len(files), height, width), dtype=np.uint8)
    errors = []
    for k, (path, mask_format) in enumerate(files):
        try:
            masks[k] = decode_mask(read_file(path), str(path), mask_format, (height, width), classes)
        except DataError as error:
            errors.append(error)
    raise_all(errors)
    return masks


def parse_object(data: bytes, name: str) -> dict[str, Any]:
    """Return the JSON object in `data`."""
    values = parse_json(data, name)
    if not isinstance(values, dict):
        raise DataError(f"{name}: Expected a JSON object but got {type(values).__name__}.", "manifest")
    return values


def check_version(found: object, expected: int, name: str, fix: str) -> None:
    """Raise if a file is of another version than this program reads."""
    if found != expected or isinstance(found, bool):
        raise DataError(f"{name}: Expected version {expected} but got {found!r}; {fix}", "version")


def _read_description(root: Path) -> tuple[tuple[str, ...], list[Entry]]:
    """Return the classes and the manifest's entries of a folder."""
    path = root / DESCRIPTION
    if not exists(path):
        raise DataError(
            f"{path}: no such file; for images and mask folders without it, see data=plain in docs/own_data.md."
        )
    values = parse_object(read_file(path, MAX_DESCRIPTION_BYTES), str(path))
    check_version(values.get("version", VERSION), VERSION, str(path), "write the folder again with this program.")
    if (unknown := sorted(values.keys() - KEYS)) or not isinstance(values.get("classes"), list):
        raise DataError(
            f'{path}: Expected a list "classes" and at most {sorted(KEYS)} but got {unknown or values.get("classes")}.',
            "manifest",
        )
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


def _manifest_path(root: Path) -> Path:
    found = [path for suffix in PARSERS if exists(path := root / f"manifest.{suffix}")]
    if len(found) != 1:
        got = "both" if found else "neither"
        raise DataError(f"{root}: Expected manifest.jsonl or manifest.csv but got {got}; keep one.", "manifest")
    return found[0]


def _masks_found(root: Path) -> dict[str, list[str]]:
    """Return the mask names of each id, in the order of the folders' names."""
    found: dict[str, list[str]] = {}
    for folder in sorted(path for path in (root / "masks").glob("*") if path.is_dir()):
        for path in folder.rglob("*.png"):
            found.setdefault(path.relative_to(folder).as_posix().removesuffix(".png"), []).append(folder.name)
    return found


def _write_record(root: Path, record: Record, file: ImageFile | None, classes: tuple[str, ...]) -> Entry:
    check_record(record, classes)
    file = file or encode_image(record.image)
    # Whatever is wrong with the record is found before the first of its files is written.
    entry = check_entry(entry_of(record, file.suffix))
    _write(path_inside(root, "images", f"{record.id}{file.suffix}"), file.data)
    for name, mask in zip(record.mask_names, record.masks, strict=True):
        _write(path_inside(root, "masks", name, f"{record.id}.png"), encode_mask(np.ascontiguousarray(mask)))
    if record.gold is not None:
        _write(path_inside(root, "gold", f"{record.id}.png"), encode_mask(np.ascontiguousarray(record.gold)))
    return entry


def _write(path: Path, data: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # "x": two ids that the file system takes for one (a and A on some) must not overwrite each other.
        with path.open("xb") as file:
            file.write(data)
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror}); is the id there twice, or too long?") from None

"""Folders as they are found: images/, mask folders with the same file names, perhaps an index.csv; no dataset.json.

Nothing is written to such a folder. conf/data/{plain,bubil,camvid,dsb2018}.yaml show how each is read.
"""

import csv
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from segdpo.data.formats.folder import read_masks
from segdpo.data.images import SUFFIXES, ImageFile, decode_image
from segdpo.data.mask_files import MaskFormat
from segdpo.data.record import Pair, Record, RecordInfo, check_classes, check_id, check_mask_name, check_split
from segdpo.files import MAX_TEXT_BYTES, DataError, decode_text, exists, read_file

IDENTICAL = "identical pairs skipped"


class PlainFolder:
    """The records of a folder: <images>/ID.png and, for each mask, <its folder>/ID.png.

    A mask whose file is missing is a mask that the image does not have.

    Args:
        root: the folder.
        classes: names of the classes, in the order of their ids.
        masks: name of each candidate mask and its folder in `root`.
        gold: folder of the gold masks.
        images: folder of the images, of any suffix that is supported.
        index: CSV file with a column `id`, one row an image; its other columns become the record's meta. None: every
            image in the folder.
        values: which class ids the numbers in the mask files stand for: {255: 1} for masks of 0 and 255, {11: 255} if
            11 means unlabelled. 1-bit masks read as 0 and 1.
        group: column of the index that names the group.
        group_pattern: regular expression on the id: ids with the same text in its brackets are one group; an id that
            it does not match is a group of its own.
        split: column of the index that names the split.
        pairs: [chosen, rejected] mask names that hold for all images. If the two masks of an image are identical, the
            pair is skipped and named in meta["identical pairs skipped"].
        channels: 3 repeats the channel of grey images to RGB, 1 converts to grey, None leaves images as stored.
    """

    def __init__(
        self,
        root: str | Path,
        classes: Sequence[str],
        masks: Mapping[str, str] | None = None,
        gold: str | None = None,
        *,
        images: str = "images",
        index: str | None = "index.csv",
        values: Mapping[int, int] | None = None,
        group: str | None = None,
        group_pattern: str | None = None,
        split: str | None = None,
        pairs: Sequence[Sequence[str]] = (),
        channels: int | None = 3,
    ):
        self.root, self.classes, self.channels = Path(root), check_classes(tuple(classes)), channels
        self._images, self._gold, self._group, self._split = images, gold, group, split
        self._masks = {check_mask_name(name): folder for name, folder in (masks or {}).items()}
        self._format = MaskFormat(values=values or {})
        self._pattern = re.compile(group_pattern) if group_pattern else None
        self._pairs = _check_pairs(pairs, self._masks)
        for folder in (images, *self._masks.values(), *([gold] if gold else [])):
            if not (self.root / folder).is_dir():
                raise DataError(f"{self.root / folder}: no such folder; see `root`, `images`, `masks` and `gold`.")
        files = _image_files(self.root / images)
        self._rows = {name: {} for name in files} if index is None else _read_index(self.root / index)
        self._check_columns(index)
        if missing := sorted(self._rows.keys() - files.keys()):
            raise DataError(f"{self.root / images}: Expected an image for {missing[0]!r} ({len(missing)} are missing).")
        self._ids = tuple(self._rows)
        self._files = tuple(files[name] for name in self._ids)

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, index: int) -> Record:
        info = self.describe(index)
        path = self._files[index]
        image = decode_image(read_file(path), str(path), self.channels)
        files = {name: self.root / folder / f"{info.id}.png" for name, folder in self._masks.items()}
        names = tuple(name for name, file in files.items() if exists(file))
        golds = [self.root / self._gold / f"{info.id}.png"] if self._gold else []
        stack = read_masks(
            [(file, self._format) for file in (*map(files.get, names), *golds) if file], image, self.classes
        )
        masks, gold = stack[: len(names)], stack[-1] if golds else None
        wanted = [(a, b) for a, b in self._pairs if a in names and b in names]
        same = [(a, b) for a, b in wanted if np.array_equal(masks[names.index(a)], masks[names.index(b)])]
        skipped = {IDENTICAL: ", ".join(f"{a} > {b}" for a, b in same)} if same else {}
        return Record(
            id=info.id,
            image=image,
            masks=masks,
            mask_names=names,
            pairs=tuple(Pair(names.index(a), names.index(b)) for a, b in wanted if (a, b) not in same),
            gold=gold,
            group=info.group,
            split=info.split,
            meta={**self._rows[info.id], **skipped},
        )

    def describe(self, index: int) -> RecordInfo:
        """Return id, group and split of a record; its pairs are counted only where no rule makes any."""
        name = self._ids[index]
        row = self._rows[name]
        split = check_split(row[self._split], f"{self.root}, id {name!r}: ") if self._split else ""
        return RecordInfo(name, self._group_of(name, row), split, None if self._pairs else 0, 0)

    def image_file(self, index: int) -> ImageFile:
        """Return the image's file as it lies on disk."""
        path = self._files[index]
        return ImageFile(path.suffix, read_file(path))

    def _group_of(self, name: str, row: Mapping[str, str]) -> str:
        if self._group:
            return row[self._group]
        match = self._pattern.search(name) if self._pattern else None
        return "".join(text or "" for text in match.groups()) if match else name if self._pattern else ""

    def _check_columns(self, index: str | None) -> None:
        for column in (self._group, self._split):
            if column and any(column not in row for row in self._rows.values()):
                raise DataError(f"{self.root / (index or '')}: Expected a column {column!r}.", "manifest")


def _read_index(path: Path) -> dict[str, dict[str, str]]:
    """Return the other columns of each id."""
    text = decode_text(read_file(path, MAX_TEXT_BYTES), str(path))
    reader = csv.DictReader(text.removeprefix("\ufeff").splitlines())
    try:
        return _rows_of(reader, path)
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num}: Expected CSV but got {error}.", "manifest") from None


def _rows_of(reader: "csv.DictReader[str]", path: Path) -> dict[str, dict[str, str]]:
    rows: dict[str, dict[str, str]] = {}
    if "id" not in (reader.fieldnames or ()):
        raise DataError(f"{path}: Expected a column 'id' but got {reader.fieldnames}.", "manifest")
    for row in reader:
        where = f"{path}, line {reader.line_num}: "
        if None in row or None in row.values():
            raise DataError(f"{where}Expected {len(reader.fieldnames or ())} cells.", "manifest")
        name = check_id(row.pop("id"), where)
        if name in rows:
            raise DataError(f"{where}Expected each id once but got {name!r} twice.", "manifest")
        rows[name] = row
    return rows


def _image_files(folder: Path) -> dict[str, Path]:
    """Return the image of each id."""
    files: dict[str, Path] = {}
    for path in sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES):
        name = path.relative_to(folder).with_suffix("").as_posix()
        if name in files:
            raise DataError(f"{path}: Expected one image an id but {files[name].name} has it too; remove one.", "id")
        files[name] = path
    return files


def _check_pairs(pairs: Sequence[Sequence[str]], masks: Mapping[str, str]) -> list[tuple[str, str]]:
    for pair in pairs:
        if len(pair) != 2 or pair[0] == pair[1] or not set(pair) <= masks.keys():
            raise DataError(f"Expected pairs [chosen, rejected] of {list(masks)} but got {list(pair)}.", "preference")
    return [(pair[0], pair[1]) for pair in pairs]

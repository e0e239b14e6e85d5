"""Folders as they are found: images, and mask files that have the images' names or a part of them; no dataset.json.

Nothing is written to such a folder. `guess` finds the options; conf/data/{plain,bubil,camvid,dsb2018}.yaml show them.
"""

import csv
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from segdpo.data.formats.file_patterns import MASK_SUFFIXES, SPLIT_NAMES, FilePattern, names_classes
from segdpo.data.images import SUFFIXES, ImageFile, decode_image, eight_bit_file
from segdpo.data.mask_files.annotations import AnnotationFile, names_of_images, read_annotations
from segdpo.data.mask_files.decode import MaskFormat, decode_levels, decode_mask
from segdpo.data.record import (
    Candidates,
    Pair,
    Record,
    RecordInfo,
    check_classes,
    check_id,
    check_mask_name,
    check_split,
)
from segdpo.files import MAX_TEXT_BYTES, DataError, decode_text, raise_all, read_file

IDENTICAL = "identical pairs skipped"
FOLDER = "folder"


class PlainFolder:
    """The records of a folder: images, and for each of them the masks that are there.

    `images`, `gold` and the folders of `masks` are patterns: `masks` is a folder whose files have the names of the
    images; `*` is the id of the image and `**` folders that belong to it, as in `*_mask.png`, `masks/*-seg`,
    `**/*_mask`, `*/images/*`. The suffix may be left out.

    Args:
        root: the folder.
        classes: names of the classes, in the order of their ids.
        masks: name of each annotator (or other source of candidates) and the pattern of the masks.
        gold: pattern of the gold masks. None: there are none. A .json of COCO or Label Studio has those of many images;
            `export.json#annotator 3` are those of one annotator.
        images: pattern of the images.
        index: CSV file with a column `id`, one row an image; its other columns become the record's meta. None: every
            image in the folder.
        values: which class ids the numbers in the mask files stand for: {255: 1} for masks of 0 and 255, {11: 255} if
            11 means unlabelled. Short for `mask_format`.
        mask_format: how the mask files become class ids. None: they store class ids.
        candidates_format: the same for the candidates, where they differ from gold.
        group: column of the index that names the group; "folder": the folders of the id.
        group_pattern: regular expression on the id: ids with the same text in its brackets are one group; an id that
            it does not match is a group of its own.
        split: column of the index that names the split; "folder": the first folder of the id.
        pairs: [chosen, rejected] mask names that hold for all images. If the two masks of an image are identical, the
            pair is skipped and named in meta["identical pairs skipped"].
        channels: 3 repeats the channel of grey images to RGB, 1 converts to grey, None leaves images as stored.
        value_range: (low, high) of 16-bit and float images, which become 0 and 255.

    Attributes:
        extra_files: masks of no image.
        other_files: files among the images that are neither images nor masks.
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
        mask_format: MaskFormat | Mapping[str, Any] | None = None,
        candidates_format: MaskFormat | Mapping[str, Any] | None = None,
        group: str | None = None,
        group_pattern: str | None = None,
        split: str | None = None,
        pairs: Sequence[Sequence[str]] = (),
        channels: int | None = 3,
        value_range: Sequence[float] | None = None,
    ):
        self.root, self.classes, self.channels = Path(root), check_classes(tuple(classes)), channels
        self.value_range = None if value_range is None else tuple(value_range)
        self._group, self._split = group, split
        self._pattern = re.compile(group_pattern) if group_pattern else None
        gold_format = _format(mask_format) or MaskFormat(values=values or {})
        open_masks = partial(MaskSet.open, self.root, read=cache(read_annotations))
        self._gold = open_masks(gold, gold_format) if gold else MaskSet(self.root, {}, gold_format)
        self._masks = {
            check_mask_name(name): open_masks(text, _format(candidates_format) or gold_format)
            for name, text in (masks or {}).items()
        }
        self._pairs = _check_pairs(pairs, self._masks)
        files, self.other_files = _image_files(self.root, images, [*self._masks.values(), self._gold])
        self._gold = self._gold.of_images(files)
        self._masks = {name: masks.of_images(files) for name, masks in self._masks.items()}
        self._rows = {name: {} for name in files} if index is None else read_index(self.root / index)
        self._check_columns(index)
        if not files:
            raise DataError(f"{self.root / images}: Expected images but found none; correct `root` or `images`.")
        if missing := sorted(self._rows.keys() - files.keys()):
            raise DataError(f"{self.root / images}: Expected an image for {missing[0]!r} ({len(missing)} are missing).")
        self.extra_files = tuple(
            sorted({where for one in (*self._masks.values(), self._gold) for where in one.without_image(files)})
        )
        self._ids = tuple(self._rows)
        self._files = tuple(files[name] for name in self._ids)

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, index: int) -> Record:
        info = self.describe(index)
        path = self.image_path(index)
        image = decode_image(read_file(path), str(path), self.channels, self.value_range)
        names, masks, gold = self._read_masks(info.id, (image.shape[0], image.shape[1]))
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
        """Return id, group, split and whether there is gold; pairs are counted only where no rule makes any."""
        name = self._ids[index]
        row, where = self._rows[name], f"{self.root}, id {name!r}: "
        split = name.split("/")[0].lower() if self._split == FOLDER else row[self._split] if self._split else ""
        split = check_split(SPLIT_NAMES.get(split, split), where)
        return RecordInfo(
            name, self._group_of(name, row), split, None if self._pairs else 0, 0, gold=name in self._gold.files
        )

    def image_file(self, index: int) -> ImageFile:
        """Return the image's file as it lies on disk; one of 16 bits or of floats as a PNG of 8 bits."""
        return eight_bit_file(self.image_path(index), self.value_range)

    def image_path(self, index: int) -> Path:
        """Return the path of the image's file."""
        return self.root / self._files[index]

    def masks_of(self, index: int) -> tuple[str, ...]:
        """Return the names of the candidates of an image, by its files alone."""
        return tuple(name for name, masks in self._masks.items() if self._ids[index] in masks.files)

    def _read_masks(self, name: str, size: tuple[int, int]) -> tuple[tuple[str, ...], np.ndarray, np.ndarray | None]:
        """Return names, candidates and gold of an image; all that is wrong with them comes as one error."""
        errors: list[DataError] = []
        names: list[str] = []
        found: list[np.ndarray] = []
        for label, masks in [*self._masks.items(), ("", self._gold)]:
            if name not in masks.files:
                continue
            try:
                one = masks.read(name, size, self.classes, levels=bool(label))
                names += [f"{label}-{variant}" if variant else label for variant in one.names]
                found += list(one.masks)
            except DataError as error:
                errors.append(error)
        raise_all(errors)
        gold = found.pop() if name in self._gold.files and names.pop() == "" else None
        stacked = np.empty((len(found), *size), np.uint8)
        for place in reversed(range(len(found))):
            stacked[place] = found.pop()  # which frees it: masks of large images take many bytes
        return tuple(names), stacked, gold

    def _group_of(self, name: str, row: Mapping[str, str]) -> str:
        if self._group == FOLDER:
            return "/".join(name.split("/")[1 if self._split == FOLDER else 0 : -1])
        if self._group:
            return row[self._group]
        match = self._pattern.search(name) if self._pattern else None
        return "".join(text or "" for text in match.groups()) if match else name if self._pattern else ""

    def _check_columns(self, index: str | None) -> None:
        for column in (self._group, self._split):
            if column and column != FOLDER and any(column not in row for row in self._rows.values()):
                raise DataError(f"{self.root / (index or '')}: Expected a column {column!r}.", "manifest")


@dataclass(frozen=True, eq=False)
class MaskSet:
    """Masks of one kind: the file of each image in the folder `root`, or what a .json has of it."""

    root: Path
    files: Mapping[str, str | bytes]
    mask_format: MaskFormat
    where: str = ""

    @classmethod
    def open(
        cls, root: Path, text: str, mask_format: MaskFormat, read: Callable[[Path], AnnotationFile] = read_annotations
    ) -> "MaskSet":
        """Return the masks that a pattern names; `read` opens a .json with the masks of many images."""
        file, _, maker = text.partition("#")
        if file.lower().endswith(".json") and "*" not in file:
            return cls(root, read(root / file).of(maker, str(root / file)), mask_format, str(root / file))
        suffixes = (".json",) if text.lower().endswith(".json") else MASK_SUFFIXES
        found = FilePattern(text, suffixes).find(root)
        return cls(root, {name: path for name, path in found.items() if not names_classes(path)}, mask_format)

    def of_images(self, images: Iterable[str]) -> "MaskSet":
        """Return the masks by the ids of the images, which one file for all images may name otherwise."""
        documents = {name: file for name, file in self.files.items() if isinstance(file, bytes)}
        return replace(self, files=names_of_images(documents, images)) if documents else self

    def read(self, name: str, size: tuple[int, int], classes: tuple[str, ...], *, levels: bool) -> Candidates:
        """Return the mask of an image; a probability map as one mask a level if `levels`."""
        file = self.files[name]
        data = file if isinstance(file, bytes) else read_file(self.root / file)
        where = f"{self.where}, image {name!r}" if isinstance(file, bytes) else str(self.root / file)
        if levels and self.mask_format.kind == "probabilities":
            return decode_levels(data, where, self.mask_format, size, classes)
        return Candidates(decode_mask(data, where, self.mask_format, size, classes)[None], ("",))

    def without_image(self, images: Mapping[str, str]) -> list[str]:
        """Return the masks that no image belongs to."""
        lost = [(name, file) for name, file in self.files.items() if name not in images]
        return [f"{self.where}: {name}" if isinstance(file, bytes) else str(self.root / file) for name, file in lost]


def _format(value: MaskFormat | Mapping[str, Any] | None) -> MaskFormat | None:
    """Return a format that may be given by its options."""
    return MaskFormat(**value) if isinstance(value, Mapping) else value


def read_index(path: Path) -> dict[str, dict[str, str]]:
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


def _image_files(root: Path, text: str, masks: Sequence[MaskSet]) -> tuple[dict[str, str], tuple[str, ...]]:
    """Return the image of each id, and the files among them that are nothing of this data set."""
    pattern = FilePattern(text, SUFFIXES)
    taken = {file for one in masks for file in one.files.values() if not isinstance(file, bytes)}
    files = [path for path in pattern.list(root) if path not in taken]
    found = pattern.ids(files)
    # Pictures are what people put beside their folder of images; in that folder, everything should be one.
    rest = set(files).difference(found.values()) if pattern.folder else set()
    return found, tuple(sorted(str(root / path) for path in rest if not names_classes(path)))


def _check_pairs(pairs: Sequence[Sequence[str]], masks: Mapping[str, object]) -> list[tuple[str, str]]:
    for pair in pairs:
        if len(pair) != 2 or pair[0] == pair[1] or not set(pair) <= masks.keys():
            raise DataError(f"Expected pairs [chosen, rejected] of {list(masks)} but got {list(pair)}.", "preference")
    return [(pair[0], pair[1]) for pair in pairs]

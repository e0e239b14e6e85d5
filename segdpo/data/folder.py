"""A data set as a folder that anyone can open and mend by hand.

dataset.json            {"classes": ["background", "object"], "version": 1}
manifest.jsonl          one line an image: {"id": "a 1", "pairs": [{"chosen": "anna", "rejected": "ben"}]}
images/a 1.png
masks/anna/a 1.png      8-bit grey, one class id a pixel, 255 = ignore
masks/ben/a 1.png
gold/a 1.png            where the truth is known
"""

from functools import cached_property
from pathlib import Path

import numpy as np

from segdpo.data.errors import DataError, raise_all
from segdpo.data.files import exists, read_file
from segdpo.data.folder_description import read_description
from segdpo.data.folder_writer import write_folder
from segdpo.data.image_files import ImageFile, decode_image, decode_mask
from segdpo.data.manifest import Entry
from segdpo.data.pair_table import PairTable
from segdpo.data.record_check import check_mask
from segdpo.data.record_source import RecordInfo
from segdpo.pairs.record import Image, Mask, Masks, Pair, Record

__all__ = ["FolderDataset", "read_folder", "write_folder"]


class FolderDataset:
    """The records of a folder in the manifest's order; `folder[i]` reads image i and its masks.

    `channels`: 3 replicates grey images to RGB, 1 makes grey, None leaves images as stored.
    """

    def __init__(self, root: str | Path, channels: int | None = 3):
        self.root, self.channels = Path(root), channels
        self.classes, entries = read_description(self.root)
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
        image = decode_image(self.image_file(index).data, f"{self.root / self._image_path(entry)}", self.channels)
        masks, gold = self._read_masks(entry, names, image)
        return Record(
            id=entry.id,
            image=image,
            masks=masks,
            mask_names=names,
            pairs=self.pairs_of(index),
            ranking=tuple(names.index(name) for name in entry.ranking),
            gold=gold,
            group=entry.group,
            split=entry.split,
            meta=dict(entry.meta),
        )

    def describe(self, index: int) -> RecordInfo:
        """Return what the manifest says of a record, without opening its image."""
        entry = self.entries[index]
        return RecordInfo(entry.id, entry.group, entry.split, len(entry.pairs), len(entry.ranking))

    def image_file(self, index: int) -> ImageFile:
        """Return the image's file as it lies on disk."""
        path = self._image_path(self.entries[index])
        return ImageFile(path.suffix, read_file(self.root / path))

    def pairs_of(self, index: int) -> tuple[Pair, ...]:
        """Return the pairs of a record, masks by number, from the manifest alone."""
        number = {name: k for k, name in enumerate(self.mask_names[index])}
        return tuple(Pair(number[p.chosen], number[p.rejected], p.weight) for p in self.entries[index].pairs)

    @cached_property
    def pairs(self) -> PairTable:
        """All pairs as arrays; made from the manifest without reading an image."""
        return PairTable.from_records(self.pairs_of(index) for index in range(len(self)))

    def _read_masks(self, entry: Entry, names: tuple[str, ...], image: Image) -> tuple[Masks, Mask | None]:
        paths = [self.root / "masks" / name / f"{entry.id}.png" for name in names]
        gold = self.root / "gold" / f"{entry.id}.png"
        has_gold = exists(gold) if entry.gold is None else entry.gold
        masks = read_masks(paths + [gold] * has_gold, image, self.classes)
        return masks[: len(names)], masks[-1] if has_gold else None

    def _image_path(self, entry: Entry) -> Path:
        return Path("images", entry.id + entry.suffix)

    def _unknown_mask(self, index: int) -> DataError | None:
        entry, names = self.entries[index], self.mask_names[index]
        named = {*entry.ranking, *(name for pair in entry.pairs for name in (pair.chosen, pair.rejected))}
        if unknown := sorted(named.difference(names)):
            message = f"id {entry.id!r}: Expected preferences between {list(names)} but got {', '.join(unknown)}"
            return DataError(f"{self.root}: {message}; add masks/{unknown[0]}/{entry.id}.png.", "preference")
        return None


def read_folder(root: str | Path, channels: int | None = 3) -> FolderDataset:
    """Return the data set in a folder that `write_folder` or a person made."""
    return FolderDataset(root, channels)


def read_masks(paths: list[Path], image: Image, classes: tuple[str, ...]) -> Masks:
    """Return the masks in `paths` as uint8 [K, H, W]; everything that is wrong with them comes as one error."""
    return stack_masks([(path, {}) for path in paths], image, classes)


def stack_masks(files: list[tuple[Path, dict[int, int]]], image: Image, classes: tuple[str, ...]) -> Masks:
    """Return the masks as uint8 [K, H, W], each with its values mapped (file's value → class id) before the check."""
    size = image.shape[:2]
    masks: Masks = np.zeros((len(files), *size), dtype=np.uint8)
    errors = []
    for k, (path, values) in enumerate(files):
        try:
            mask = decode_mask(read_file(path), str(path))
            if values:
                table = np.arange(256, dtype=np.uint8)
                table[list(values)] = list(values.values())
                mask = table[mask]
            masks[k] = check_mask(mask, size, classes, f"{path}: ")
        except DataError as error:
            errors.append(error)
    raise_all(errors)
    return masks


def _masks_found(root: Path) -> dict[str, list[str]]:
    """Return the mask names of each id, in the order of the folders' names."""
    found: dict[str, list[str]] = {}
    for folder in sorted(path for path in (root / "masks").glob("*") if path.is_dir()):
        for path in folder.rglob("*.png"):
            found.setdefault(path.relative_to(folder).as_posix().removesuffix(".png"), []).append(folder.name)
    return found

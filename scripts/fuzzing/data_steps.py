"""What the tools do with a data set: read it, check it, write it in another format."""

import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np

from segdpo.data import (
    MaskFormat,
    PackDataset,
    PlainFolder,
    RecordSource,
    check_source,
    decode_image,
    decode_levels,
    decode_mask,
    decode_objects,
    describe_mask,
    eight_bit_file,
    file_of,
    info_of,
    label_studio_tasks,
    open_source,
    read_classes,
    value_range_of,
    write_coco,
    write_folder,
    write_pack,
)
from segdpo.files import read_file
from segdpo.preferences import Journal

CLASSES = ("background", "cell", "vessel")
COLORS = ((0, 0, 0), (250, 50, 83), (50, 83, 250))
SIZE = (13, 11)
SETTINGS = {"seed": 1, "rule": "best"}


def digest(*parts: object) -> str:
    """Return a short hash of everything in `parts`."""
    state = hashlib.blake2b(digest_size=8)
    for part in parts:
        content = part.tobytes() + str((part.shape, part.dtype)).encode() if isinstance(part, np.ndarray) else None
        state.update(content if content is not None else repr(part).encode())
    return state.hexdigest()


def read_source(source: RecordSource) -> str:
    """Read everything that a data set says."""
    parts: list[object] = [source.classes, len(source)]
    for index in range(len(source)):
        record, file = source[index], file_of(source, index)
        parts += [info_of(source, index), record.id, record.image, record.masks, record.mask_names, record.pairs]
        parts += [record.ranking, record.gold, record.group, record.split, record.meta]
        parts += [file.suffix, file.data] if file else []
    return digest(*parts)


def source_in(folder: Path) -> RecordSource:
    """Open the folder, or the COCO file in it, whatever kind of node that is."""
    coco = folder / "coco.json"
    return open_source(coco if os.path.lexists(coco) else folder, channels=None)


def read(folder: Path, out: Path) -> str:
    """Read the data set as training does."""
    return read_source(source_in(folder))


def read_plain(folder: Path, out: Path) -> str:
    """Read image and mask folders without a manifest of ours."""
    return read_source(PlainFolder(folder, CLASSES, {"rater 0": "masks/rater 0"}, channels=None))


def check(folder: Path, out: Path) -> str:
    """Do what `segdpo check` does."""
    check_source(source_in(folder))
    return ""


def to_pack(folder: Path, out: Path) -> str:
    """Do what `segdpo pack` does with a folder or a COCO file."""
    write_pack(out / "x.pack", source_in(folder))
    return ""


def to_folder(folder: Path, out: Path) -> str:
    """Do what `segdpo pack` does with a pack."""
    source = open_source(folder, channels=None)
    write_folder(out / "folder", source, source.classes)
    return ""


def to_coco(folder: Path, out: Path) -> str:
    """Write a pack as a COCO file."""
    source = open_source(folder, channels=None)
    write_coco(out / "coco/x.json", source, source.classes)
    return ""


def resume_pack(folder: Path, out: Path) -> str:
    """Resume a pack that an interrupted run left, from the whole one beside it."""
    (out / "x.pack").mkdir()
    for path in (folder / "begun.pack").iterdir():
        if path.is_file():
            (out / "x.pack" / path.name).write_bytes(path.read_bytes())
        else:
            (out / "x.pack" / path.name).symlink_to(path)
    write_pack(out / "x.pack", open_source(folder / "whole.pack", channels=None))
    return read_source(PackDataset(out / "x.pack", None))


def read_image(folder: Path, out: Path) -> str:
    """Read an image alone: as it is stored, as grey and as RGB."""
    return digest(*(PlainFolder(folder, CLASSES, index=None, channels=channels)[0].image for channels in (None, 1, 3)))


def read_mask(folder: Path, out: Path) -> str:
    """Read a mask beside its image."""
    return digest(PlainFolder(folder, CLASSES, {"m": "masks"}, index=None)[0].masks)


def read_deep_image(folder: Path, out: Path) -> str:
    """Read an image of more than 8 bits: as it is stored, and as grey; propose its value range; copy it."""
    path = next((folder / "images").iterdir())
    data = read_file(path)
    images = [decode_image(data, str(path), channels, (5, 60_000)) for channels in (None, 1)]
    return digest(*images, value_range_of([path]), eight_bit_file(path, (5, 60_000)).data)


def read_mask_file(folder: Path, out: Path, kind: Any = "ids") -> str:
    """Read a mask file as one mask, and as the candidates and objects that it has."""
    path = next(folder.iterdir())
    data, name = read_file(path), str(path)
    colors = dict(zip(CLASSES, COLORS, strict=True)) if kind == "colors" else {}
    how = MaskFormat(kind, colors=colors)
    parts: list[object] = [decode_mask(data, name, how, SIZE, CLASSES)]
    if kind == "probabilities":
        parts.append(decode_levels(data, name, how, SIZE, CLASSES).masks)
    elif kind not in ("ids", "colors"):
        parts += list(decode_objects(data, name, how, SIZE, CLASSES))
    if kind == "label_studio":
        parts += label_studio_tasks(data, name)
    if path.suffix in (".png", ".npy", ".npz"):
        parts.append(describe_mask(data, name))
    return digest(*parts)


def read_class_file(folder: Path, out: Path) -> str:
    """Read a file that names classes."""
    path = next(folder.iterdir())
    found = read_classes(read_file(path), str(path))
    return digest(found, found.classes, found.values)


def resume_journal(folder: Path, out: Path) -> str:
    """Open the journal of a mining run and get ready to resume."""
    # The journal writes where it lies: a link in the folder to write to, since fifos and devices cannot be copied.
    (out / "x.jsonl").symlink_to(folder / "x.mining.jsonl")
    journal = Journal(out / "x.jsonl", SETTINGS)
    said = digest(journal.selected, journal.finished, journal.summary())
    journal.resume()
    return said

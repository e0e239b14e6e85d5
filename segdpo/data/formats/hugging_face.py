"""Data sets of Hugging Face: parquet files, folders of `Dataset.save_to_disk`, and downloaded data sets of the hub.

One row a pair, in the columns of TRL: image, chosen, rejected; or one row a mask that was accepted or not: image, mask,
label. Rows of one `id` are one record. Further columns are in docs/hub.md. pyarrow reads and writes the files.
"""

import json
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from segdpo.data.formats.parquet import DISK, DISKS, SCHEMA, SPLITS, Row, Table, TableWriter, classes_in, files_of
from segdpo.data.images import (
    SUFFIXES,
    ImageFile,
    ValueRange,
    check_value_range,
    decode_image,
    encode_image,
    encode_mask,
)
from segdpo.data.mask_files.decode import MaskFormat, decode_mask
from segdpo.data.pixels import stores_numbers
from segdpo.data.record import (
    Pair,
    Record,
    RecordInfo,
    RecordSource,
    check_classes,
    check_id,
    check_mask_name,
    check_preferences,
    check_record,
    check_split,
)
from segdpo.data.sources import Progress, records_with_files
from segdpo.files import DataError, exists

KNOWN = {*SCHEMA.names, "mask", "label", "mask_name"}


class HuggingFaceDataset:
    """The records of parquet files, or of a folder that `Dataset.save_to_disk` wrote.

    Args:
        path: a .parquet file, a folder of such files, a folder of `save_to_disk`, or OWNER/NAME of the hub, downloaded
            before with `hf download OWNER/NAME --repo-type dataset`; nothing is downloaded here.
        classes: names of the classes; None: those that `write_datasets` kept in the file.
        columns: the names of columns that are called otherwise: {gold: annotation}.
        channels: 3 repeats the channel of grey images to RGB, 1 converts to grey, None leaves images as stored.
        value_range: (low, high) of 16-bit and float images, which become 0 and 255; see `decode_image`.
        mask_format: how masks become class ids; None: they are class ids.
    """

    def __init__(
        self,
        path: str | Path,
        classes: Sequence[str] | None = None,
        columns: Mapping[str, str] | None = None,
        channels: int | None = 3,
        value_range: ValueRange | None = None,
        mask_format: MaskFormat | Mapping[str, Any] | None = None,
    ):
        self.path, self.channels = Path(path), channels
        self.value_range = None if value_range is None else check_value_range(value_range)
        self.mask_format = MaskFormat(**mask_format) if isinstance(mask_format, Mapping) else mask_format
        self.columns = dict(columns or {})
        if unknown := sorted(set(self.columns) - KNOWN):
            raise DataError(f"Expected columns of {', '.join(sorted(KNOWN))} but got {', '.join(unknown)}.")
        files = files_of(_folder_of(self.path))
        self._tables = [Table(file, {name: self.columns.get(name, name) for name in KNOWN}) for file, _ in files]
        found = [(table, split) for table, (_, split) in zip(self._tables, files, strict=True)]
        self.classes = check_classes(tuple(classes or classes_in(self._tables)), f"{self.path}: ")
        self._records = _records_of(found)

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Record:
        info, places = self._records[index]
        rows = [table.row(number) for table, number in places]
        where = f"{self.path}: {info.id}"
        if any(row["image"] != rows[0]["image"] for row in rows):
            raise DataError(f"{where}: Expected one image an id but its rows have different ones; correct `id`.", "id")
        data, _ = _picture(rows[0]["image"], f"{where}: image")
        image = decode_image(data, f"{where}: image", self.channels, self.value_range)
        found = _masks_of(rows, where)
        size = (image.shape[0], image.shape[1])

        def decode(content: bytes, name: str) -> np.ndarray:
            return decode_mask(content, f"{where}: {name}", self.mask_format, size, self.classes)

        number = {name: k for k, name in enumerate(found.masks)}
        masks = [decode(data, f"mask {name!r}") for name, data in found.masks.items()]
        gold = rows[0].get("gold")
        record = Record(
            id=info.id,
            image=image,
            masks=np.stack(masks) if masks else np.empty((0, *size), np.uint8),
            mask_names=tuple(number),
            pairs=tuple(Pair(number[chosen], number[rejected], weight) for chosen, rejected, weight in found.pairs),
            ranking=tuple(_number_of(name, number, where) for name in rows[0].get("ranking") or ()),
            gold=None if gold is None else decode(_picture(gold, f"{where}: gold")[0], "gold"),
            group=info.group,
            split=info.split,
            meta=_meta_of(rows[0].get("meta"), where),
        )
        check_preferences(record, f"{where}: ")
        return record

    def describe(self, index: int) -> RecordInfo:
        """Return what the columns of text and numbers say of a record."""
        return self._records[index][0]

    def image_file(self, index: int) -> ImageFile:
        """Return the image's file as it is stored; of 16-bit and float images, a PNG by the value range."""
        info, places = self._records[index]
        table, number = places[0]
        name = f"{self.path}: {info.id}"
        data, suffix = _picture(table.row(number)["image"], name)
        if stores_numbers(data, name):
            return encode_image(decode_image(data, name, None, self.value_range))
        return ImageFile(suffix, data)


def is_hugging_face(path: Path) -> bool:
    """Return whether there is a parquet file, a folder of them, or a folder of `Dataset.save_to_disk`."""
    if path.is_dir():
        return (
            exists(path / DISK) or exists(path / DISKS) or any(path.glob("*.parquet")) or any(path.glob("*/*.parquet"))
        )
    return path.suffix == ".parquet"


def write_datasets(
    root: str | Path, records: RecordSource | Iterable[Record], classes: Iterable[str], progress: Progress = iter
) -> None:
    """Write records as train.parquet, validation.parquet and test.parquet, which `datasets.load_dataset` reads.

    One row a pair; an image without pairs is one row whose `chosen` and `rejected` are null. Images are copied byte for
    byte from a source that has their files. Records that are in no split are in train.parquet, with an empty `split`.

    Args:
        root: must not exist yet, or be an empty folder.
        records: the records.
        classes: names of the classes, in the order of their ids.
        progress: wraps the loop over the records to show progress.
    """
    root, names = Path(root).absolute(), check_classes(tuple(classes))
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise DataError(f"{root}: Expected nothing there, or an empty folder; remove it or write to another path.")
    partial = root.with_name(f".{root.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    writers = {split: TableWriter(partial / f"{name}.parquet", names) for name, split in SPLITS.items()}
    try:
        for record, file in records_with_files(records, progress):
            check_record(record, names)
            writers[record.split or "train"].add(_rows_of(record, file))
    finally:
        for writer in writers.values():
            writer.close()
    os.replace(partial, root)


def _rows_of(record: Record, file: ImageFile | None) -> list[Row]:
    image, names = file or encode_image(record.image), record.mask_names
    pictures = [
        _stored(encode_mask(np.ascontiguousarray(mask)), name) for name, mask in zip(names, record.masks, strict=True)
    ]
    paired = {k for pair in record.pairs for k in (pair.chosen, pair.rejected)}
    shared: Row = {
        "image": {"bytes": image.data, "path": f"{record.id}{image.suffix}"},
        "id": record.id,
        "gold": None if record.gold is None else _stored(encode_mask(np.ascontiguousarray(record.gold)), "gold"),
        "group": record.group,
        "split": record.split,
        "mask_names": list(names),
        "ranking": [names[k] for k in record.ranking],
        "meta": json.dumps(record.meta, ensure_ascii=False),
    }
    rows = [
        {
            **shared,
            "chosen": pictures[pair.chosen],
            "rejected": pictures[pair.rejected],
            "chosen_name": names[pair.chosen],
            "rejected_name": names[pair.rejected],
            "weight": float(pair.weight),
        }
        for pair in record.pairs
    ] or [dict(shared)]
    rows[0]["others"] = [picture for k, picture in enumerate(pictures) if k not in paired]
    return rows


def _stored(data: bytes, name: str) -> dict[str, Any]:
    return {"bytes": data, "path": f"{name}.png"}


def _folder_of(path: Path) -> Path:
    """Return the path, or where the hub's data set of that name was downloaded to."""
    if exists(path):
        return path
    try:
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(path.as_posix(), repo_type="dataset", local_files_only=True))
    except ImportError:
        reason = ""
    except (OSError, ValueError) as error:
        reason = f" ({str(error).splitlines()[0]})"
    raise DataError(
        f"{path}: no such file or folder{reason}; a data set of the hub is downloaded with `hf download OWNER/NAME "
        "--repo-type dataset`, which pip install 'segdpo[hub]' installs."
    )


def _records_of(tables: Sequence[tuple[Table, str]]) -> list[tuple[RecordInfo, list[tuple[Table, int]]]]:
    """Return what is known of each record without its images, and where its rows are."""
    places: dict[str, list[tuple[Table, int]]] = {}
    known: dict[str, list[Row]] = {}
    several = len({split for _, split in tables}) > 1
    for table, split in tables:
        if table.names["image"] not in table.present:
            got = ", ".join(sorted(table.present))
            raise DataError(f"{table.path}: Expected a column `image` but got {got}; set data.columns={{image: NAME}}.")
        front = f"{split}/{table.path.stem}" if split else table.path.stem
        has_id = table.names["id"] in table.present
        columns = (
            *map(table.column, ("id", "group", "split", "label", "ranking")),
            table.has("chosen"),
            table.has("gold"),
        )
        for number, (name, group, own, label, ranking, paired, gold) in enumerate(zip(*columns, strict=True)):
            name = name if has_id else f"{front}-{number:06d}"
            if not isinstance(name, str):
                raise DataError(f"{table.path}, row {number}: Expected an id but got {name!r}.", "id")
            places.setdefault(check_id(name), []).append((table, number))
            fact = {"group": group, "split": own, "label": label, "ranking": ranking, "paired": paired, "gold": gold}
            known.setdefault(name, []).append(fact | {"file": split if several else ""})
    return [(_info(name, known[name]), rows) for name, rows in places.items()]


def _info(name: str, rows: Sequence[Row]) -> RecordInfo:
    first = rows[0]
    split = check_split(str(first["file"] if first["split"] is None else first["split"]), f"{name}: ")
    labels = [row["label"] for row in rows]
    pairs = sum(row["paired"] for row in rows) + labels.count(True) * labels.count(False)
    return RecordInfo(name, str(first["group"] or ""), split, pairs, len(first["ranking"] or ()), bool(first["gold"]))


class _Masks:
    """The masks of a record by their names, and its pairs, collected from its rows."""

    def __init__(self, where: str) -> None:
        self.where, self.masks, self.pairs = where, dict[str, bytes](), list[tuple[str, str, float]]()
        self._names: dict[bytes, str] = {}

    def name_of(self, picture: Any, given: str | None) -> str:
        """Add a mask and return its name; masks without names are called after their first appearance."""
        data, _ = _picture(picture, f"{self.where}: mask")
        name = check_mask_name(given or self._names.setdefault(data, f"mask-{len(self._names)}"), f"{self.where}: ")
        if self.masks.setdefault(name, data) != data:
            raise DataError(f"{self.where}: Expected one mask a name but {name!r} names different ones.", "id")
        return name

    def add_pair(self, row: Row) -> None:
        """Add the pair of a row, if it has one."""
        chosen, rejected = row.get("chosen"), row.get("rejected")
        if chosen is None and rejected is None:
            return
        if chosen is None or rejected is None:
            missing = "chosen" if chosen is None else "rejected"
            raise DataError(f"{self.where}: Expected both masks of a pair but `{missing}` is empty.", "preference")
        weight = row.get("weight")
        names = self.name_of(chosen, row.get("chosen_name")), self.name_of(rejected, row.get("rejected_name"))
        self.pairs.append((*names, 1.0 if weight is None else float(weight)))

    def add_labelled(self, rows: Sequence[Row]) -> None:
        """Add masks that were accepted or not: every accepted one is preferred to every other one of its image."""
        named: dict[bool, list[str]] = {True: [], False: []}
        for row in rows:
            if row.get("mask") is not None:
                label = row.get("label")
                if label not in (True, False):
                    raise DataError(f"{self.where}: Expected a label true or false but got {label!r}.", "preference")
                named[bool(label)].append(self.name_of(row["mask"], row.get("mask_name")))
        self.pairs += [(chosen, rejected, 1.0) for chosen in named[True] for rejected in named[False]]

    def add_others(self, row: Row) -> None:
        """Add masks that are in no pair, and take the order of the names that the row gives."""
        names, others = row.get("mask_names"), row.get("others") or []
        if names is None:
            names = [*self.masks, *(f"other-{number}" for number in range(len(others)))]
        unpaired = [name for name in names if name not in self.masks]
        if len(unpaired) != len(others) or len(set(names)) != len(names) or set(self.masks) - set(names):
            raise DataError(f"{self.where}: Expected mask_names of all masks but got {names}.", "id")
        for name, picture in zip(unpaired, others, strict=True):
            self.name_of(picture, name)
        self.masks = {name: self.masks[name] for name in names}


def _masks_of(rows: Sequence[Row], where: str) -> _Masks:
    found = _Masks(where)
    for row in rows:
        found.add_pair(row)
    found.add_labelled(rows)
    found.add_others(rows[0])
    return found


def _picture(value: Any, where: str) -> tuple[bytes, str]:
    """Return the bytes of an image column's cell, and the suffix of its path."""
    data, path = (value.get("bytes"), value.get("path")) if isinstance(value, dict) else (value, None)
    if not isinstance(data, bytes):
        raise DataError(
            f"{where}: Expected the bytes of an image file but got {type(data).__name__}; images that are only named "
            "are not read: Dataset.push_to_hub, to_parquet and save_to_disk embed them."
        )
    suffix = PurePosixPath(path or "").suffix.lower()
    return data, suffix if suffix in SUFFIXES else ".png"


def _number_of(name: Any, number: Mapping[str, int], where: str) -> int:
    if name not in number:
        raise DataError(f"{where}: Expected a ranking of {list(number)} but got {name!r}.", "preference")
    return number[name]


def _meta_of(text: str | None, where: str) -> dict[str, str]:
    try:
        meta = json.loads(text or "{}")
    except (ValueError, RecursionError):
        meta = None
    if not isinstance(meta, dict) or not all(isinstance(value, str) for value in meta.values()):
        raise DataError(f"{where}: Expected `meta` as a JSON object of texts but got {text!r:.200}.", "manifest")
    return meta

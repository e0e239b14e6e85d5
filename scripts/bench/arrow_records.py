"""Records as Arrow record batches beside records of the pack: why the pack is no Arrow file, see docs/data.md."""

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa

from bench.rounds import rounds_of
from bench.row import Row
from bench.scale import Scale
from bench.scenes import make_record
from segdpo.data import Image, PackDataset, PackWriter, Pair, Record, decode_image, encode_image

MASKS, CLASSES, RECORDS = 5, 19, 64
NUMBERS, TEXTS = pa.list_(pa.uint32()), pa.list_(pa.string())
COLUMNS = {
    "id": pa.string(), "group": pa.string(), "split": pa.string(), "suffix": pa.string(), "gold": pa.bool_(),
    "shape": NUMBERS, "ranking": NUMBERS, "chosen": NUMBERS, "rejected": NUMBERS, "weight": pa.list_(pa.float64()),
    "names": TEXTS, "keys": TEXTS, "texts": TEXTS, "image": pa.binary(), "masks": pa.binary(),
}  # fmt: skip
SCHEMA = pa.schema(list(COLUMNS.items()))
ZSTD = pa.Codec("zstd", compression_level=3)


@dataclass(frozen=True)
class ArrowRecords:
    """Records one after another in a file, each a record batch of one row; offset, length and checksum of each."""

    path: Path
    places: list[tuple[int, int, int]]

    @classmethod
    def write(cls, path: Path, records: list[Record], pixels: bool) -> "ArrowRecords":
        """Write the records."""
        messages = [_batch(record, pixels).serialize().to_pybytes() for record in records]
        ends = np.cumsum([0, *map(len, messages)]).tolist()
        path.write_bytes(b"".join(messages))
        return cls(path, [(start, len(data), zlib.crc32(data)) for start, data in zip(ends, messages, strict=False)])

    def __getitem__(self, number: int) -> Record:
        offset, length, checksum = self.places[number]
        with self.path.open("rb") as file:
            file.seek(offset)
            data = file.read(length)
        assert zlib.crc32(data) == checksum
        batch = pa.ipc.read_record_batch(pa.ipc.read_message(data), SCHEMA)
        # Nothing in a file is trusted: without this, a damaged offset is read past the end of its buffer.
        batch.validate(full=True)
        image, masks = (column[0].as_buffer() for column in batch.columns[-2:])
        (row,) = batch.select(list(COLUMNS)[:-2]).to_pylist()
        height, width, _ = row["shape"]
        planes = _expand(masks, (len(row["names"]) + row["gold"], height, width))
        return Record(
            id=row["id"],
            image=decode_image(image.to_pybytes(), row["id"]) if row["suffix"] else _pixels(image, row["shape"]),
            masks=planes[: len(row["names"])],
            mask_names=tuple(row["names"]),
            pairs=tuple(map(Pair, row["chosen"], row["rejected"], row["weight"])),
            ranking=tuple(row["ranking"]),
            gold=planes[-1] if row["gold"] else None,
            group=row["group"],
            split=row["split"],
            meta=dict(zip(row["keys"], row["texts"], strict=True)),
        )


def arrow_records(folder: Path, scale: Scale) -> Iterator[Row]:
    """Measure records read in random order, image and all masks, from the pack and as record batches."""
    order = np.random.default_rng(0).permutation(RECORDS).tolist()
    for side in (scale.record_side // 4, scale.record_side):
        records = [make_record(number, side, MASKS, CLASSES) for number in range(RECORDS)]
        for images in ("pixels", "files"):
            where = folder / f"{side}-{images}"
            with PackWriter(where, tuple(f"class{number}" for number in range(CLASSES)), images=images) as writer:
                for record in records:
                    writer.write(record, encode_image(record.image))
            pack, batches = PackDataset(where), ArrowRecords.write(where / "x.arrow", records, images == "pixels")
            for number in range(RECORDS):
                _check_same(pack[number], batches[number])
            sides = {
                "ours": lambda pack=pack: [pack[number] for number in order],
                "fair baseline": lambda batches=batches: [batches[number] for number in order],
            }
            found = rounds_of(sides, scale, "Arrow records")
            each = {name: [sample / RECORDS for sample in samples] for name, samples in found.items()}
            what = f"a record of {side}², {MASKS} masks, images as {'pixels' if images == 'pixels' else 'PNG'}"
            yield Row("D", f"{what}: pack ÷ Arrow record batch", "ms", each)


def _batch(record: Record, pixels: bool) -> pa.RecordBatch:
    planes = record.masks if record.gold is None else np.concatenate([record.masks, record.gold[None]])
    differences = np.diff(record.image, axis=0, prepend=np.zeros_like(record.image[:1]))
    pairs = record.pairs
    cells = [
        record.id, record.group, record.split, "" if pixels else ".png", record.gold is not None,
        list(record.image.shape), list(record.ranking), [pair.chosen for pair in pairs],
        [pair.rejected for pair in pairs], [pair.weight for pair in pairs],
        list(record.mask_names), list(record.meta), list(record.meta.values()),
        ZSTD.compress(differences.tobytes(), asbytes=True) if pixels else encode_image(record.image).data,
        ZSTD.compress(planes.tobytes(), asbytes=True),
    ]  # fmt: skip
    columns = [pa.array([cell], kind) for cell, kind in zip(cells, COLUMNS.values(), strict=True)]
    return pa.RecordBatch.from_arrays(columns, schema=SCHEMA)


def _expand(frame: pa.Buffer, shape: tuple[int, ...]) -> np.ndarray:
    return np.frombuffer(ZSTD.decompress(frame, int(np.prod(shape))), np.uint8).reshape(shape)


def _pixels(frame: pa.Buffer, shape: tuple[int, ...]) -> Image:
    rows = _expand(frame, shape)
    for above, row in pairwise(rows):
        row += above
    return rows


def _check_same(one: Record, other: Record) -> None:
    for name, value in vars(one).items():
        assert np.array_equal(value, getattr(other, name)), name

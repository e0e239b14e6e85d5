"""Small valid samples of every data format, written with the project's own writers."""

import json
import math
from pathlib import Path

import numpy as np
from PIL import Image as Pillow

from fuzzing.data_steps import CLASSES, SETTINGS
from segdpo.data import PackWriter, Pair, Record, write_coco, write_folder
from segdpo.preferences import Diversity, Journal, Outcome

FEW = Diversity(3, 1, 0.5, 0.25, 0.5, math.nan)


def records(seed: int) -> list[Record]:
    """Return three records: with pairs, with a ranking, grey and without masks."""
    rng = np.random.default_rng(seed)
    values = np.array([0, 1, 2, 255], np.uint8)

    def one(name: str, masks: int, channels: int, **more: object) -> Record:
        stack = values[rng.integers(0, 4, (masks, 6, 5))]
        image = rng.integers(0, 256, (6, 5, channels)).astype(np.uint8)
        return Record(name, image, stack, tuple(f"rater {k}" for k in range(masks)), **more)  # type: ignore[arg-type]

    gold = values[rng.integers(0, 4, (6, 5))]
    return [
        one("a", 3, 3, pairs=(Pair(0, 1, 0.25), Pair(2, 1)), gold=gold, group="p 1", split="train", meta={"k": "v"}),
        one("deep/ü", 2, 3, ranking=(1, 0), group="p 2", split="val"),
        one("c", 0, 1),
    ]


def folder(root: Path, seed: int, manifest: str = "jsonl", sealed: bool = False) -> None:
    """Write a folder; without its checksum unless `sealed`."""
    write_folder(root, records(seed), CLASSES, manifest)  # type: ignore[arg-type]
    if not sealed:
        (root / "dataset.json").write_text(json.dumps({"version": 1, "classes": CLASSES}))


def csv_folder(root: Path, seed: int) -> None:
    """Write a folder with a CSV manifest."""
    folder(root, seed, "csv")


def sealed_folder(root: Path, seed: int) -> None:
    """Write a folder with the checksum of its manifest."""
    folder(root, seed, sealed=True)


def plain_folder(root: Path, seed: int) -> None:
    """Write folders of images and masks with an index.csv."""
    folder(root, seed)
    (root / "index.csv").write_text(f"id,place\na,{seed}\ndeep/ü,north\nc,\n")
    (root / "manifest.jsonl").unlink()


def coco(root: Path, seed: int) -> None:
    """Write a COCO file of ours."""
    write_coco(root / "coco.json", records(seed), CLASSES)


def foreign_coco(root: Path, seed: int) -> None:
    """Write a COCO file as other tools do: polygons, runs and a compressed code."""
    coco(root, seed)
    own = json.loads((root / "coco.json").read_text())
    images = [{key: image[key] for key in ("id", "file_name", "width", "height")} for image in own["images"]]
    kinds = [
        [[0.5, 0.5, 4.5, 0.5, 4.5, 3 + seed % 3, 1, 5]],
        {"size": [6, 5], "counts": [5, 10, 15]},
        own["annotations"][0]["segmentation"],
    ]
    regions = [
        {"id": n, "image_id": 1, "category_id": 7, "iscrowd": n % 2, "segmentation": kind}
        for n, kind in enumerate(kinds)
    ]
    categories = [{"id": 7, "name": "cell"}, {"id": 3, "name": "background"}]
    values = {"images": images, "annotations": regions, "categories": categories}
    (root / "coco.json").write_text(json.dumps(values))


def pack(root: Path, seed: int, images: str = "files", per_shard: int = 2) -> None:
    """Write a finished pack with one shard that is whole and one that is short."""
    with PackWriter(root, CLASSES, per_shard, images) as writer:  # type: ignore[arg-type]
        for record in records(seed):
            writer.write(record)


def begun_pack(root: Path, seed: int) -> None:
    """Write a whole pack, and beside it the same as an interrupted run leaves it."""
    pack(root / "whole.pack", seed)
    pack(root / "begun.pack", seed)
    (root / "begun.pack/records.arrow").unlink()
    (root / "begun.pack/shard-00001.bin").unlink()


def image(root: Path, seed: int, suffix: str = ".png") -> None:
    """Write one image of the format that the suffix names."""
    pixels = np.random.default_rng(seed).integers(0, 256, (13, 11, 3), np.uint8)
    picture = Pillow.fromarray(pixels if seed % 2 else pixels[..., 0])
    options = {"compression": "tiff_lzw"} if suffix == ".tif" and seed % 2 else {}
    (root / "images").mkdir()
    picture.save(root / f"images/a{suffix}", **options)


def mask(root: Path, seed: int) -> None:
    """Write a mask as PNG: grey, of a palette or of one bit."""
    pixels = np.random.default_rng(seed).integers(0, 3, (9, 7), np.uint8)
    picture = Pillow.fromarray(pixels)
    if seed % 3 == 1:
        picture = picture.convert("P")
    if seed % 3 == 2:
        picture = Pillow.fromarray(pixels > 0)
    (root / "masks").mkdir()
    (root / "images").mkdir()
    picture.save(root / "masks/a.png")
    Pillow.fromarray(pixels).save(root / "images/a.png")


def journal(root: Path, seed: int) -> None:
    """Write the journal of a mining run that was interrupted."""
    written = Journal(root / "x.mining.jsonl", SETTINGS)
    written.begin([0, 1, 2 + seed])
    for number, record in enumerate(records(seed)):
        outcome = Outcome(
            record.id, record if number else None, "" if number else "no pair", "detail", {"corrupted": FEW}
        )
        written.add(outcome)

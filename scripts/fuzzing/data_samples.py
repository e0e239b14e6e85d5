"""Small valid samples of every data format, written with the project's own writers."""

import json
import math
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image as Pillow

from fuzzing.data_steps import CLASSES, COLORS, SETTINGS, SIZE
from segdpo.data import PackWriter, Pair, Record, encode_coco_mask, write_coco, write_datasets, write_folder
from segdpo.preferences import Diversity, Journal, Line, Outcome

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


def parquet(root: Path, seed: int) -> None:
    """Write records as parquet files of Hugging Face."""
    write_datasets(root, records(seed), CLASSES)


def arrow(root: Path, seed: int) -> None:
    """Write the same as `Dataset.save_to_disk` does."""
    parquet(root, seed)
    table = pq.read_table(root / "train.parquet")
    with pa.ipc.new_stream(root / "data-00000-of-00001.arrow", table.schema) as writer:
        writer.write_table(table)
    for path in root.glob("*.parquet"):
        path.unlink()
    (root / "state.json").write_text("{}")


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


def deep_image(root: Path, seed: int, suffix: str = ".png") -> None:
    """Write one image of 16 bits or of floats."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 2**16, (13, 11, 3) if seed % 2 else (13, 11)).astype(np.uint16)
    numbers = pixels.astype(np.float32) / 7 if seed % 3 == 2 and suffix != ".png" else pixels
    (root / "images").mkdir()
    if suffix == ".npy":
        np.save(root / "images/a.npy", numbers)
    else:
        compression = [cv2.IMWRITE_TIFF_COMPRESSION, (1, 5, 8)[seed % 3]] if suffix == ".tif" else []
        cv2.imwrite(str(root / f"images/a{suffix}"), numbers, compression)


def mask_file(root: Path, seed: int, kind: str = "ids", suffix: str = ".png") -> None:
    """Write one mask file of a kind of MaskFormat."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 3, SIZE)
    path = root / f"mask{suffix}"
    if kind in ("yolo", "label_studio", "coco_rle"):
        path.write_text(_regions(kind, rng))
    elif kind == "colors":
        Pillow.fromarray(np.array(COLORS, np.uint8)[pixels]).save(path)
    elif kind == "instances":
        Pillow.fromarray((pixels * 300).astype(np.uint16)).save(path)
    elif suffix == ".npz":
        np.savez_compressed(path, rng.random((3, *SIZE)))
    else:
        np.save(path, pixels)


def _regions(kind: str, rng: np.random.Generator) -> str:
    points = rng.random((4, 2)).round(2)
    if kind == "yolo":
        return "\n".join(f"{label} " + " ".join(map(str, points.ravel())) for label in (0, 1))
    if kind == "coco_rle":
        code = {"size": list(SIZE), "counts": [20, 30, math.prod(SIZE) - 50]}
        other = {
            "size": list(SIZE),
            "counts": encode_coco_mask(rng.integers(0, 2, SIZE, np.uint8), 0)[0]["segmentation"]["counts"],
        }
        polygons = [(points * SIZE[0]).ravel().tolist()]
        return json.dumps([{"category_id": n, "segmentation": one} for n, one in enumerate((code, other, polygons))])
    # One run: 32 bits of words, 8 bits each, sizes of 16 bits, all alpha 255.
    count = 4 * math.prod(SIZE)
    bits = f"{count:032b}" + "00111" + "1111" * 4 + "111" + f"{count - 1:016b}" + "1" * 8
    stroke = [int(bits[start : start + 8].ljust(8, "0"), 2) for start in range(0, len(bits), 8)]
    size = {"original_width": SIZE[1], "original_height": SIZE[0]}
    results = [
        {**size, "value": {"points": (100 * points).tolist(), "polygonlabels": ["cell"]}},
        {**size, "value": {"format": "rle", "rle": stroke, "brushlabels": ["vessel"]}},
        {**size, "id": "x", "value": {"x": 1, "y": 2, "width": 30, "height": 40, "labels": ["cell"]}},
    ]
    return json.dumps({"data": {"image": "/data/a.png"}, "annotations": [{"result": results}]})


def class_file(root: Path, seed: int, suffix: str = ".txt") -> None:
    """Write a file that names classes."""
    lines = {".txt": "background:0,0,0::\ncell:1,2,3::\n", ".yaml": "names:\n  0: cell\n  1: vessel\n"}
    lines[".json"] = '{"categories": [{"id": 1, "name": "cell", "color": [1, 2, 3]}, {"id": 7, "name": "vessel"}]}'
    (root / f"classes{suffix}").write_text(lines[suffix] + "\n" * (seed % 2))


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
        written.add(Line.of(outcome))

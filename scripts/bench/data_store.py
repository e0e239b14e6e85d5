"""D1 and the rest of the data path: the pack against a folder of files and Arrow, the geometry of masks."""

import json
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from bench.arrow_records import arrow_records
from bench.rounds import rounds_of
from bench.row import Row, at_least
from bench.scale import Scale
from bench.scenes import Scenes, make_record
from segdpo.data import (
    FolderDataset,
    PackDataset,
    PackWriter,
    Record,
    RecordSource,
    albumentations,
    decode_region,
    encode_coco_mask,
    write_folder,
)
from segdpo.masks import Mask

MASKS, CLASSES = 4, 19


def rows(scale: Scale, folder: Path) -> Iterator[Row]:
    """Measure reading, sizes and views; D1 is what a worker reads, D all the rest."""
    cv2.setNumThreads(0)
    records = [make_record(number, scale.record_side, MASKS, CLASSES) for number in range(scale.records)]
    names = tuple(f"class{number}" for number in range(CLASSES))
    for suffix in (".jpg", ".png"):
        yield from store(folder / suffix[1:], Scenes(records, suffix, names), scale)
    for count in (MASKS, MASKS + 1, 2 * MASKS):
        yield geometry(records[0], count, scale)
    yield from arrow_records(folder, scale)


def store(root: Path, scenes: Scenes, scale: Scale) -> Iterator[Row]:
    """Write the scenes as a pack and as a folder, and compare the two."""
    write_folder(root / "folder", scenes, scenes.classes)
    with PackWriter(root / "pack", scenes.classes) as writer:
        for index in range(len(scenes)):
            writer.write(scenes[index], scenes.image_file(index))
    # The same images as pixels, as `scripts/pack.py --images pixels` keeps them: faster, but no longer the same files.
    with PackWriter(root / "pixels", scenes.classes, images="pixels") as writer:
        for index in range(len(scenes)):
            writer.write(scenes[index])
    folder = FolderDataset(root / "folder")
    for kept, pack in ((scenes.suffix, "pack"), ("as pixels", "pixels")):
        what = f"pack, images {kept} ÷ folder, images {scenes.suffix}, masks PNG; K = {MASKS}, {CLASSES} classes"
        yield store_speed(PackDataset(root / pack), folder, scale, what)
    yield from store_size(root, scenes)


def store_speed(pack: RecordSource, folder: RecordSource, scale: Scale, what: str) -> Row:
    """Measure records read and decoded a second, by one worker: image, all masks and gold."""
    for index in range(len(pack)):
        one, other = pack[index], folder[index]
        assert np.array_equal(one.image, other.image)
        assert np.array_equal(one.masks, other.masks)
        assert one.pairs == other.pairs
        assert one.gold is not None
        assert other.gold is not None
        assert np.array_equal(one.gold, other.gold)
    sides = {
        "ours": lambda: [pack[index] for index in range(len(pack))],
        "fair baseline": lambda: [folder[index] for index in range(len(folder))],
    }
    found = rounds_of(sides, scale, "reading")
    speeds = {name: [1e3 * len(pack) / sample for sample in samples] for name, samples in found.items()}
    return Row("D1", f"samples/s a worker: {what}", "/s", speeds, target=at_least(2))


def store_size(root: Path, scenes: Scenes) -> Iterator[Row]:
    """Measure what a mask takes in the pack, against PNG and COCO's run-length codes; and a whole record."""
    planes = [
        mask for record in scenes.records for mask in (*record.masks, *([] if record.gold is None else [record.gold]))
    ]
    images = sum(len(scenes.image_file(index).data) for index in range(len(scenes)))
    png = sum(path.stat().st_size for part in ("masks", "gold") for path in (root / "folder" / part).rglob("*.png"))
    pack = sum(path.stat().st_size for path in (root / "pack").iterdir())
    pixels = sum(path.stat().st_size for path in (root / "pixels").iterdir())
    whole = (images + png) / len(scenes) / 1024
    for kept, size in ((scenes.suffix, pack), ("as pixels", pixels)):
        what = f"a whole record: pack, images {kept} ÷ folder, images {scenes.suffix}"
        yield Row("D", what, "KiB", {"ours": [size / len(scenes) / 1024], "fair baseline": [whole]})
    if scenes.suffix == ".png":
        mask = (pack - images) / len(planes) / 1024
        others = {"PNG": png, "COCO RLE": sum(map(rle_bytes, planes))}
        for name, size in others.items():
            sides = {"ours": [mask], "fair baseline": [size / len(planes) / 1024]}
            yield Row("D", f"a mask: pack, tables included ÷ {name}", "KiB", sides)


def rle_bytes(mask: Mask) -> int:
    """Return how long the mask's run-length codes are in a COCO file."""
    codes, whole = encode_coco_mask(mask, None), np.full(mask.shape, 255, np.uint8)
    for code in codes:
        whole[decode_region(code["segmentation"], (len(mask), len(mask)), "")] = code["category_id"]
    assert np.array_equal(whole, mask)
    return sum(len(json.dumps(code["segmentation"])) for code in codes)


def geometry(record: Record, count: int, scale: Scale, repeat: int = 10) -> Row:
    """Measure one view of the image and `count` masks: as channels of `mask` against planes of `masks`."""
    compose = albumentations.Compose(
        [
            albumentations.HorizontalFlip(p=0.5),
            albumentations.Affine(scale=(0.8, 1.2), rotate=(-20, 20), fill_mask=255, p=1),
            albumentations.RandomCrop(len(record.image) * 3 // 4, len(record.image) * 3 // 4),
        ]
    )
    masks = np.resize(record.masks, (count, *record.masks.shape[1:]))

    def as_channels(seed: int) -> np.ndarray:
        compose.set_random_seed(seed)
        moved = compose(image=record.image, mask=cv2.merge([*masks]))["mask"]
        return np.ascontiguousarray(moved.transpose(2, 0, 1))

    def as_planes(seed: int) -> np.ndarray:
        compose.set_random_seed(seed)
        return np.asarray(compose(image=record.image, masks=masks)["masks"])

    for seed in range(repeat):
        assert np.array_equal(as_channels(seed), as_planes(seed))
    # The same views every round: they differ in cost, and the spread is to be that of the machine.
    sides = {
        "ours": lambda: [as_planes(seed) for seed in range(repeat)],
        "fair baseline": lambda: [as_channels(seed) for seed in range(repeat)],
    }
    found = rounds_of(sides, scale, f"geometry, {count} masks")
    each = {name: [sample / repeat for sample in samples] for name, samples in found.items()}
    return Row("D", f"one view of {count} masks: as planes ÷ stacked as channels", "ms", each)

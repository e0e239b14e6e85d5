"""The data path: the store against a folder of files, the geometry of masks."""

import json
from pathlib import Path

import cv2
import numpy as np
from rich.progress import track

from bench.figures import Figure, seconds
from bench.scenes import Scenes
from segdpo.data.coco_masks import decode_region, encode_mask
from segdpo.data.folder import FolderDataset, write_folder
from segdpo.data.pack import PackDataset, PackWriter
from segdpo.data.record_source import RecordSource
from segdpo.data.transforms import albumentations
from segdpo.pairs.record import Mask, Record


def store(root: Path, scenes: Scenes, rounds: int) -> list[Figure]:
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
    packs = {scenes.suffix: PackDataset(root / "pack"), "as pixels": PackDataset(root / "pixels")}
    speeds = [store_speed(pack, folder, rounds, images, scenes.suffix) for images, pack in packs.items()]
    return [*speeds, *store_size(root, scenes)]


def store_speed(pack: RecordSource, folder: RecordSource, rounds: int, images: str, suffix: str) -> Figure:
    """Measure records read and decoded a second: image, all masks and gold."""
    for index in range(len(pack)):
        one, other = pack[index], folder[index]
        assert np.array_equal(one.image, other.image)
        assert np.array_equal(one.masks, other.masks)
        assert one.pairs == other.pairs
        assert one.gold is not None
        assert other.gold is not None
        assert np.array_equal(one.gold, other.gold)
    figure = Figure(f"reading the pack, images {images}", "records/s", f"folder: {suffix}, PNG masks")
    for _ in track(range(rounds), f"reading, images {images}"):
        figure.values.append(len(pack) / seconds(lambda: [pack[index] for index in range(len(pack))]))
        figure.baseline.append(len(folder) / seconds(lambda: [folder[index] for index in range(len(folder))]))
    return figure


def store_size(root: Path, scenes: Scenes) -> list[Figure]:
    """Measure what a mask takes in the pack, against PNG and COCO's run-length codes; and a whole record."""
    planes = [
        mask for record in scenes.records for mask in (*record.masks, *([] if record.gold is None else [record.gold]))
    ]
    images = sum(len(scenes.image_file(index).data) for index in range(len(scenes)))
    png = sum(path.stat().st_size for part in ("masks", "gold") for path in (root / "folder" / part).rglob("*.png"))
    pack = sum(path.stat().st_size for path in (root / "pack").iterdir())
    mask = (pack - images) / len(planes) / 1024
    pixels = sum(path.stat().st_size for path in (root / "pixels").iterdir())
    baseline, record = (f"{scenes.suffix}, PNG masks", [(images + png) / len(scenes) / 1024]), len(scenes) * 1024
    figures = [
        Figure(f"a whole record in the pack, images {kept}", "KiB", baseline[0], [size / record], baseline[1])
        for kept, size in ((scenes.suffix, pack), ("as pixels", pixels))
    ]
    if scenes.suffix == ".png":
        rle = sum(map(rle_bytes, planes))
        figures.append(Figure("a mask in the pack, tables included", "KiB", "PNG", [mask], [png / len(planes) / 1024]))
        figures.append(
            Figure("a mask in the pack, tables included", "KiB", "COCO RLE", [mask], [rle / len(planes) / 1024])
        )
    return figures


def rle_bytes(mask: Mask) -> int:
    """Return how long the mask's run-length codes are in a COCO file."""
    codes, whole = encode_mask(mask, None), np.full(mask.shape, 255, np.uint8)
    for code in codes:
        whole[decode_region(code["segmentation"], (len(mask), len(mask)), "")] = code["category_id"]
    assert np.array_equal(whole, mask)
    return sum(len(json.dumps(code["segmentation"])) for code in codes)


def geometry(record: Record, count: int, rounds: int, repeat: int = 10) -> Figure:
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
    figure = Figure(f"one view of {count} masks as planes", "ms", "stacked as channels")
    # The same views every round: they differ in cost, and the spread is to be that of the machine.
    for _ in track(range(rounds), f"geometry, {count} masks"):
        figure.values.append(1e3 * seconds(lambda: [as_planes(seed) for seed in range(repeat)]) / repeat)
        figure.baseline.append(1e3 * seconds(lambda: [as_channels(seed) for seed in range(repeat)]) / repeat)
    return figure

"""Measure the data path: the store, the pair table, the geometry of masks; each figure beside its baseline.

    python scripts/benchmark.py --size 512 --masks 4 --classes 19 --rounds 9

One process, one thread, baselines interleaved round by round; files come from the page cache. What is compared is
asserted to be equal in the same run. Figures are medians with their lowest and highest round.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median

import cv2
import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from segdpo.data.coco_masks import decode_region, encode_mask
from segdpo.data.folder import FolderDataset, write_folder
from segdpo.data.image_files import ImageFile, decode_image
from segdpo.data.pack import PackDataset, PackWriter
from segdpo.data.pair_table import PairTable
from segdpo.data.record_source import RecordSource
from segdpo.data.transforms import albumentations
from segdpo.pairs.record import Mask, Pair, Record

TABLE_PROBE = """
import json, sys, time
import numpy as np
from segdpo.data.pair_table import PairTable
from segdpo.data.sampling import EpochSampler
def resident():
    return int(next(l for l in open("/proc/self/status") if l.startswith("VmRSS")).split()[1]) / 1024
empty, start = resident(), time.perf_counter()
if sys.argv[1] == "table":
    table = PairTable.open(sys.argv[2], int(sys.argv[3]))
    opened, start = time.perf_counter() - start, time.perf_counter()
    order = EpochSampler(len(table), seed=1).order()
    # The walk of an epoch: every pair is read once, in that order.
    total = sum(int(table.chosen[part].sum()) for part in np.array_split(order, 100))
else:
    rows = json.load(open(sys.argv[2] + ".json"))
    opened, start = time.perf_counter() - start, time.perf_counter()
    order = np.random.default_rng(1).permutation(len(rows)).tolist()
    total = sum(rows[number][1] for number in order)
print(json.dumps({"open": opened, "order": time.perf_counter() - start, "mib": resident() - empty, "total": total,
                  "distinct": len(set(order)) if len(order) < 1000 else int(np.bincount(order).max())}))
"""


@dataclass
class Figure:
    """One line of the report: what was measured, rounds of it and of its baseline, in `unit`."""

    name: str
    unit: str
    baseline_name: str
    values: list[float] = field(default_factory=list)
    baseline: list[float] = field(default_factory=list)

    def row(self) -> tuple[str, ...]:
        """Return the line as cells; the ratio is the median over rounds of value / baseline."""
        ratios = [value / other for value, other in zip(self.values, self.baseline, strict=True)]
        return (f"{self.name} ({self.unit})", _say(self.values), self.baseline_name, _say(self.baseline), _say(ratios))


@dataclass(frozen=True)
class Scenes:
    """Records made here, with their images as files of one kind (".png" or ".jpg")."""

    records: list[Record]
    suffix: str
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Record:
        return replace(self.records[index], image=decode_image(self.image_file(index).data, ""))

    def image_file(self, index: int) -> ImageFile:
        """Return the image as it would lie on disk."""
        bgr = cv2.cvtColor(self.records[index].image, cv2.COLOR_RGB2BGR)
        return ImageFile(self.suffix, cv2.imencode(self.suffix, bgr)[1].tobytes())


def smooth(rng: np.random.Generator, size: int, knots: int, spread: float = 1.0) -> np.ndarray:
    """Draw a smooth field around 0, float32 [size, size]."""
    field = rng.normal(0, spread, (knots, knots)).astype(np.float32)
    return np.asarray(cv2.resize(field, (size, size), interpolation=cv2.INTER_CUBIC))


def make_record(number: int, size: int, masks: int, classes: int) -> Record:
    """Make an image like a photograph (smooth light, edges, sensor noise), gold, and masks with shifted outlines."""
    rng = np.random.default_rng(number)
    gold = np.argmax([smooth(rng, size, 12) for _ in range(classes)], axis=0).astype(np.uint8)
    colours = rng.integers(30, 220, (classes, 3))
    light = 1 + smooth(rng, size, 6, 0.15)[..., None]
    image = colours[gold] * light + rng.normal(0, 2, (size, size, 3))
    return Record(
        id=f"scene {number}",
        image=cv2.GaussianBlur(image.clip(0, 255).astype(np.uint8), (3, 3), 0),
        masks=np.stack([_wobble(gold, rng) for _ in range(masks)]),
        mask_names=tuple(f"rater{k}" for k in range(masks)),
        pairs=tuple(Pair(k, k + 1) for k in range(masks - 1)),
        gold=gold,
    )


def _wobble(mask: Mask, rng: np.random.Generator) -> Mask:
    size = len(mask)
    y, x = np.mgrid[:size, :size].astype(np.float32)
    x, y = x + smooth(rng, size, 24, 4), y + smooth(rng, size, 24, 4)
    return np.asarray(cv2.remap(mask, x, y, cv2.INTER_NEAREST, borderMode=cv2.BORDER_REPLICATE))


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


def pair_table(root: Path, pairs: int, records: int, rounds: int) -> list[Figure]:
    """Measure opening a table, drawing and walking an epoch in its order, and the memory that this adds."""
    rng = np.random.default_rng(0)
    chosen = rng.integers(0, 8, pairs)
    rejected = (chosen + rng.integers(1, 8, pairs)) % 8
    columns = [np.sort(rng.integers(0, records, pairs)), chosen, rejected, np.ones(pairs)]
    path = root / "pairs.arrow"
    PairTable.from_columns(columns, records).write(path)
    rows = [list(row) for row in zip(*(column.tolist() for column in columns), strict=True)]
    Path(f"{path}.json").write_text(json.dumps(rows))
    named = f"{pairs:,} pairs of {records:,} images"
    figures = {
        "open": Figure(f"opening a table of {named}", "s", "JSON rows"),
        "order": Figure("drawing an epoch's order and walking it", "s", "list of rows"),
        "mib": Figure("memory that the open, walked table adds", "MiB", "list of rows"),
    }
    for _ in track(range(rounds), "pair table"):
        found = {kind: _probe(kind, path, records) for kind in ("table", "rows")}
        assert found["table"]["total"] == found["rows"]["total"] == chosen.sum()
        assert found["table"]["distinct"] == found["rows"]["distinct"] == 1
        for key, figure in figures.items():
            figure.values.append(found["table"][key])
            figure.baseline.append(found["rows"][key])
    return list(figures.values())


def _probe(kind: str, path: Path, records: int) -> dict[str, float]:
    command = [sys.executable, "-c", TABLE_PROBE, kind, str(path), str(records)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    result: dict[str, float] = json.loads(done.stdout)
    return result


def seconds(work: Callable[[], object]) -> float:
    """Return how long `work` takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _say(values: list[float]) -> str:
    if len(values) == 1:
        return f"{values[0]:.3g}"
    return f"{median(values):.3g} ({min(values):.3g}–{max(values):.3g})"


def main() -> None:
    """Measure everything and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options = {"size": 512, "masks": 4, "classes": 19, "records": 16, "rounds": 9, "pairs": 10**6, "images": 10**5}
    for name, value in options.items():
        parser.add_argument(f"--{name}", type=int, default=value, help=f"default {value}")
    given = parser.parse_args()
    cv2.setNumThreads(0)
    numbers = track(range(given.records), "making records")
    records = [make_record(number, given.size, given.masks, given.classes) for number in numbers]
    names = tuple(f"class{number}" for number in range(given.classes))
    with tempfile.TemporaryDirectory() as folder:
        figures = [
            *store(Path(folder) / "jpg", Scenes(records, ".jpg", names), given.rounds),
            *store(Path(folder) / "png", Scenes(records, ".png", names), given.rounds),
            *(geometry(records[0], count, given.rounds) for count in (given.masks, given.masks + 1, 2 * given.masks)),
            *pair_table(Path(folder), given.pairs, given.images, given.rounds),
        ]
    title = f"{given.size}², K = {given.masks}, {given.classes} classes, {given.rounds} rounds: median (lowest–highest)"
    table = Table("figure", "value", "baseline", "its value", "value / baseline", title=title)
    for figure in figures:
        table.add_row(*figure.row())
    Console(width=170).print(table)


if __name__ == "__main__":
    main()

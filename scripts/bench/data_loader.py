"""D2: steps with batches from the loader beside steps with batches in memory."""

import gc
import os
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import cv2

from bench.rounds import ticking
from bench.row import Row, at_most
from bench.scale import Scale
from bench.scenes import make_record
from bench.training import Start, loop, make_start
from segdpo.data import EpochLoader, PackWriter, PairBatch

DATA = Path(os.environ.get("SEGDPO_DATA", Path(__file__).resolve().parents[3] / "shared/data"))


class Waiting:
    """Batches of a loader, epoch after epoch; `seconds` is the time spent waiting for `batches` of them."""

    def __init__(self, loader: EpochLoader, scale: Scale) -> None:
        self.loader, self.scale, self.seconds, self.batches = loader, scale, 0.0, 0
        self._endless = self._batches()
        # Workers start at the first batch; a training does that once.
        next(self._endless)

    def _batches(self) -> Iterator[PairBatch]:
        epoch = 0
        while True:
            self.loader.order.set_epoch(epoch)
            yield from self.loader
            epoch += 1

    def __iter__(self) -> Iterator[PairBatch]:
        while True:
            begin = self.scale.now()
            batch = next(self._endless)
            self.seconds, self.batches = self.seconds + self.scale.now() - begin, self.batches + 1
            yield batch


def rows(scale: Scale, folder: Path) -> Iterator[Row]:
    """Measure the embedded data, a folder of real cells where there is one, and crops from a pack."""
    cv2.setNumThreads(0)
    start = make_start(folder / "shapes", scale, scale.loop_steps, "data.count=100")
    yield from rows_of(start, "data=shapes, default network, 8 × 64²", workers=(0, 1))
    if (DATA / "bubil").exists():
        given = ["data=bubil", f"data.root={DATA / 'bubil'}", "model=unet", "transforms=resized"]
        start = make_start(folder / "bubil", scale, 2, *given, "datamodule.batch_size=4")
        yield from rows_of(start, "data=bubil, U-Net ResNet-18, 4 × 128²")
    side = scale.record_side
    write_pack(folder / "pack", scale)
    given = ["data=pack", f"data.path={folder / 'pack'}", "model=unet", "questions=answered", "transforms=crop_scaled"]
    given += [f"transforms.size={side // 2}", "datamodule.batch_size=2", "reference_training=checkpoint"]
    start = make_start(folder / "run", scale, 1, *given)
    yield from rows_of(start, f"crops of a pack of {side}², U-Net ResNet-18, 2 × {side // 2}²")


def rows_of(start: Start, what: str, workers: tuple[int, ...] = (0,)) -> Iterator[Row]:
    """Measure the bare loop on batches in memory, and on batches of a loader with each number of workers."""
    waiting = {}
    for count in workers:
        start.data.workers = count
        waiting[count] = Waiting(start.data.train_dataloader(), start.scale)
    batches: dict[int | None, Waiting | None] = {None: None} | dict(waiting.items())
    found: dict[int | None, list[float]] = {way: [] for way in batches}
    for number in ticking(range(start.scale.rounds), what):
        for way in list(batches)[:: 1 if number % 2 else -1]:
            gc.collect()
            found[way].append(1e3 * loop(start, batches[way])[0] / len(start))
    for count, one in waiting.items():
        waits = 1e3 * one.seconds / one.batches
        share = waits / median(found[count])
        note = f"{what}, workers={count}: waits {waits:.3g} ms a step for its batch, {share:.1%} of the step."
        name = f"step with loader, workers={count} ÷ step on batches in memory; {what}"
        yield Row(
            "D2", name, "ms", {"fair baseline": found[None], "ours": found[count]}, target=at_most(1.05), note=note
        )


def write_pack(path: Path, scale: Scale) -> None:
    """Write scenes of four masks and 19 classes as a pack."""
    with PackWriter(path, tuple(f"class{number}" for number in range(19))) as writer:
        for number in range(max(8, scale.records)):
            writer.write(make_record(number, scale.record_side, 4, 19))

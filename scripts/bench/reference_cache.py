"""R1: three epochs and a test with a live reference, against filling a cache of its scores and the same with it."""

import copy
import shutil
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import torch

from bench.rounds import ticking
from bench.row import Row, at_least
from bench.scale import Scale
from bench.training import Start, drawing_elsewhere, make_fit, make_start
from segdpo.training import CachedScores, PreferenceTask

EPOCHS = 3
OVERRIDES = (f"trainer.max_epochs={EPOCHS}", "trainer.max_steps=-1", "datamodule.views=1")


def rows(scale: Scale, folder: Path) -> Iterator[Row]:
    """Measure whole trainings of `data=shapes` with validation and a test at the end, the cache empty each time."""
    given = [f"data.count={60 if scale.rounds > 2 else 12}", *OVERRIDES]
    live = make_start(folder / "live", scale, 1, *given)
    cached = make_start(folder / "cached", scale, 1, *given, "reference=cached")
    sides: dict[str, list[float]] = {"fair baseline": [], "ours": []}
    filling: list[float] = []
    for number in ticking(range(scale.rounds), f"{EPOCHS} epochs, live and cached"):
        losses = {}
        for side in ("fair baseline", "ours") if number % 2 else ("ours", "fair baseline"):
            shutil.rmtree(folder / "cached/cache", ignore_errors=True)
            seconds, losses[side], filled = train(cached if side == "ours" else live)
            sides[side].append(seconds)
            filling += filled
        # Filling sums in another order, and Adam amplifies the rounding.
        torch.testing.assert_close(losses["ours"], losses["fair baseline"], rtol=2e-2, atol=2e-3)
    images = sum(len(split) for split in (live.data.splits.train, live.data.splits.val, live.data.splits.test))
    bare = forwards(live, images)
    note = (
        f"filling {images} images (training, validation and test) takes {1e3 * median(filling):.0f} ms, the bare "
        f"forwards of as many {1e3 * bare:.0f} ms."
    )
    where = "data=shapes, default network and loss, 8 × 64²"
    what = f"{EPOCHS} epochs and test, live ÷ cached, filling included; {where}"
    yield Row("R1", what, "s", sides, ("fair baseline", "ours"), at_least(1.15), note)


def train(start: Start) -> tuple[float, torch.Tensor, list[float]]:
    """Fit from the beginning; return its seconds, the last epoch's loss, and how long filling took, if it filled."""
    trainer, task = make_fit(start, [])
    assert isinstance(task, PreferenceTask)
    filled: list[float] = []
    if isinstance(task.reference, CachedScores):
        filled = watch(task.reference, start.scale)
    begin = start.scale.now()
    with drawing_elsewhere():
        trainer.fit(task, datamodule=start.data)
        # Filling has scored the test images too, so the test is part of the comparison.
        loss = trainer.callback_metrics["val/loss"]
        trainer.test(task, datamodule=start.data, verbose=False)
    seconds = start.scale.now() - begin
    assert not isinstance(task.reference, CachedScores) or task.reference.misses == 0
    return seconds, loss, filled


def watch(reference: CachedScores, scale: Scale) -> list[float]:
    """Return a list that gets the seconds of filling."""
    found: list[float] = []
    prepare = reference.prepare

    def measured(*arguments: Any) -> None:
        begin = scale.now()
        prepare(*arguments)
        found.append(scale.now() - begin)

    vars(reference)["prepare"] = measured
    return found


def forwards(start: Start, images: int) -> float:
    """Return the seconds of the reference's forwards alone, on batches in memory; the median of three."""
    scale, image = start.scale, start.batches[0].image
    network, image = copy.deepcopy(start.network).eval().to(scale.device), image.to(scale.device)
    found = []
    for _ in range(3):
        begin = scale.now()
        with torch.no_grad():
            network(image)
        scale.wait()
        found.append((scale.now() - begin) * images / len(image))
    return median(found)

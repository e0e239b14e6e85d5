"""R1: three epochs against a live reference beside filling a cache of its scores and three epochs with it."""

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
from segdpo.training.preference_task import PreferenceTask
from segdpo.training.score_cache import CachedScores

EPOCHS = 3
OVERRIDES = (f"trainer.max_epochs={EPOCHS}", "trainer.max_steps=-1", "datamodule.views=1")


def rows(scale: Scale, folder: Path) -> Iterator[Row]:
    """Measure whole fits of `data=shapes`, validation after each epoch included, with an empty cache each round."""
    given = [f"data.count={60 if scale.rounds > 2 else 12}", *OVERRIDES]
    live = make_start(folder / "live", 1, *given)
    cached = make_start(folder / "cached", 1, *given, "reference=cached")
    sides: dict[str, list[float]] = {"fair baseline": [], "ours": []}
    filling: list[float] = []
    for number in ticking(range(scale.rounds), f"{EPOCHS} epochs, live and cached"):
        losses = {}
        for side in ("fair baseline", "ours") if number % 2 else ("ours", "fair baseline"):
            shutil.rmtree(folder / "cached/cache", ignore_errors=True)
            seconds, losses[side], filled = train(cached if side == "ours" else live, scale)
            sides[side].append(seconds)
            filling += filled
        # Filling sums in another order, and Adam makes more of what rounding leaves.
        torch.testing.assert_close(losses["ours"], losses["fair baseline"], rtol=2e-2, atol=2e-3)
    images = sum(len(split) for split in (live.data.splits.train, live.data.splits.val, live.data.splits.test))
    bare = forwards(live, images, scale)
    note = (
        f"filling {images} images (training, validation and test) takes {1e3 * median(filling):.0f} ms, the bare "
        f"forwards of as many {1e3 * bare:.0f} ms."
    )
    what = f"{EPOCHS} live epochs ÷ (filling + {EPOCHS} cached epochs); data=shapes, default network and loss, 8 × 64²"
    yield Row("R1", what, "s", sides, ("fair baseline", "ours"), at_least(1.15), note)


def train(start: Start, scale: Scale) -> tuple[float, torch.Tensor, list[float]]:
    """Fit from the beginning; return its seconds, the last epoch's loss, and how long filling took, if it filled."""
    trainer, task = make_fit(start, [])
    assert isinstance(task, PreferenceTask)
    filled: list[float] = []
    if isinstance(task.reference, CachedScores):
        filled = watch(task.reference, scale)
    begin = scale.now()
    with drawing_elsewhere():
        trainer.fit(task, datamodule=start.data)
    seconds = scale.now() - begin
    assert not isinstance(task.reference, CachedScores) or task.reference.misses == 0
    return seconds, trainer.callback_metrics["val/loss"], filled


def watch(reference: CachedScores, scale: Scale) -> list[float]:
    """Return a list that takes note of how long filling takes."""
    found: list[float] = []
    prepare = reference.prepare

    def measured(*arguments: Any) -> None:
        begin = scale.now()
        prepare(*arguments)
        found.append(scale.now() - begin)

    vars(reference)["prepare"] = measured
    return found


def forwards(start: Start, images: int, scale: Scale) -> float:
    """Return the seconds of the reference's forwards alone, on batches in memory; the median of three."""
    network, batch = start.network.eval(), start.batches[0]
    found = []
    for _ in range(3):
        begin = scale.now()
        with torch.no_grad():
            network(batch.image)
        found.append((scale.now() - begin) * images / len(batch.image))
    return median(found)

"""R1: three epochs and a test against a live reference, and the same with an empty cache of its scores."""

import shutil
from collections.abc import Iterator
from pathlib import Path

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
    for number in ticking(range(scale.rounds), f"{EPOCHS} epochs, live and cached"):
        losses = {}
        for side in ("fair baseline", "ours") if number % 2 else ("ours", "fair baseline"):
            shutil.rmtree(folder / "cached/cache", ignore_errors=True)
            seconds, losses[side] = train(cached if side == "ours" else live)
            sides[side].append(seconds)
        # Scores come from batches of another order, and Adam makes more of what rounding leaves.
        torch.testing.assert_close(losses["ours"], losses["fair baseline"], rtol=2e-2, atol=2e-3)
    where = "data=shapes, default network and loss, 8 × 64²"
    what = f"{EPOCHS} epochs and test, live ÷ cached, the cache empty at first; {where}"
    yield Row("R1", what, "s", sides, ("fair baseline", "ours"), at_least(1.15))


def train(start: Start) -> tuple[float, torch.Tensor]:
    """Fit from the beginning, then test; return the seconds, and the last epoch's loss."""
    trainer, task = make_fit(start, [])
    assert isinstance(task, PreferenceTask)
    begin = start.scale.now()
    with drawing_elsewhere():
        trainer.fit(task, datamodule=start.data)
        loss = trainer.callback_metrics["val/loss"]
        trainer.test(task, datamodule=start.data, verbose=False)
    seconds = start.scale.now() - begin
    assert not isinstance(task.reference, CachedScores) or task.reference.computed > 0
    return seconds, loss

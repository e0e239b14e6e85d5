"""A step of preference training: ours, in Lightning with all that watches it, beside the same step in a bare loop."""

import copy
import gc
import io
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import rich
import torch
from hydra import compose, initialize_config_dir
from lightning.pytorch import Callback, LightningModule, Trainer
from omegaconf import DictConfig
from rich.console import Console
from rich.progress import Progress
from torch import nn

from bench.figures import Figure
from segdpo.data.batch import PairBatch
from segdpo.data.datamodule import DataModule
from segdpo.models.freezing import hold_statistics
from segdpo.models.segmenter import Segmenter
from segdpo.story.configs import build
from segdpo.story.fitting import make_data, make_trainer
from segdpo.story.learning import Lesson, make_policy, make_task
from segdpo.story.preferences import with_preferences
from segdpo.story.run import quieten
from segdpo.story.setting import Setting, open_setting

SIZES = (64, 128)
CONF = Path(__file__).resolve().parents[2] / "conf"
# What costs something each n steps or epochs, not each step: pictures and files of weights.
OFF = ["callbacks.panels=null", "callbacks.best=null", "callbacks.last=null", "trainer.enable_checkpointing=false"]


@dataclass(frozen=True, eq=False)
class Start:
    """What both loops start from: the default configuration, weights, and batches in memory."""

    setting: Setting
    data: DataModule
    network: Segmenter
    batches: list[PairBatch]

    def __iter__(self) -> Iterator[PairBatch]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


Loop = Callable[[Start], tuple[float, dict[str, torch.Tensor]]]


class Stopwatch(Callback):
    """Measures from the start of the first batch to the end of the epoch, when the last batch has been logged too."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Start."""
        if batch_idx == 0:
            self.begin = time.perf_counter()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop."""
        self.seconds = time.perf_counter() - self.begin


def step(root: Path, steps: int, rounds: int) -> list[Figure]:
    """Measure steps on batches of `data=shapes` at each size, and what Lightning adds to them."""
    quieten()
    warnings.filterwarnings("ignore", message=".*have no `val_dataloader`")  # meant: steps alone
    # As conf/trainer/default.yaml does it, from then on in the whole process: then from the first bare step on, too.
    torch.use_deterministic_algorithms(True)
    figures = []
    for size in SIZES:
        start = make_start(root, size, steps)
        found = rounds_of(start, rounds, f"steps at {size}²")
        figures.append(Figure(f"a step at {size}² in Lightning", "ms", "bare loop", found[fit], found[loop]))
        figures.append(Figure(f"a bare step at {size}²", "ms", "without a loss", found[loop], found[floor]))
        if size == SIZES[0]:
            added = added_by_lightning(start, rounds)
            figures.append(Figure("what Lightning adds to a step", "ms", f"bare step at {size}²", added, found[loop]))
    return figures


def added_by_lightning(start: Start, rounds: int) -> list[float]:
    """Return milliseconds a step, seen on one convolution: there they are not lost in what else the machine does."""
    tiny = replace(start, network=Segmenter(nn.Conv2d(3, 1, 3, padding=1), classes=2))
    found = rounds_of(tiny, rounds, "steps of one convolution")
    return [ours - bare for ours, bare in zip(found[fit], found[loop], strict=True)]


def rounds_of(start: Start, rounds: int, what: str) -> dict[Loop, list[float]]:
    """Return the milliseconds a step of each loop; after every round the weights of ours and bare have to be equal."""
    milliseconds: dict[Loop, list[float]] = {fit: [], loop: [], floor: []}
    # Not drawn by a thread of its own, which would take time from what is measured.
    with Progress(console=Console(stderr=True), auto_refresh=False) as bar, drawing_elsewhere():
        task = bar.add_task(what, total=rounds)
        for number in range(rounds):
            weights = {}
            # Every other round the other way round, so that neither always comes after the other.
            for way in list(milliseconds)[:: 1 if number % 2 else -1]:
                gc.collect()
                seconds, weights[way] = way(start)
                milliseconds[way].append(1e3 * seconds / len(start))
            assert_equal(weights[fit], weights[loop])
            bar.update(task, advance=1, refresh=True)
    return milliseconds


def make_start(root: Path, size: int, steps: int) -> Start:
    """Prepare the default run with images of another size, up to where its training would begin."""
    given = [f"data.size={size}", "data.count=100", f"trainer.max_steps={steps}", "trainer.accelerator=cpu"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config: DictConfig = compose("train", [*given, *OFF, f"run_folder={root / f'step{size}'}"])
    setting = open_setting(config)
    judged = with_preferences(config, setting.source, setting.splits, {})
    data = make_data(config, judged.source, judged.splits)
    torch.manual_seed(config.seed)
    network: Segmenter = build(config.model, classes=len(setting.source.classes))
    batches: list[PairBatch] = list(data.train_dataloader())
    return Start(setting, data, network, list(islice(cycle(batches), steps)))


def fit(start: Start) -> tuple[float, dict[str, torch.Tensor]]:
    """Train as `python train.py` does; return the seconds of all steps and the weights after them."""
    stopwatch = Stopwatch()
    policy = make_policy(start.setting.config, start.network)
    task = make_task(Lesson(start.setting, policy, start.network, start.data))
    trainer = make_trainer(start.setting.config, [stopwatch])
    trainer.fit(task, train_dataloaders=start)
    return stopwatch.seconds, dict(task.policy.state_dict())


def loop(start: Start, with_loss: bool = True) -> tuple[float, dict[str, torch.Tensor]]:
    """Train as a script of a page would."""
    config = start.setting.config
    reference = copy.deepcopy(start.network).eval().requires_grad_(False)
    policy = copy.deepcopy(start.network).train()
    hold_statistics(policy)
    loss = build(config.loss)
    optimizer = build(config.optimizer)(policy.parameters())
    scheduler = build(config.scheduler)(optimizer, steps=len(start))
    begin = time.perf_counter()
    for batch in start:
        with torch.no_grad():
            reference_logits = reference(batch.image)
        logits = policy(batch.image)
        optimizer.zero_grad()
        if with_loss:
            pairs = {"valid": batch.valid, "image_index": batch.image_index, "weight": batch.weight}
            loss.on_logits(logits, reference_logits, batch.chosen, batch.rejected, **pairs).total.backward()
        else:
            logits.backward(reference_logits)
        optimizer.step()
        scheduler.step()
    return time.perf_counter() - begin, dict(policy.state_dict())


def floor(start: Start) -> tuple[float, dict[str, torch.Tensor]]:
    """Run both networks forward and one back, and step, without any loss: what no loss could be faster than."""
    return loop(start, with_loss=False)


def assert_equal(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    """Stop if any weight differs in any bit."""
    assert ours.keys() == theirs.keys()
    assert not [name for name, weight in ours.items() if not torch.equal(weight, theirs[name])]


@contextmanager
def drawing_elsewhere() -> Iterator[None]:
    """Let the run's own bar be drawn as on a terminal, at its full cost, but to nowhere."""
    kept = dict(rich.get_console().__dict__)
    rich.reconfigure(file=io.StringIO(), force_terminal=True, width=120)
    try:
        yield
    finally:
        rich.get_console().__dict__ = kept

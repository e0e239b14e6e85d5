"""For measuring training: the default run up to the start of training, and the same steps in a bare loop."""

import copy
import io
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import rich
import torch
from hydra import compose, initialize_config_dir
from lightning.pytorch import Callback, LightningModule, Trainer
from omegaconf import DictConfig

from bench.scale import Scale
from segdpo.data import DataModule, PairBatch
from segdpo.models import Segmenter, hold_statistics
from segdpo.recipes import (
    Round,
    Run,
    build,
    collect_preferences,
    make_data,
    make_policy,
    make_task,
    make_trainer,
    open_run,
    quieten,
)
from segdpo.training import PreferenceTask, Task

CONF = Path(__file__).resolve().parents[2] / "conf"
# Callbacks that cost something every n steps or epochs, not every step: figures and weights.
OFF = ["callbacks.panels=null", "callbacks.best=null", "callbacks.last=null"]


@dataclass(frozen=True, eq=False)
class Start:
    """What every loop starts from: a configuration, weights, and batches in memory."""

    scale: Scale
    run: Run
    data: DataModule
    network: Segmenter
    batches: list[PairBatch]

    def __iter__(self) -> Iterator[PairBatch]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


class Stopwatch(Callback):
    """Measures from the start of the first batch to the end of the epoch, when the last batch has been logged too."""

    def __init__(self, scale: Scale) -> None:
        self.scale = scale

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Start."""
        if batch_idx == 0:
            self.scale.wait()
            self.begin = self.scale.now()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop."""
        self.scale.wait()
        self.seconds = self.scale.now() - self.begin


def make_start(folder: Path, scale: Scale, steps: int, *overrides: str) -> Start:
    """Prepare the default run, with other choices, up to where its training would begin."""
    quieten()
    warnings.filterwarnings("ignore", message=".*have no `val_dataloader`")  # intended: steps only
    # As conf/trainer/default.yaml does it, from then on in the whole process: then from the first bare step on, too.
    torch.use_deterministic_algorithms(True)
    accelerator = "gpu" if scale.device.type == "cuda" else "cpu"
    given = [f"trainer.max_steps={steps}", f"trainer.accelerator={accelerator}"]
    given += [f"run_folder={folder}", f"cache={folder}/cache"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config: DictConfig = compose("train", [*given, *OFF, *overrides])
    run = open_run(config)
    preferences = collect_preferences(run, run.splits.train, None)
    data = make_data(config, preferences.source, preferences.splits)
    torch.manual_seed(config.seed)
    network: Segmenter = build(config.model, classes=len(run.classes))
    batches: list[PairBatch] = list(islice(data.train_dataloader(), steps))
    return Start(scale, run, data, network, list(islice(cycle(batches), steps)))


def make_fit(start: Start, callbacks: Sequence[Callback]) -> tuple[Trainer, Task]:
    """Return the Trainer and the task that `python train.py` would make."""
    config, network = start.run.config, start.network
    task = make_task(Round(start.run, make_policy(config, network), network, start.data, ()))
    return make_trainer(config, callbacks), task


def fit(start: Start) -> tuple[float, dict[str, torch.Tensor]]:
    """Train as `python train.py` does; return the seconds of all steps and the weights after them."""
    stopwatch = Stopwatch(start.scale)
    trainer, task = make_fit(start, [stopwatch])
    with drawing_elsewhere():
        trainer.fit(task, train_dataloaders=start)
    assert isinstance(task, PreferenceTask)
    return stopwatch.seconds, dict(task.policy.state_dict())


def loop(start: Start, batches: Iterable[PairBatch] | None = None) -> tuple[float, dict[str, torch.Tensor]]:
    """Train as a short script would, on the batches in memory or on as many others."""
    scale = start.scale
    config = start.run.config
    reference = copy.deepcopy(start.network).eval().requires_grad_(False).to(scale.device)
    policy = copy.deepcopy(start.network).train().to(scale.device)
    hold_statistics(policy)
    loss = build(config.loss)
    optimizer = build(config.optimizer)(policy.parameters())
    scheduler = build(config.scheduler)(optimizer, steps=len(start))
    scale.wait()
    begin = scale.now()
    for waiting in islice(batches or start, len(start)):
        batch = waiting.to(scale.device, non_blocking=True)
        with torch.no_grad():
            reference_logits = reference(batch.image)
        logits = policy(batch.image)
        optimizer.zero_grad()
        named = {"valid": batch.valid, "image_index": batch.image_index, "weight": batch.weight, "index": batch.index}
        loss.on_logits(logits, reference_logits, batch.chosen, batch.rejected, **named).total.backward()
        optimizer.step()
        scheduler.step()
    scale.wait()
    return scale.now() - begin, dict(policy.state_dict())


@contextmanager
def drawing_elsewhere() -> Iterator[None]:
    """Draw the run's progress bar as on a terminal, at its full cost, but into nothing."""
    kept = dict(rich.get_console().__dict__)
    rich.reconfigure(file=io.StringIO(), force_terminal=True, width=120)
    try:
        yield
    finally:
        rich.get_console().__dict__ = kept

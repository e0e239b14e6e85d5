"""T1–T3 and X2: steps of Lightning in bfloat16 against a supervised step, and how often a step waits for the GPU.

A U-Net on a ResNet-18 with 21 classes. Batches lie in pinned memory and are sent by Lightning, as a loader's are. The
time of a step is that between two CUDA events, from the start of one batch to the end of another, so that it includes
sending, hooks, digests of the cache and the optimiser.
"""

import copy
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn

from bench.cases import make_case, margin_loss
from bench.gpu.quiet import quiet
from bench.row import Row, Target, at_most
from bench.scale import Scale
from bench.step_kinds import hinge_loss
from bench.waits import noted_waits
from segdpo import PreferenceLoss, pair_index
from segdpo.data import Batch, PairBatch, SupervisedBatch
from segdpo.models import freeze_parts, smp_model
from segdpo.training import (
    CachedScores,
    FrozenCopy,
    PreferenceTask,
    Reference,
    SharedEncoder,
    SupervisedTask,
    cross_entropy,
)

CLASSES, BATCHES = 21, 4
ENCODER = "network.encoder"
# So small that the steps of the measurement do not change the network.
OPTIMIZER = partial(torch.optim.AdamW, lr=1e-7)


@dataclass(frozen=True, eq=False)
class Setting:
    """A network and batches of the same images, with gold masks and with pairs."""

    scale: Scale
    network: nn.Module
    supervised: list[Batch]
    pairs: list[Batch]
    folder: Path


@dataclass(frozen=True)
class Kind:
    """A kind of step: `reference` makes its reference, or None for a supervised step; `frozen`: the encoder rests."""

    name: str
    reference: Callable[[Setting], Reference] | None = None
    loss: Callable[[], PreferenceLoss] = hinge_loss
    frozen: bool = False


def _live(setting: Setting) -> Reference:
    return FrozenCopy(setting.network)


def _cached(setting: Setting) -> Reference:
    return CachedScores(setting.network, setting.folder / "cache")


def _shared(setting: Setting) -> Reference:
    return SharedEncoder(setting.network, ENCODER)


SUPERVISED, FROZEN = Kind("supervised"), Kind("supervised, frozen encoder", frozen=True)
# id, kind, the step that it is compared with, target
RATIOS: tuple[tuple[str, Kind, Kind, Target | None], ...] = (
    ("T1", Kind("cached reference, margin loss", _cached, margin_loss), SUPERVISED, at_most(1.02)),
    ("T1", Kind("cached reference, default loss", _cached), SUPERVISED, at_most(1.02)),
    ("T2", Kind("live reference, margin loss", _live, margin_loss), SUPERVISED, at_most(1.34)),
    ("T2", Kind("live reference, default loss", _live), SUPERVISED, at_most(1.34)),
    ("T3", Kind("shared encoder, default loss", _shared, frozen=True), FROZEN, None),
)


def rows(scale: Scale, folder: Path) -> Iterator[Row]:
    """Count the waits of every kind of step, then measure all of them in turns."""
    setting = make_setting(scale, folder)
    kinds = [SUPERVISED, FROZEN, *(kind for _, kind, _, _ in RATIOS)]
    where = f"Lightning, bf16-mixed, U-Net ResNet-18, {CLASSES} classes, {scale.step_size}"
    for kind in kinds:
        yield waits_row(setting, kind, where)
    samples: dict[Kind, list[float]] = {kind: [] for kind in kinds}
    for number in range(scale.rounds):
        start = number % len(kinds)
        for kind in kinds[start:] + kinds[:start]:
            samples[kind].append(train(setting, kind, Stopwatch(scale)).milliseconds)
    for name, kind, below, target in RATIOS:
        sides = {"fair baseline": samples[below], "ours": samples[kind]}
        yield Row(name, f"step, {kind.name} ÷ {below.name}; {where}", "ms", sides, target=target)


def waits_row(setting: Setting, kind: Kind, where: str) -> Row:
    """Count how often steps wait for the GPU; the first run of a kind, so it also fills the cache."""
    what = f"waits for the device in {Waits.counted} steps, {kind.name}; {where}"
    waits = train(setting, kind, Waits(setting.scale))
    if setting.scale.device.type != "cuda":
        return Row("X2", what, over=(), note=f"{what}: not counted, since there is no GPU.")
    note = f"{what}: {', '.join(waits.found)}." if waits.found else ""
    return Row("X2", what, "", {"ours": [float(len(waits.found))]}, ("ours",), at_most(0), note)


class Watch(Callback):
    """Watches the steps after `before` warm-up steps, in which the cache is filled and kernels are compiled."""

    before, counted = 2 * BATCHES, 16

    def __init__(self, scale: Scale) -> None:
        self.scale = scale
        if scale.device.type != "cuda":
            self.before, self.counted = BATCHES, 2

    @property
    def steps(self) -> int:
        """The steps to train."""
        return self.before + self.counted

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Start after the warm-up."""
        if batch_idx == self.before:
            self.start()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop after the last step."""
        if batch_idx == self.steps - 1:
            self.stop()

    def start(self) -> None:
        """Begin to watch."""

    def stop(self) -> None:
        """End, after the last step."""


class Stopwatch(Watch):
    """Measures a step: with CUDA events, or on a CPU with the clock."""

    milliseconds = 0.0

    def start(self) -> None:
        """Begin."""
        self._begin = self._mark()

    def stop(self) -> None:
        """Compute the mean of the steps."""
        end = self._mark()
        if isinstance(self._begin, float) and isinstance(end, float):
            self.milliseconds = 1e3 * (end - self._begin) / self.counted
        elif isinstance(self._begin, torch.cuda.Event) and isinstance(end, torch.cuda.Event):
            end.synchronize()
            self.milliseconds = self._begin.elapsed_time(end) / self.counted

    def _mark(self) -> torch.cuda.Event | float:
        if self.scale.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


class Waits(Watch):
    """Notes where CUDA says that Python waited for the GPU."""

    def __init__(self, scale: Scale) -> None:
        super().__init__(scale)
        self.found: list[str] = []

    def start(self) -> None:
        """Begin."""
        self._counting = ExitStack()
        self.found = self._counting.enter_context(noted_waits())

    def stop(self) -> None:
        """Read what was said."""
        self._counting.close()


Kept = TypeVar("Kept", bound=Watch)


class Repeated:
    """Batches again and again."""

    def __init__(self, batches: list[Batch], steps: int) -> None:
        self._batches, self._steps = batches, steps

    def __iter__(self) -> Iterator[Batch]:
        return (self._batches[number % len(self._batches)] for number in range(self._steps))

    def __len__(self) -> int:
        return self._steps


def train(setting: Setting, kind: Kind, watch: Kept) -> Kept:
    """Train as long as the watch wants, from the same weights each time; return the watch."""
    task, batches = make_task(setting, kind)
    with quiet():
        trainer = Trainer(
            accelerator="gpu" if setting.scale.device.type == "cuda" else "cpu",
            devices=1,
            precision="bf16-mixed",
            max_steps=watch.steps,
            callbacks=[watch],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            log_every_n_steps=10_000,  # a step that logs has to read what it logs
        )
        trainer.fit(task, train_dataloaders=Repeated(batches, watch.steps))
    return watch


def make_task(setting: Setting, kind: Kind) -> tuple[LightningModule, list[Batch]]:
    """Return the task of a kind of step and its batches."""
    network = copy.deepcopy(setting.network)
    if kind.frozen:
        freeze_parts(network, [ENCODER])
    if kind.reference is None:
        return SupervisedTask(network, cross_entropy, OPTIMIZER, hold_statistics=True), setting.supervised
    return PreferenceTask(network, kind.reference(setting), kind.loss(), OPTIMIZER), setting.pairs


def make_setting(scale: Scale, folder: Path) -> Setting:
    """Make the network and the batches, in pinned memory where there is a GPU."""
    torch.manual_seed(0)
    shape: dict[str, Any] = {"decoder_channels": (256, 128, 64, 32, 16)[-scale.step_depth :]}
    network = smp_model("unet", "resnet18", classes=CLASSES, encoder_depth=scale.step_depth, **shape)
    both = [batches_of(scale, number) for number in range(BATCHES)]
    if scale.device.type == "cuda":
        both = [(one.pin_memory(), other.pin_memory()) for one, other in both]
    supervised, pairs = (list(side) for side in zip(*both, strict=True))
    return Setting(scale, network, supervised, pairs, folder)


def batches_of(scale: Scale, seed: int) -> tuple[Batch, Batch]:
    """Return a batch with gold masks, and one with a pair of masks an image, as a loader makes them."""
    side = scale.step_side
    case = make_case(scale.step_images, CLASSES, side, torch.device("cpu"), seed)
    generator, count = torch.Generator().manual_seed(seed), scale.step_images
    valid, image_index = torch.ones(count, side, side, dtype=torch.bool), torch.arange(count)
    common: dict[str, Any] = {
        "image": torch.randn(count, 3, side, side, generator=generator),
        "valid": valid,
        "view": torch.zeros(count, dtype=torch.int64),
        "ids": [f"{seed}-{number}" for number in range(count)],
        "gold": None,
    }
    pairs = PairBatch(
        **common,
        chosen=case.chosen,
        rejected=case.rejected,
        image_index=image_index,
        weight=torch.ones(count),
        pair_masks=torch.tensor([[0, 1]]).expand(count, 2).contiguous(),
        index=pair_index(case.chosen, case.rejected, valid, image_index),
    )
    return SupervisedBatch(**common, target=case.chosen), pairs

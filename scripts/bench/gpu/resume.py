"""X3 and X4: a training on the GPU that is repeated, resumed, or run under DDP with one process, bit for bit.

Compared are all weights of the policy and both moments of AdamW after the last step. The training is preference
training of a U-Net on a ResNet-18 in bf16-mixed, with deterministic algorithms where PyTorch has them; operations for
which it has none are named below the table.
"""

import copy
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn

from bench.gpu.quiet import quiet
from bench.row import Row, at_most
from bench.scale import Scale
from bench.step_kinds import hinge_loss
from segdpo.data import DataModule, Pair, Pipeline, Record, Splits
from segdpo.models import smp_model
from segdpo.training import FrozenCopy, PreferenceTask, RandomState

STEPS, HALF = 12, 6
NONDETERMINISTIC = re.compile(r"(\w+) does not have a deterministic implementation")


class Pairs:
    """Images of noise, each with one pair of masks of noise."""

    classes = tuple("abcde")

    def __init__(self, count: int, side: int) -> None:
        self._count, self._side = count, side

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, number: int) -> Record:
        rng = np.random.default_rng(number)
        space = (self._side, self._side)
        masks = rng.integers(0, len(self.classes), (2, *space)).astype(np.uint8)
        image = rng.integers(0, 256, (*space, 3)).astype(np.uint8)
        return Record(id=str(number), image=image, masks=masks, mask_names=("a", "b"), pairs=(Pair(0, 1),))


@dataclass(frozen=True, eq=False)
class Training:
    """The same training every time: a network, its data, a device."""

    scale: Scale
    network: nn.Module
    folder: Path

    def run(self, ckpt_path: Path | None = None, checkpoints: Path | None = None, ddp: bool = False) -> list[Tensor]:
        """Train to the last step; return the weights and the moments of AdamW.

        Args:
            ckpt_path: a checkpoint to resume from.
            checkpoints: a folder that gets a checkpoint of the middle.
            ddp: train under DDP with one process.
        """
        torch.manual_seed(0)
        gpu = self.scale.device.type == "cuda"
        optimizer = partial(torch.optim.AdamW, lr=1e-3)
        task = PreferenceTask(copy.deepcopy(self.network), FrozenCopy(self.network), hinge_loss(), optimizer)
        saving = ModelCheckpoint(checkpoints, "{step}", every_n_train_steps=HALF, save_top_k=-1)
        strategy: Any = "auto"
        if ddp:  # the encoder may have layers that the decoder does not use
            strategy = DDPStrategy(process_group_backend="nccl" if gpu else "gloo", find_unused_parameters=True)
        with quiet():
            trainer = Trainer(
                accelerator="gpu" if gpu else "cpu",
                devices=1,
                strategy=strategy,
                precision="bf16-mixed",
                deterministic="warn",
                max_steps=STEPS,
                callbacks=[RandomState(), *([saving] if checkpoints else [])],
                logger=False,
                enable_checkpointing=checkpoints is not None,
                enable_progress_bar=False,
                enable_model_summary=False,
                limit_val_batches=0,
                use_distributed_sampler=False,
                log_every_n_steps=1,
            )
            trainer.fit(task, datamodule=self.data(), ckpt_path=ckpt_path, weights_only=True)
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
        moments = [value for state in trainer.optimizers[0].state.values() for value in state.values()]
        return [tensor.detach().cpu().clone() for tensor in [*task.policy.state_dict().values(), *moments]]

    def data(self) -> DataModule:
        """Return loaders of new views in each epoch, five batches each: the middle is inside of an epoch."""
        none = np.empty(0, np.uint32)
        source = Pairs(5 * 4, self.scale.step_side // 2)
        splits = Splits(np.arange(len(source), dtype=np.uint32), none, none, groups=(len(source), 0, 0))
        return DataModule(source, Pipeline(), Pipeline(), split=splits, batch_size=4)


def rows(scale: Scale, folder: Path) -> Iterator[Row]:
    """Train four times and compare."""
    torch.manual_seed(0)
    depth = scale.step_depth
    shape: dict[str, Any] = {"decoder_channels": (128, 64, 32, 16, 8)[-depth:]}
    network = smp_model("unet", "resnet18", classes=5, encoder_depth=depth, **shape)
    training = Training(scale, network, folder)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        first = training.run(checkpoints=folder)
        found = {
            "X3 the same training again": training.run(),
            f"X3 resumed after {HALF} of {STEPS} steps": training.run(ckpt_path=folder / f"step={HALF}.ckpt"),
            "X4 DDP with one process": training.run(ddp=True),
        }
    named = sorted({match[1] for one in said if (match := NONDETERMINISTIC.search(str(one.message)))})
    note = f"without a deterministic form in PyTorch: {', '.join(named)}." if named else ""
    for title, other in found.items():
        name, _, what = title.partition(" ")
        what = f"tensors that differ, of {len(first)} (weights, moments of AdamW), after {STEPS} steps: {what}"
        yield Row(name, what, "", {"ours": [float(differing(first, other))]}, ("ours",), at_most(0), note)


def differing(one: list[Tensor], other: list[Tensor]) -> int:
    """Return how many tensors differ in any bit; a list of another length differs throughout."""
    if len(one) != len(other):
        return max(len(one), len(other))
    return sum(not torch.equal(a, b) for a, b in zip(one, other, strict=True))

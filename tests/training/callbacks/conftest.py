"""A task of one weight that logs given values."""

import signal
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader


class Scripted(LightningModule):
    """Logs `gains[k]` at step k and `ious[k]` at validation k; one weight that goes down by 1 a step."""

    def __init__(self, gains: Sequence[float] = (), ious: Sequence[float] = ()) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.gains, self.ious = gains, ious
        self.at_step: dict[int, Callable[[], None]] = {}
        self.weights: list[float] = []

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        self.at_step.get(self.global_step, lambda: None)()
        if self.gains:
            self.log("train/pairs/chosen_gain", self.gains[min(self.global_step, len(self.gains) - 1)], on_epoch=False)
            self.log("train/pairs/margin", 0.5, on_epoch=False)
        loss = self.weight.sum()
        self.log("train/loss", 0.25, on_epoch=False)
        return loss

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.weights.append(self.weight.item())

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.seen_in_validation = self.weight.item()
        if self.ious:
            self.log("val/iou", self.ious[min(self.trainer.current_epoch, len(self.ious) - 1)])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1.0)


def loader(batches: int = 4) -> DataLoader[Tensor]:
    return DataLoader(torch.zeros(batches, 1))  # type: ignore[arg-type]


@pytest.fixture
def build(tmp_path, request) -> Callable[..., list[Callback]]:
    """Build callbacks as train.py does: `build("+callbacks=[last,ema]", "callbacks.ema.decay=0.5")`."""
    conf = request.config.rootpath / "conf"

    def callbacks(*overrides: str) -> list[Callback]:
        with initialize_config_dir(str(conf), version_base="1.3"):
            config = compose(None, overrides=[f"+run_folder={tmp_path}", "+optimise=val/iou", *overrides])
        return [instantiate(node, _convert_="all") for node in config.callbacks.values() if node]

    return callbacks


@pytest.fixture
def scripted() -> type[Scripted]:
    return Scripted


@pytest.fixture
def fit(tmp_path) -> Iterator[Callable[..., Trainer]]:
    """Train: `fit(task, callbacks=…, max_steps=…)`; what Lightning does to Ctrl-C is undone afterwards."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def run(
        task: LightningModule,
        *,
        ckpt_path: str | None = None,
        batches: int = 4,
        loaders: Sequence[DataLoader[Any]] | None = None,
        **options: Any,
    ) -> Trainer:
        given: dict[str, Any] = {
            "accelerator": "cpu",
            "max_steps": 8,
            "logger": False,
            "log_every_n_steps": 1,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "num_sanity_val_steps": 0,
            "default_root_dir": tmp_path,
        }
        trainer = Trainer(**(given | options))
        trainer.fit(task, *(loaders or (loader(batches), loader(2))), ckpt_path=ckpt_path, weights_only=True)
        return trainer

    yield run
    for number, handler in handlers.items():
        signal.signal(number, handler)

"""Panels of validation images during training: image, chosen, rejected, reference, policy, gold."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from segdpo.checks import IGNORE
from segdpo.data import Batch, Image, PairBatch, PanelRow, RankingBatch
from segdpo.masks import Mask
from segdpo.models import IMAGENET_MEAN, IMAGENET_STD
from segdpo.preferences import to_image, whole_or_in_windows
from segdpo.scores import predicted_classes

Draw = Callable[..., None]


class Panels(Callback):
    """Draw the first images of the validation set every n epochs, to FOLDER/epoch_NNN.png.

    Args:
        draw: called as `draw(rows, path, title=…)`, with `classes=` if the data module's source names its classes;
            such as `segdpo.reports.draw_panel`.
        folder: where the panels are written.
        images: number of rows, at most the number of images in the first validation batch.
        every_n_epochs: epochs between two panels.
        mean: mean used to normalise the images, one value per channel.
        std: standard deviation used to normalise the images.
    """

    def __init__(
        self,
        draw: Draw,
        folder: str | Path,
        images: int = 4,
        every_n_epochs: int = 1,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
    ) -> None:
        if images < 1 or every_n_epochs < 1:
            raise ValueError(f"Expected at least 1 image and 1 epoch but got {images} and {every_n_epochs}.")
        self.draw, self.folder, self.images, self.every_n_epochs = draw, Path(folder), images, every_n_epochs
        self.mean, self.std = tuple(mean), tuple(std)
        self._rows: list[PanelRow] = []

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Predict the masks of the first images, while the network has the weights that are validated."""
        due = trainer.current_epoch % self.every_n_epochs == 0 and not trainer.sanity_checking
        # In every process: a sharded network needs all of them, and each has a first batch.
        if due and batch_idx == 0 and dataloader_idx == 0:
            rows = panel_rows(batch, _predicted(pl_module, batch), self.mean, self.std)
            self._rows = rows[: self.images]

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the panel."""
        if not self._rows or not trainer.is_global_zero:
            return
        classes = getattr(getattr(getattr(trainer, "datamodule", None), "source", None), "classes", None)
        named = {} if classes is None else {"classes": classes}
        path = self.folder / f"epoch_{trainer.current_epoch:03d}.png"
        self.draw(self._rows, path, title=f"epoch {trainer.current_epoch}, step {trainer.global_step}", **named)
        self._rows = []


def panel_rows(
    batch: Batch,
    networks: Mapping[str, Tensor],
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
) -> list[PanelRow]:
    """Return a row for each image of a batch: its first pair, the predictions and gold.

    Args:
        batch: the images, with pairs or a ranking if it has any.
        networks: name of a column ("policy", "reference") → masks [images, height, width], uint8.
        mean: mean used to normalise the images, one value per channel.
        std: standard deviation used to normalise the images.
    """
    columns = {**_first_pairs(batch), **networks}
    if batch.gold is not None:
        columns["gold"] = batch.gold
    outside = ~batch.valid
    masks = {name: mask.masked_fill(outside, IGNORE).cpu().numpy().astype(np.uint8) for name, mask in columns.items()}
    return [
        PanelRow(
            name,
            _pixels(batch.image[number], mean, std),
            **{column: mask[number] for column, mask in masks.items() if column != "gold" or _known(mask[number])},
        )
        for number, name in enumerate(batch.ids)
    ]


def _known(gold: Mask) -> bool:
    """Whether an image has gold; beside others that have it, a batch has 255 for it."""
    return bool((gold != IGNORE).any())


def _pixels(image: Tensor, mean: Sequence[float], std: Sequence[float]) -> Image:
    """Undo the normalisation; images with another number of channels than `mean` are scaled to 0 … 255."""
    pixels = image.float().cpu().numpy()
    if len(pixels) == len(mean):
        return to_image(pixels, mean, std)
    return to_image((pixels - pixels.min()) / max(float(np.ptp(pixels)), 1e-6), mean=(0,), std=(1,))


@torch.no_grad()
def _predicted(task: LightningModule, batch: Batch) -> dict[str, Tensor]:
    """Return the masks of the task's networks; those of the reference only if it returns logits."""
    policy, window = getattr(task, "policy", None), getattr(task, "window", None)
    if not isinstance(policy, nn.Module):
        network = task.network
        assert isinstance(network, nn.Module)
        return {"policy": predicted_classes(whole_or_in_windows(network, batch.image, window))}
    masks = {"policy": predicted_classes(whole_or_in_windows(policy, batch.image, window))}
    reference: Any = getattr(task, "reference", None)
    answer = None if reference is None or not isinstance(batch, PairBatch | RankingBatch) else reference(batch, policy)
    return masks | {"reference": predicted_classes(answer)} if isinstance(answer, Tensor) else masks


def _first_pairs(batch: Batch) -> dict[str, Tensor]:
    """Return the first pair of each image, or the best and the worst of its ranking."""
    if isinstance(batch, RankingBatch):
        return {"chosen": batch.ranking[:, 0], "rejected": batch.ranking[:, -1]}
    if not isinstance(batch, PairBatch):
        return {}
    images = torch.arange(len(batch.image), device=batch.image_index.device)
    first = (batch.image_index == images[:, None]).int().argmax(1)
    return {"chosen": batch.chosen[first], "rejected": batch.rejected[first]}

"""segdpo in a Lightning script of your own: your data set, your network, your Trainer.

python examples/own_lightning.py
"""

from functools import partial

import numpy as np
import torch
from lightning.pytorch import Trainer
from torch import nn

import segdpo
from segdpo.data import Pair, Pipeline, Record
from segdpo.training import FrozenCopy


class Squares:
    """A data set is anything with `classes`, a length, and a Record for each number."""

    classes = ("background", "square")

    def __len__(self) -> int:
        return 60

    def __getitem__(self, number: int) -> Record:
        rng = np.random.default_rng(number)
        top, left = rng.integers(4, 16, 2)
        mask = np.zeros((32, 32), np.uint8)
        mask[top : top + 12, left : left + 12] = 1
        image = np.clip(rng.normal(100 + 60 * mask[..., None], 40, (32, 32, 3)), 0, 255).astype(np.uint8)
        masks = np.stack([np.roll(mask, 5, axis=1), mask])
        return Record(f"{number}", image, masks, ("shifted", "right"), (Pair(chosen=1, rejected=0),), gold=mask)


def run(steps: int = 100) -> list[float]:
    """Train, and return the mean IoU of the validation images before and after."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 16, 5, padding=2), nn.ReLU(), nn.Conv2d(16, 1, 5, padding=2))
    dpo = partial(segdpo.objectives.dpo, beta=3.0)
    hinge = segdpo.Anchor(weight=30.0, term=partial(segdpo.anchors.hinge, tau=0.2))
    loss = segdpo.PreferenceLoss(dpo, anchors={"hinge": hinge})
    task = segdpo.PreferenceTask(network, FrozenCopy(network), loss, partial(torch.optim.AdamW, lr=3e-3))
    data = segdpo.DataModule(Squares(), Pipeline(), Pipeline(), batch_size=8)
    trainer = Trainer(max_steps=steps, accelerator="cpu", logger=False, enable_checkpointing=False)
    (before,) = trainer.validate(task, data)
    trainer.fit(task, data)
    (after,) = trainer.validate(task, data)
    return [before["val/iou"], after["val/iou"]]


if __name__ == "__main__":
    run()

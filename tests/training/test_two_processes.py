"""Two processes with a batch of 2, or two batches of 1, are one process with a batch of 4: losses, metrics, weights."""

import copy
import csv
from functools import partial

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.strategies import DDPStrategy

from segdpo.data import SupervisedDataset
from segdpo.training import Adaptive, CachedScores, FrozenCopy, PreferenceTask, SupervisedTask, cross_entropy


def lines(folder):
    """Return metrics.csv as {(epoch, step, name): value}."""
    with open(folder / "metrics.csv") as file:
        return {
            (row["epoch"], row["step"], name): float(value)
            for row in csv.DictReader(file)
            for name, value in row.items()
            if value and name not in ("epoch", "step")
        }


@pytest.mark.parametrize("kind", ["frozen", "cached", "supervised", "accumulated"])
def test_two_are_one(kind, network, data, fit, hinge, tmp_path):
    found, weights = [], []
    for processes in (1, 2):
        torch.manual_seed(0)
        sgd = partial(torch.optim.SGD, lr=0.3, momentum=0.9)
        options = {"batch_size": 4 // processes, "val": 0.31}  # five images: three and two
        if kind == "supervised":
            # Masks with ignored pixels: images differ in how many count.
            # In evaluation mode: DDP does not share BatchNorm's statistics.
            task = SupervisedTask(copy.deepcopy(network), cross_entropy, sgd)
            task.network.eval()
            task.train = lambda mode=True, task=task: task
            options["items"] = partial(SupervisedDataset, target="a")
        else:
            make = partial(CachedScores, folder=tmp_path / f"{processes}") if kind == "cached" else FrozenCopy
            # β follows the mean margin over both processes; images differ in the number and the weights of their pairs.
            # It follows each batch, so that accumulated batches would have several.
            beta = None if kind == "accumulated" else Adaptive(alpha=0.5)
            task = PreferenceTask(copy.deepcopy(network), make(network), hinge, sgd, beta=beta)
        # Forked: a start of two fresh interpreters would cost more than all the rest.
        strategy = DDPStrategy(process_group_backend="gloo", start_method="fork") if processes == 2 else "auto"
        times = 2 if (kind, processes) == ("accumulated", 2) else 1
        if times == 2:
            options["batch_size"] = 1
        if kind == "accumulated":
            options["val"] = 0.25  # twelve images to train on: three whole steps
        folder = tmp_path / f"{kind}{processes}"
        fit(
            task,
            data(**options),
            devices=processes,
            strategy=strategy,
            max_steps=6,
            accumulate_grad_batches=times,
            logger=CSVLogger(folder, name="", version=""),
            use_distributed_sampler=False,
        )
        found.append(lines(folder))
        weights.append(torch.cat([p.detach().flatten() for p in task.parameters()]))
    one, two = found
    assert two.keys() == one.keys()
    assert {name for *_, name in one} >= {"train/loss", "val/loss", "val/iou"}
    assert len({value for (*_, name), value in one.items() if name == "train/loss"}) == 6
    for key, value in one.items():
        assert two[key] == pytest.approx(value, abs=1e-5), key
    assert torch.allclose(*weights, atol=1e-5)
    assert not torch.allclose(weights[0], torch.cat([p.detach().flatten() for p in network.parameters()]), atol=1e-2)

"""Accumulated batches have the gradient of one large batch, also where their pairs, weights or pixels differ."""

import copy
import warnings
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn

from segdpo import PreferenceLoss
from segdpo.data import RankingDataset, SupervisedDataset
from segdpo.losses import RewardLoss, bradley_terry, objectives
from segdpo.training import FrozenCopy, PreferenceTask, RewardTask, SupervisedTask, cross_entropy

EXACT = {"rtol": 1e-10, "atol": 1e-12}


class Rewards(nn.Module):
    """A reward of the image and the mask."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(4, 1, 3, padding=1)

    def forward(self, image, masks, image_index):
        planes = masks.masked_fill(masks == 255, 0)[:, None].to(image)
        return self.conv(torch.cat([image[image_index], planes], 1)).square().mean((1, 2, 3))


def task_of(kind, network, hinge, sgd):
    if kind == "supervised":
        return SupervisedTask(copy.deepcopy(network), cross_entropy, sgd, hold_statistics=True)
    if kind == "reward":
        return RewardTask(Rewards(), RewardLoss(bradley_terry), sgd)
    return PreferenceTask(copy.deepcopy(network), FrozenCopy(network), hinge, sgd)


@pytest.mark.parametrize("clip", [None, 0.05])
@pytest.mark.parametrize("kind", ["preference", "supervised", "reward"])
def test_accumulated_batches_are_one_batch(kind, clip, network, data, fit, hinge):
    found = []
    sgd = partial(torch.optim.SGD, lr=0.3, momentum=0.9)
    for batch_size, times in ((6, 1), (2, 3)):
        torch.manual_seed(0)
        # Images have one to three pairs, of several weights, and ignore different numbers of pixels.
        options = {"items": partial(SupervisedDataset, target="a")} if kind == "supervised" else {}
        task = task_of(kind, network, hinge, sgd)
        # Twelve images in an epoch, so that every window is full.
        module = data(val=0.25, batch_size=batch_size, **options)
        fit(task, module, precision="64-true", accumulate_grad_batches=times, max_steps=4, gradient_clip_val=clip)
        found.append(torch.cat([parameter.detach().flatten() for parameter in task.parameters()]))
    # Cross-entropy is computed in float32.
    torch.testing.assert_close(*found, **({"rtol": 1e-5, "atol": 1e-7} if kind == "supervised" else EXACT))


def test_the_last_window_of_an_epoch_may_be_shorter(network, data, fit, hinge, sgd):
    """Twelve images in batches of four, of which two make a step: the second step has one batch."""
    weights = []
    for times in (2, 1):
        module = data(val=0.25, batch_size=4, views=1)
        task = PreferenceTask(copy.deepcopy(network), FrozenCopy(network), hinge, sgd)
        if times == 2:
            fit(task, module, precision="64-true", accumulate_grad_batches=2, max_epochs=1, max_steps=-1)
        else:  # the same steps by hand
            task.double()
            batches = [replace(b, image=b.image.double()) for b in module.train_dataloader()]
            optimizer = torch.optim.SGD(task.policy.parameters(), lr=0.1)
            for window in (batches[:2], batches[2:]):
                sums = []
                for batch in window:
                    scored = task._score(batch, watch=False)
                    terms = task._compute_loss(scored, batch.weight)
                    sums.append((terms.sum, terms.weight))
                optimizer.zero_grad()
                (sum(total for total, _ in sums) / sum(weight for _, weight in sums)).backward()
                optimizer.step()
        weights.append(torch.cat([parameter.detach().flatten() for parameter in task.policy.parameters()]))
    torch.testing.assert_close(*weights, **EXACT)


class Ignored:
    """Records whose masks ignore every pixel in all but the last."""

    classes = ("background", "object")

    def __init__(self, noise, known):
        self.noise, self.known = noise, known

    def __len__(self):
        return len(self.noise)

    def __getitem__(self, i):
        record = self.noise[i]
        if i in self.known:
            return record
        return replace(record, masks=record.masks * 0 + 255, gold=record.gold * 0 + 255)


@pytest.mark.parametrize("kind", ["preference", "ranking", "supervised", "reward"])
def test_a_batch_without_a_pixel_that_counts_changes_nothing(kind, network, data, noise, fit, hinge, sgd):
    items = {
        "supervised": {"items": partial(SupervisedDataset, target="a")},
        "ranking": {"items": partial(RankingDataset, length=3)},
    }
    task = task_of(kind, network, hinge, sgd)
    before = [parameter.detach().clone() for parameter in task.parameters()]
    module = data(Ignored(noise(), ()), val=0.0, **items.get(kind, {}))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("default")
        warnings.filterwarnings("ignore", module="lightning")
        trainer = fit(task, module, max_steps=3)
    assert len([one for one in told if "its loss is 0" in str(one.message)]) == 1
    assert trainer.global_step == 3
    for parameter, old in zip(task.parameters(), before, strict=True):
        assert torch.equal(parameter, old)
    assert float(trainer.logged_metrics.get("train/loss", 0.0)) == 0.0


def test_among_other_batches_it_counts_for_nothing(network, data, noise, fit, sgd):
    """A step of 16 images one by one, of which four count, is one of a batch of 16."""
    found = []
    loss = PreferenceLoss(partial(objectives.dpo, beta=3.0))
    for batch_size, times in ((16, 1), (1, 16)):
        module = data(Ignored(noise(), (0, 1, 2, 3)), val=0.0, batch_size=batch_size)
        task = PreferenceTask(copy.deepcopy(network), FrozenCopy(network), loss, sgd)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Expected (pixels that count|at least one valid pixel)")
            fit(task, module, precision="64-true", accumulate_grad_batches=times, max_steps=1)
        found.append(torch.cat([parameter.detach().flatten() for parameter in task.policy.parameters()]))
    torch.testing.assert_close(*found, **EXACT)

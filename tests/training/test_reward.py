"""RewardTask: rewards of the masks of a batch, margins of the judge, rewards that are not finite."""

from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from segdpo.data import PairBatch, RankingDataset
from segdpo.losses import RewardLoss, bradley_terry, plackett_luce
from segdpo.training import NonFiniteLossError, RewardTask, rewards_of
from segdpo.training.reward import gap_of, in_order


class Weighted(nn.Module):
    """Image · foreground, weighed pixel by pixel: another number for every mask and image; counts its masks."""

    def __init__(self, scale=1.0):
        super().__init__()
        self.weights = nn.Parameter(torch.linspace(-1, 1, 64).view(8, 8))
        self.scale, self.asked = scale, 0

    def forward(self, image, masks, image_index):
        self.asked += len(masks)
        return self.scale * (image[image_index, 0] * (masks == 1) * self.weights).sum((1, 2)) / 10


def batches(module):
    module.setup("fit")
    return list(module.train_dataloader())


def by_hand(network, batch, image, mask):
    mask = np.where(batch.valid[image].numpy(), mask.numpy(), 255)
    weights = network.weights.detach().double().numpy()
    return (batch.image[image, 0].double().numpy() * (mask == 1) * weights).sum() / 10


@pytest.mark.parametrize("shared", [True, False])
def test_the_rewards_of_pairs(data, shared):
    network = Weighted()
    for batch in batches(data(batch_size=12)):
        assert isinstance(batch, PairBatch)
        if not shared:
            batch.shared = None
        network.asked = 0
        rewards = rewards_of(network, batch).detach().numpy()
        expected = [
            [by_hand(network, batch, i, chosen), by_hand(network, batch, i, rejected)]
            for i, chosen, rejected in zip(batch.image_index.tolist(), batch.chosen, batch.rejected, strict=True)
        ]
        np.testing.assert_allclose(rewards, expected, rtol=1e-5, atol=1e-6)
        assert network.asked == (len(batch.shared.masks) if batch.shared else 2 * len(batch.chosen))


def test_the_rewards_of_rankings(data):
    network = Weighted()
    for batch in batches(data(items=partial(RankingDataset, length=3))):
        rewards = rewards_of(network, batch).detach().numpy()
        expected = [[by_hand(network, batch, i, mask) for mask in masks] for i, masks in enumerate(batch.ranking)]
        np.testing.assert_allclose(rewards, expected, rtol=1e-5, atol=1e-6)


def test_order_counts_ties_half():
    rewards = torch.tensor([[3.0, 2.0, 1.0], [1.0, 2.0, 3.0], [2.0, 2.0, 3.0]])
    np.testing.assert_allclose(in_order(rewards).numpy(), [1, 0, 0.5 / 3], rtol=1e-6)


def test_the_gap_of_a_pair_is_the_judges(data):
    judged = {f"noise{i}": np.array([0.9, 0.5, 0.75, 0.25]) + i for i in range(16)}
    gaps = {(0, 1): 0.4, (2, 1): 0.25, (0, 3): 0.65}
    for batch in batches(data()):
        expected = [gaps[tuple(pair)] for pair in batch.pair_masks.tolist()]
        np.testing.assert_allclose(gap_of(batch, judged).numpy(), expected, rtol=1e-5)


@pytest.mark.parametrize("objective", [bradley_terry, plackett_luce])
def test_what_is_logged_is_what_the_pairs_say(data, fit, sgd, objective):
    module = data()
    task = RewardTask(Weighted(), RewardLoss(objective, centring=0.01), sgd)
    trainer = fit(task, module, max_steps=8)
    (logged,) = trainer.validate(task, datamodule=module, verbose=False)
    values, weights = [], []
    for batch in module.val_dataloader():
        with torch.no_grad():
            rewards = rewards_of(task.network, batch).double().numpy()
        ahead = rewards[:, 0] - rewards[:, 1]
        values.append(np.stack([np.log1p(np.exp(-ahead)), ahead > 0, ahead, rewards[:, 1]]))
        weights.append(batch.weight.numpy())
    names = ("loss/objective", "pairs/accuracy", "reward/margin", "reward/rejected")
    expected = np.average(np.concatenate(values, 1), axis=1, weights=np.concatenate(weights))
    for name, value in zip(names, expected, strict=True):
        assert logged[f"val/{name}"] == pytest.approx(value, rel=1e-4, abs=1e-5), name


def test_training_learns_its_own_pairs(data, fit):
    module = data(val=0.0)
    task = RewardTask(Weighted(), RewardLoss(bradley_terry), partial(torch.optim.Adam, lr=0.05))
    before = np.mean([in_order(rewards_of(task.network, batch)).mean().item() for batch in batches(module)])
    fit(task, module, max_steps=100)
    after = np.mean([in_order(rewards_of(task.network, batch)).mean().item() for batch in batches(module)])
    assert before < 0.8
    assert after > 0.9


def test_a_margin_without_scores_says_so(data, fit, sgd):
    task = RewardTask(Weighted(), RewardLoss(bradley_terry, margin_per_gap=1.0), sgd)
    with pytest.raises(ValueError, match=r"judge's gap of each pair .*Step 0, images: noise"):
        fit(task, data())


@pytest.mark.parametrize("scale", [float("nan"), float("inf")])
def test_rewards_that_are_not_finite_name_the_images(data, fit, sgd, scale):
    task = RewardTask(Weighted(scale), RewardLoss(bradley_terry), sgd)
    with pytest.raises((ValueError, NonFiniteLossError), match=r"NaN or infinite.*noise"):
        fit(task, data())

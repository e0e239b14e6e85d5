"""Gains in IoU with held-out masks: against NumPy, and the start is asked once for each batch."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from segdpo.data import RankingDataset
from segdpo.training import FrozenCopy, NoReference, PreferenceTask
from segdpo.training.held_out import HeldOutGains


class Counting(nn.Module):
    calls = 0

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, image):
        Counting.calls += 1
        return self.network(image)


def iou_in_numpy(prediction, mask, known):
    both = (prediction & (mask == 1) & known).sum()
    either = ((prediction | (mask == 1)) & known).sum()
    return both / either if either else 1.0


def by_hand(network, batch):
    """IoU with the chosen mask and the margin of each pair, in NumPy."""
    with torch.no_grad():
        predicted = network.eval()(batch.image)[:, 0].numpy() > 0
    rows = []
    for image, chosen, rejected in zip(
        batch.image_index.tolist(), batch.chosen.numpy(), batch.rejected.numpy(), strict=True
    ):
        known = (chosen != 255) & (rejected != 255) & batch.valid[image].numpy()
        with_chosen, with_rejected = (iou_in_numpy(predicted[image], mask, known) for mask in (chosen, rejected))
        rows.append((with_chosen, with_chosen - with_rejected))
    return np.array(rows)


def test_gains_are_those_of_numpy(network, data):
    batch = next(iter(data().val_dataloader()))
    start, policy = copy.deepcopy(network).eval(), copy.deepcopy(network).eval()
    nn.init.normal_(policy[0].weight)
    found = HeldOutGains(start)(policy(batch.image), batch)
    expected = by_hand(policy, batch) - by_hand(start, batch)
    np.testing.assert_allclose(found["chosen_iou"], expected[:, 0], atol=1e-6)
    np.testing.assert_allclose(found["iou_margin"], expected[:, 1], atol=1e-6)
    assert np.abs(expected).max() > 0.05
    alone = HeldOutGains()(policy(batch.image), batch)
    np.testing.assert_allclose(alone["iou_margin"], by_hand(policy, batch)[:, 1], atol=1e-6)


@pytest.mark.parametrize("reference", [FrozenCopy, NoReference])
def test_the_mean_is_logged_and_the_start_predicts_once(reference, network, data, fit, sgd, dpo, request):
    from segdpo import PreferenceLoss
    from segdpo.losses import anchors, objectives  # noqa: F401

    loss = dpo if reference is FrozenCopy else PreferenceLoss(lambda policy: -policy.margin)
    Counting.calls = 0
    task = PreferenceTask(copy.deepcopy(network), reference(network), loss, sgd, start=Counting(network))
    module = data()
    trainer = fit(task, module, max_steps=9)  # three epochs
    batches = list(module.val_dataloader())
    assert Counting.calls == len(batches)
    rows = np.concatenate([by_hand(task.policy, batch) - by_hand(network, batch) for batch in batches])
    weights = np.concatenate([batch.weight for batch in batches])
    means = (rows * weights[:, None]).sum(0) / weights.sum()
    logged = trainer.callback_metrics
    assert float(logged["val/pairs/chosen_iou"]) == pytest.approx(means[0], abs=1e-6)
    assert float(logged["val/pairs/iou_margin"]) == pytest.approx(means[1], abs=1e-6)
    assert float(logged["val/pairs/iou_gain"]) == pytest.approx(means.min(), abs=1e-6)


def test_a_policy_that_has_not_moved_gains_nothing(network, data, fit, dpo):
    from functools import partial

    still = partial(torch.optim.SGD, lr=0.0)
    task = PreferenceTask(copy.deepcopy(network), FrozenCopy(network), dpo, still, start=network)
    logged = fit(task, data(), max_steps=3).callback_metrics
    assert logged["val/pairs/iou_gain"] == logged["val/pairs/chosen_iou"] == logged["val/pairs/iou_margin"] == 0


def test_of_a_ranking_the_best_and_the_worst_mask_count(network, data):
    from functools import partial

    batch = next(iter(data(items=partial(RankingDataset, length=3)).val_dataloader()))
    logits = network.eval()(batch.image)
    found = HeldOutGains()(logits, batch)["iou_margin"]
    predicted = logits[:, 0].detach().numpy() > 0
    for image, value in enumerate(found.tolist()):
        best, worst = batch.ranking[image, 0].numpy(), batch.ranking[image, -1].numpy()
        known = (best != 255) & (worst != 255)
        expected = iou_in_numpy(predicted[image], best, known) - iou_in_numpy(predicted[image], worst, known)
        assert value == pytest.approx(expected, abs=1e-6)

"""Supervised training against a bare loop, and over pixels and images."""

import copy
import math
from functools import partial

import numpy as np
import pytest
import torch

from segdpo.data import PreferenceDataset, SupervisedDataset
from segdpo.training import SupervisedTask, cross_entropy


@pytest.fixture
def supervised(data):
    def make(target="any", **options):
        gold = partial(SupervisedDataset, target="gold")
        return data(items=partial(SupervisedDataset, target=target), eval_items=gold, **options)

    return make


@pytest.mark.parametrize("target", ["any", "mean"])
def test_the_task_is_a_bare_loop(target, network, supervised, fit):
    network[3].p = 0.0  # draws nothing
    bare = copy.deepcopy(network).train()
    task = SupervisedTask(network.eval(), cross_entropy, partial(torch.optim.AdamW, lr=0.01))
    logged = fit(task, supervised(target, val=0), max_steps=4).callback_metrics
    optimizer = torch.optim.AdamW(bare.parameters(), lr=0.01)
    loader = supervised(target, val=0).train_dataloader()
    for batch in loader:
        loss = cross_entropy(bare(batch.image), batch.target, batch.valid)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(logged["train/loss"]) == pytest.approx(float(loss.detach()), abs=1e-6)
    for own, other in zip(network.state_dict().values(), bare.state_dict().values(), strict=True):
        assert torch.allclose(own, other, atol=1e-6)
    assert {name.split(".")[0] for name in task.state_dict()} == {"network"}


def test_validation_is_over_pixels_and_images(network, supervised, fit):
    task = SupervisedTask(network, cross_entropy, partial(torch.optim.SGD, lr=0.0))
    module = supervised(batch_size=3)
    logged = fit(task, module, max_steps=4).callback_metrics
    costs, overlaps = [], []
    network.eval()
    for batch in module.val_dataloader():
        with torch.no_grad():
            logits = network(batch.image)[:, 0].double().numpy()
        gold = batch.gold.numpy()
        costs += np.logaddexp(0, np.where(gold == 1, -logits, logits)).ravel().tolist()
        both, either = (logits > 0) & (gold == 1), (logits > 0) | (gold == 1)
        overlaps += (2 * both.sum((1, 2)) / (both.sum((1, 2)) + either.sum((1, 2)))).tolist()
    assert float(logged["val/loss"]) == pytest.approx(np.mean(costs), rel=1e-5)
    assert float(logged["val/dice"]) == pytest.approx(np.mean(overlaps), rel=1e-5)


def test_validation_on_pairs_has_the_loss_of_gold(network, supervised, data, fit):
    found = []
    for module in (supervised(), data(items=partial(SupervisedDataset, target="gold"), eval_items=PreferenceDataset)):
        task = SupervisedTask(copy.deepcopy(network), cross_entropy, partial(torch.optim.SGD, lr=0.0))
        found.append(fit(task, module, max_steps=4).callback_metrics)
    alone, pairs = found
    assert float(pairs["val/loss"]) == pytest.approx(float(alone["val/loss"]), rel=1e-6)
    assert "val/pairs/iou_gain" in pairs


def test_a_test_batch_is_predicted_once(network, supervised, fit):
    task = SupervisedTask(network, cross_entropy, partial(torch.optim.SGD, lr=0.0))
    trainer = fit(task, supervised(test=0.25), max_steps=1)
    seen = []
    network.register_forward_hook(lambda module, given, made: seen.append(len(made)))
    module = trainer.datamodule
    trainer.test(task, datamodule=module, verbose=False)
    assert sum(seen) == len(module.splits.test) > 0


def test_a_loss_that_is_no_number_stops(network, supervised, fit, sgd):
    task = SupervisedTask(network, lambda logits, target, valid: logits.mean() * math.nan, sgd)
    with pytest.raises(ValueError, match=r"at step 0 loss became NaN .* images noise\d+, .* lower the learning rate"):
        fit(task, supervised())

"""PreferenceTask: its start at the reference, twenty steps against a bare loop, what it logs, and errors."""

import copy
import math
import weakref
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from lightning.pytorch import Callback
from torch import nn

from segdpo import Anchor, PreferenceLoss
from segdpo.data import RankingDataset
from segdpo.kernels import sparse as sums
from segdpo.losses import anchors, listwise, objectives
from segdpo.training import FrozenCopy, NoReference, PreferenceTask, Reference

CONF = Path(__file__).parents[2] / "conf"
LOSSES = sorted(path.stem for path in (CONF / "loss").glob("*.yaml"))


def composed(name):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("train", overrides=[f"loss={name}"])
    return config.beta, instantiate(config.loss)


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_starts_at_the_value_of_its_formula(name, network, data, fit, sgd):
    beta, loss = composed(name)
    if not loss.needs_reference:
        pytest.skip("needs no reference")
    task = PreferenceTask(copy.deepcopy(network), FrozenCopy(network), loss, sgd, starts_at_reference=True)
    logged = fit(task, data(), max_steps=1).callback_metrics
    assert logged["train/pairs/margin"] == 0
    assert logged["train/pairs/chosen_gain"] == 0
    # h = 0: a logistic loss is ln 2, a hinge 1, a square its target's.
    expected = {"ipo": 1 / (2 * beta) ** 2, "slic": 1.0}.get(name, math.log(2))
    assert logged["train/loss/objective"] == pytest.approx(expected, rel=1e-6)
    gains = {"calibrated_hinge": 0.0, "hold": 0.0, "calibration": 2 * (1 / (2 * beta)) ** 2}
    for anchor in loss.anchors.keys() & gains:
        assert logged[f"train/loss/{anchor}"] == pytest.approx(gains[anchor], abs=1e-7)


def other_weights(network):
    changed = copy.deepcopy(network)
    nn.init.normal_(changed[0].weight)
    return changed


@pytest.mark.parametrize(
    ("policy", "options", "warns"),
    [
        (copy.deepcopy, {}, False),
        (copy.deepcopy, {"hold_statistics": False}, True),
        (other_weights, {}, True),
        (other_weights, {"starts_at_reference": False}, False),
    ],
)
def test_a_policy_that_starts_elsewhere_gives_a_warning(policy, options, warns, network, data, fit, sgd, dpo):
    given = {"starts_at_reference": True} | options
    task = PreferenceTask(policy(network), FrozenCopy(network), dpo, sgd, **given)
    if warns:
        with pytest.warns(UserWarning, match=r"h = 0 .* but \|h\| is up to .*hold_statistics=true.*same file"):
            fit(task, data(), max_steps=2)
    else:
        fit(task, data(), max_steps=2)


def test_the_reference_is_not_trained_and_not_part_of_the_task(network, data, fit, hinge):
    before = copy.deepcopy(network.state_dict())
    reference = FrozenCopy(network)
    task = PreferenceTask(network, reference, hinge, partial(torch.optim.AdamW, lr=0.1))
    trainer = fit(task, data(), max_steps=5)
    assert all(torch.equal(value, before[name]) for name, value in reference.network.state_dict().items())
    assert not torch.equal(network[0].weight, before["0.weight"])
    trained = {id(p) for group in trainer.optimizers[0].param_groups for p in group["params"]}
    assert trained == {id(p) for p in network.parameters()}
    assert {name.split(".")[0] for name in task.state_dict()} == {"policy"}
    task.train()
    assert not any(part.training for part in reference.network.modules())


def test_hold_statistics_keeps_running_means(network, data, fit, sgd, dpo):
    for hold in (True, False):
        policy = copy.deepcopy(network)
        fit(PreferenceTask(policy, FrozenCopy(network), dpo, sgd, hold_statistics=hold), data(), max_steps=5)
        assert torch.equal(policy[1].running_mean, network[1].running_mean) is hold


def test_twenty_steps(network, data, fit):
    # STORED came from `bare_loop`, run once on its own: float64, no code shared with the task, the scores or the loss.
    task = PreferenceTask(
        copy.deepcopy(network),
        FrozenCopy(network),
        PreferenceLoss(partial(objectives.dpo, beta=3.0), {"nll": Anchor(0.5, anchors.nll)}),
        partial(torch.optim.SGD, lr=0.5, momentum=0.9),
    )
    logged = fit(task, data(val=0.0), max_steps=20).callback_metrics
    assert float(logged["train/loss"]) == pytest.approx(STORED, abs=1e-4)
    assert bare_loop(network, data(val=0.0)) == pytest.approx(STORED, abs=1e-4)


def bare_loop(network, module):
    """DPO on the image's mean log-likelihood + NLL / 2 in float64; returns the loss of the twentieth step."""
    policy, reference = copy.deepcopy(network).double().eval(), copy.deepcopy(network).double().eval()
    velocity = [torch.zeros_like(p) for p in policy.parameters()]
    loader, step = module.train_dataloader(), 0
    for epoch in range(5):
        loader.order.set_epoch(epoch)
        for batch in loader:
            image = batch.image.double()
            gain, liked = [], []
            for p, i in enumerate(batch.image_index.tolist()):
                chosen, rejected = batch.chosen[p], batch.rejected[p]
                counts = batch.valid[i] & (chosen != 255) & (rejected != 255)

                def mean(logits, mask, counts=counts):
                    signed = torch.where(mask.bool(), logits, -logits)
                    return F.logsigmoid(signed)[counts].mean()

                ours, theirs = policy(image[i : i + 1])[0, 0], reference(image[i : i + 1])[0, 0].detach()
                gain.append(mean(ours, chosen) - mean(ours, rejected) - mean(theirs, chosen) + mean(theirs, rejected))
                liked.append(mean(ours, chosen))
            loss = torch.log1p(torch.exp(-3.0 * torch.stack(gain))) - 0.5 * torch.stack(liked)
            weight = batch.weight.double()
            total = (weight * loss).sum() / weight.sum()
            gradients = torch.autograd.grad(total, list(policy.parameters()))
            with torch.no_grad():
                for p, v, g in zip(policy.parameters(), velocity, gradients, strict=True):
                    v.mul_(0.9).add_(g)
                    p.sub_(0.5 * v)
            step += 1
            if step == 20:
                return float(total)
    raise AssertionError("fewer than twenty steps")


STORED = 0.7667057


def test_validation_counts_pairs_by_weight_and_images_once(network, data, fit, hinge, sgd):
    reference = FrozenCopy(other_weights(network))
    task = PreferenceTask(copy.deepcopy(network), reference, hinge, partial(torch.optim.SGD, lr=0.0))
    module = data(batch_size=3)
    logged = fit(task, module, max_steps=4, check_val_every_n_epoch=1).callback_metrics
    weights, h, gain, lost, overlaps, kl = [], [], [], [], [], []
    for batch in module.val_dataloader():
        with torch.no_grad():
            ours, theirs = (m.eval()(batch.image)[:, 0].double().numpy() for m in (network, reference.network))
        for p, i in enumerate(batch.image_index.tolist()):
            chosen, rejected = batch.chosen[p].numpy(), batch.rejected[p].numpy()
            counts = (chosen != 255) & (rejected != 255)
            differ = counts & (chosen != rejected)
            log_p = [-np.logaddexp(0, np.where(chosen == 1, -z[i], z[i])) for z in (ours, theirs)]
            log_q = [-np.logaddexp(0, np.where(rejected == 1, -z[i], z[i])) for z in (ours, theirs)]
            h.append(np.subtract(*((a - b)[differ].mean() for a, b in zip(log_p, log_q, strict=True))))
            gain.append(log_p[0][counts].mean() - log_p[1][counts].mean())
            lost.append(log_q[0][counts].mean() - log_q[1][counts].mean())
            weights.append(float(batch.weight[p]))
        q, p = (1 / (1 + np.exp(-z)) for z in (theirs, ours))
        divergence = q * np.log(q / p) + (1 - q) * np.log((1 - q) / (1 - p))
        kl += [image[valid].mean() for image, valid in zip(divergence, batch.valid.numpy(), strict=True)]
        for logits, gold in zip(ours, batch.gold.numpy(), strict=True):
            overlaps.append(((logits > 0) & (gold == 1)).sum() / ((logits > 0) | (gold == 1)).sum())
    assert float(logged["val/pairs/margin"]) == pytest.approx(np.average(h, weights=weights), abs=1e-5)
    assert float(logged["val/pairs/chosen_gain"]) == pytest.approx(np.average(gain, weights=weights), abs=1e-5)
    assert float(logged["val/pairs/rejected_gain"]) == pytest.approx(np.average(lost, weights=weights), abs=1e-5)
    assert float(logged["val/pairs/kl"]) == pytest.approx(np.mean(kl), abs=1e-5)
    assert float(logged["val/pairs/accuracy"]) == pytest.approx(np.average(np.array(h) > 0, weights=weights), abs=1e-6)
    assert float(logged["val/iou"]) == pytest.approx(np.mean(overlaps), abs=1e-6)
    dpo = np.average(np.logaddexp(0, -3 * np.array(h)), weights=weights)
    assert float(logged["val/loss/objective"]) == pytest.approx(dpo, abs=1e-5)
    assert float(logged["val/loss"]) == pytest.approx(dpo + 2 * float(logged["val/loss/hinge"]), abs=1e-5)


class Order(Callback):
    """Writes down whose forward comes when, and whether the reference's logits are still there."""

    def __init__(self, policy, reference):
        self.seen, self.logits = [], lambda: None
        policy.register_forward_pre_hook(lambda *_: self.seen.append(("policy", self.logits() is not None)))
        reference.register_forward_hook(self.note)

    def note(self, module, inputs, output):
        self.seen.append(("reference", False))
        self.logits = weakref.ref(output)


@pytest.mark.parametrize("needed", [False, True])
def test_the_references_logits_are_freed_before_the_policys_forward(needed, network, data, fit, sgd, dpo):
    hold = PreferenceLoss(dpo.objective, {"hold": Anchor(1.0, anchors.hold)}, score=dpo.score)
    reference = FrozenCopy(network)
    order = Order(network, reference.network)
    fit(PreferenceTask(network, reference, hold if needed else dpo, sgd), data(), max_steps=2, limit_val_batches=0)
    assert order.seen == [("reference", False), ("policy", needed)] * 2


def test_what_the_loss_does_not_read_is_computed_only_for_the_log(network, data, fit, sgd, dpo, monkeypatch):
    calls, whole = [], sums.plane_sums
    monkeypatch.setattr(sums, "plane_sums", lambda *a: calls.append(1) or whole(*a))
    task = PreferenceTask(copy.deepcopy(network), FrozenCopy(network), dpo, sgd)
    fit(task, data(), max_steps=5, log_every_n_steps=4, limit_val_batches=0)
    assert len(calls) == 2  # s⁺ of the policy and of the reference, at the fourth step


def test_logged_numbers_are_means_since_the_last_log(network, data, fit, dpo):
    each, some = {}, {}
    for every, found in ((1, each), (3, some)):
        task = PreferenceTask(copy.deepcopy(network), FrozenCopy(network), dpo, partial(torch.optim.SGD, lr=1.0))

        class Note(Callback):
            def on_train_batch_end(self, trainer, module, *_, found=found):
                found[trainer.global_step] = trainer.callback_metrics.get("train/loss")

        fit(task, data(val=0), max_steps=6, log_every_n_steps=every, callbacks=[Note()])
    weights = [float(batch.weight.sum()) for epoch in range(2) for batch in batches(data(val=0), epoch)]
    for last in (3, 6):
        steps = range(last - 3, last)
        mean = np.average([float(each[s + 1]) for s in steps], weights=[weights[s] for s in steps])
        assert float(some[last]) == pytest.approx(mean, abs=1e-6)


def batches(module, epoch):
    loader = module.train_dataloader()
    loader.order.set_epoch(epoch)
    return list(loader)


def test_a_ranking_of_three_starts_at_ln_6(network, data, fit, sgd):
    loss = PreferenceLoss(partial(listwise.plackett_luce, beta=2.0), {"hold": Anchor(1.0, anchors.hold)})
    task = PreferenceTask(copy.deepcopy(network), FrozenCopy(network), loss, sgd, starts_at_reference=True)
    items = partial(RankingDataset, length=3)
    logged = fit(task, data(items=items), max_steps=1).callback_metrics
    assert float(logged["train/loss"]) == pytest.approx(math.log(6), rel=1e-6)
    assert logged["train/loss/hold"] == 0
    assert logged["train/pairs/chosen_gain"] == 0


class Untouchable(Reference):
    def __call__(self, batch, policy):
        raise AssertionError("asked")


def test_a_loss_that_needs_no_reference_never_calls_one(network, data, fit, sgd):
    loss = PreferenceLoss(partial(objectives.cpo, beta=1.0), {"nll": Anchor(1.0, anchors.nll)})
    logged = fit(PreferenceTask(network, Untouchable(), loss, sgd), data()).callback_metrics
    assert {"train/score/policy_chosen", "train/pairs/margin", "val/pairs/accuracy"} <= logged.keys()
    assert not [name for name in logged if "reference" in name or "chosen_gain" in name]
    assert logged["val/score/policy_margin"] == logged["val/pairs/margin"]


def test_a_loss_that_needs_a_reference_refuses_none(network, dpo, sgd):
    with pytest.raises(ValueError, match="reference=none; use reference=frozen"):
        PreferenceTask(network, NoReference(network), dpo, sgd)


def nan_after(policy, reference, *, steps):
    steps.append(1)
    return (policy.margin - reference.margin) * (math.nan if len(steps) > 2 else 1.0)


def test_a_loss_that_is_not_finite_names_images_and_term(network, data, fit, sgd):
    loss = PreferenceLoss(partial(nan_after, steps=[]))
    task = PreferenceTask(copy.deepcopy(network), FrozenCopy(network), loss, sgd)
    # The first call is the trial when the loss is built.
    with pytest.raises(ValueError, match=r"'objective'.*nan.*Step 1, images: noise\d+, noise\d+, noise\d+, noise\d+"):
        fit(task, data(), limit_val_batches=0)


def test_nothing_to_train_is_an_error(network, data, fit, sgd, dpo):
    task = PreferenceTask(network.requires_grad_(False), FrozenCopy(network), dpo, sgd)
    with pytest.raises(ValueError, match="every one is frozen"):
        fit(task, data())


def test_accumulated_batches_log_the_whole_step(network, data, fit, dpo):
    task = PreferenceTask(copy.deepcopy(network), FrozenCopy(network), dpo, partial(torch.optim.SGD, lr=0.0))
    logged = fit(task, data(val=0, batch_size=4), max_steps=1, accumulate_grad_batches=4).callback_metrics
    whole = fit(
        PreferenceTask(copy.deepcopy(network), FrozenCopy(network), dpo, partial(torch.optim.SGD, lr=0.0)),
        data(val=0, batch_size=16),
        max_steps=1,
    ).callback_metrics
    assert float(logged["train/score/policy_chosen"]) == pytest.approx(
        float(whole["train/score/policy_chosen"]), abs=1e-6
    )

"""Schedules of the learning rate and of β: by hand, with the margins of the batch, and through a checkpoint."""

import copy
import math
from functools import partial

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint

from segdpo import Anchor, PairScores, PreferenceLoss
from segdpo.data import SupervisedDataset
from segdpo.losses import anchors, objectives
from segdpo.training import (
    Adaptive,
    FrozenCopy,
    PreferenceTask,
    SupervisedTask,
    constant,
    cosine,
    cosine_beta,
    linear,
    linear_beta,
)
from segdpo.training.schedules import ScheduledBeta, beta_of

NONE = torch.zeros(())


def test_factors_of_beta_by_hand():
    options = {"first": 0.2, "last": 1.0, "steps": 8}
    assert [linear_beta(step, NONE, **options) for step in (0, 2, 8, 100)] == pytest.approx([0.2, 0.4, 1.0, 1.0])
    # Half a cosine: 1/4 of the steps is (1 − √½)/2 of the way.
    expected = [0.2, 0.2 + 0.8 * (1 - math.sqrt(0.5)) / 2, 0.6, 1.0, 1.0]
    assert [cosine_beta(step, NONE, **options) for step in (0, 2, 4, 8, 100)] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (partial(constant, warmup=0.2), [1 / 3, 2 / 3, *[1.0] * 9]),
        (partial(linear, floor=0.5), [1 - 0.05 * step for step in range(11)]),
        (cosine, [(1 + math.cos(math.pi * step / 10)) / 2 for step in range(11)]),
        (
            partial(cosine, warmup=0.2, floor=0.1),
            [1 / 3, 2 / 3, *(0.1 + 0.45 * (1 + math.cos(math.pi * s / 8)) for s in range(9))],
        ),
        (partial(torch.optim.lr_scheduler.StepLR, step_size=5, gamma=0.1), [1.0] * 5 + [0.1] * 5 + [0.01]),
    ],
)
def test_learning_rates_by_hand(make, expected, network, data, fit):
    rates = []
    optimizer = partial(torch.optim.SGD, lr=2.0)
    task = SupervisedTask(network, lambda logits, *_: 0 * logits.mean(), optimizer, scheduler=make)
    task.on_train_batch_start = lambda *_: rates.append(task.optimizers().param_groups[0]["lr"] / 2)
    trainer = fit(task, data(items=partial(SupervisedDataset, target="any")), max_steps=10)
    rates.append(trainer.optimizers[0].param_groups[0]["lr"] / 2)
    assert rates == pytest.approx(expected)


def test_a_warm_up_of_everything_is_refused():
    with pytest.raises(ValueError, match="a share of the steps, from 0 to below 1, but got 5"):
        constant(torch.optim.SGD([torch.zeros(1)], lr=1.0), steps=10, warmup=5)


def test_adaptive_by_hand():
    rule = Adaptive(alpha=0.5, momentum=0.75, low=0.5, high=2.0)
    # M0 is 0, then 0.25·1 = 0.25, then 0.75·0.25 + 0.25·9 = 2.4375, then 1.578125.
    found = [float(rule(step, torch.tensor(margin))) for step, margin in enumerate((1.0, 9.0, -1.0, 1.578125))]
    assert found == pytest.approx([1.5, 2.0, 0.5, 1.0])


def scores(h):
    return PairScores(torch.tensor(h), torch.zeros(len(h))), PairScores(torch.zeros(len(h)), torch.zeros(len(h)))


def test_beta_changes_in_every_term_and_anchors_keep_their_ratio():
    loss = PreferenceLoss(
        partial(objectives.dpo, beta=2.0, label_smoothing=0.1),
        {
            "calibrated": Anchor(1.0, partial(anchors.calibrated_hinge, beta=1.0, tau=5.0)),
            "nll": Anchor(1.0, anchors.nll),
        },
    )
    bound = ScheduledBeta(loss, partial(linear_beta, first=1.0, last=3.0, steps=2))
    h = np.array([0.5, -1.0])
    for step, factor in enumerate((1.0, 2.0, 3.0)):
        bound.set(step, NONE)
        parts = bound.loss(*scores(h.tolist())).parts
        b = 2.0 * factor
        assert float(bound.value) == b
        dpo = 0.9 * np.logaddexp(0, -b * h) + 0.1 * np.logaddexp(0, b * h)
        np.testing.assert_allclose(parts["objective"], dpo, rtol=1e-6)
        np.testing.assert_allclose(parts["calibrated"], 5 - factor * h, rtol=1e-6)
    np.testing.assert_allclose(loss(*scores([0.0])).parts["objective"], [math.log(2)], rtol=1e-6)
    assert beta_of(loss.objective) == 2.0


@pytest.mark.parametrize("objective", [objectives.sft, partial(objectives.orpo, lam=0.1)])
def test_a_loss_without_beta_is_refused(objective):
    with pytest.raises(ValueError, match=r"none of objective has one; choose beta_schedule=constant"):
        ScheduledBeta(PreferenceLoss(objective), partial(linear_beta, first=0.1, last=1.0, steps=5))


class Betas(Callback):
    def __init__(self):
        self.seen = []

    def on_train_batch_end(self, trainer, *_):
        self.seen.append({name: float(value) for name, value in trainer.callback_metrics.items()})


def run(network, data, fit, dpo, beta, ckpt_path=None, **options):
    task = PreferenceTask(copy.deepcopy(network), FrozenCopy(network), dpo, partial(torch.optim.SGD, lr=1.0), beta=beta)
    betas = Betas()
    fit(task, data(val=0), callbacks=[betas, *options.pop("callbacks", [])], ckpt_path=ckpt_path, **options)
    return betas.seen, task


def test_training_follows_the_curve(network, data, fit, dpo):
    seen, _ = run(network, data, fit, dpo, partial(linear_beta, first=0.5, last=1.0, steps=2), max_steps=4)
    assert [step["train/beta"] for step in seen] == pytest.approx([1.5, 2.25, 3.0, 3.0])


def test_a_constant_factor_changes_nothing(network, data, fit, dpo):
    steady, _ = run(network, data, fit, dpo, partial(linear_beta, first=1.0, last=1.0, steps=1))
    plain, task = run(network, data, fit, dpo, None)
    assert [step["train/loss"] for step in steady] == [step["train/loss"] for step in plain]
    assert "train/beta" not in plain[0]
    assert task.loss is dpo


def test_adaptive_training_sees_the_mean_margin_and_goes_on_after_a_resume(network, data, fit, dpo, tmp_path):
    make = partial(Adaptive, alpha=2.0, momentum=0.5)
    saved = ModelCheckpoint(tmp_path, filename="a", every_n_train_steps=3, save_top_k=-1)
    seen, whole = run(network, data, fit, dpo, make(), max_steps=5, callbacks=[saved], enable_checkpointing=True)
    usual = 0.0
    for step in seen:
        margin = 3.0 * step["train/pairs/margin"]
        factor = min(max(1 + 2.0 * (margin - usual), 0.1), 10.0)
        assert step["train/beta"] == pytest.approx(3.0 * factor, rel=1e-5)
        usual = 0.5 * usual + 0.5 * margin
    assert len({step["train/beta"] for step in seen}) > 3
    again, resumed = run(network, data, fit, dpo, make(), ckpt_path=tmp_path / "a.ckpt", max_steps=5)
    assert again == seen[3:]
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))

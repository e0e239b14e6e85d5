"""Supervised losses by hand, and what they say of bad input."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from segmentation_models_pytorch import losses as smp
from torch import nn

from segdpo.training import cross_entropy, dice, smp_loss, weighted_sum

CONF = Path(__file__).parents[2] / "conf"


@pytest.fixture(params=[1, 2, 4], ids=lambda channels: f"{channels} channels")
def case(request):
    """Logits, targets with ignored pixels, valid pixels, and the probabilities in float64."""
    channels, rng = request.param, np.random.default_rng(0)
    logits = rng.normal(size=(3, channels, 5, 6))
    classes = max(2, channels)
    target = rng.integers(0, classes, (3, 5, 6)).astype(np.uint8)
    valid = rng.random((3, 5, 6)) > 0.3
    target[0, 0] = 255
    valid[0, 0] = False
    chances = 1 / (1 + np.exp(-logits)) if channels == 1 else np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    if channels == 1:
        chances = np.concatenate([1 - chances, chances], 1)
    given = torch.tensor(logits, dtype=torch.float32), torch.from_numpy(target), torch.from_numpy(valid)
    return given, chances, classes


def test_cross_entropy(case):
    (logits, target, valid), chances, _ = case
    t, v = target.numpy(), valid.numpy()
    images, rows, columns = np.nonzero(v)
    expected = -np.log(chances[images, t[v], rows, columns]).mean()
    assert float(cross_entropy(logits, target, valid)) == pytest.approx(expected, rel=1e-5)


def test_shares_of_raters(case):
    (logits, _, valid), chances, classes = case
    shares = np.random.default_rng(1).dirichlet(np.ones(classes), (3, 5, 6)).transpose(0, 3, 1, 2)
    expected = -(shares * np.log(chances)).sum(1)[valid.numpy()].mean()
    given = torch.tensor(shares, dtype=torch.float32)
    assert float(cross_entropy(logits, given, valid)) == pytest.approx(expected, rel=1e-5)
    with pytest.raises(ValueError, match=r"model.classes=7"):
        cross_entropy(logits, torch.rand(3, 7, 5, 6), valid)


def test_one_rater_as_shares_is_the_same_as_class_ids(case):
    (logits, target, valid), _, classes = case
    known = target.masked_fill(~valid, 0).long()
    shares = nn.functional.one_hot(known, classes).movedim(-1, 1).float()
    for loss in (cross_entropy, dice):
        assert float(loss(logits, shares, valid)) == pytest.approx(float(loss(logits, target, valid)), rel=1e-6)


def test_dice(case):
    (logits, target, valid), chances, classes = case
    costs = []
    for image in range(3):
        v = valid[image].numpy()
        for c in range(1 if logits.shape[1] == 1 else 0, classes):
            p, y = chances[image, c][v], target[image].numpy()[v] == c
            costs.append(1 - (2 * p[y].sum() + 3) / (p.sum() + y.sum() + 3))
    assert float(dice(logits, target, valid, smooth=3.0)) == pytest.approx(np.mean(costs), rel=1e-5)


def test_a_sum_of_losses(case):
    (logits, target, valid), *_ = case
    both = partial(weighted_sum, losses={"a": cross_entropy, "b": dice}, weights={"a": 2.0, "b": 0.5})
    expected = 2 * cross_entropy(logits, target, valid) + 0.5 * dice(logits, target, valid)
    assert float(both(logits, target, valid)) == pytest.approx(float(expected), rel=1e-6)
    with pytest.raises(ValueError, match="a weight for each of the losses a but got weights for b"):
        weighted_sum(logits, target, valid, losses={"a": dice}, weights={"b": 1.0})


def test_losses_of_smp(case):
    (logits, target, valid), chances, _ = case
    t, v = target.numpy(), valid.numpy()
    images, rows, columns = np.nonzero(v)
    p = chances[images, t[v], rows, columns]
    focal = smp_loss(logits, target, valid, loss=partial(smp.FocalLoss, gamma=2.0))
    if logits.shape[1] == 1:
        # smp averages the binary form over the valid pixels, the other over classes one by one.
        assert float(focal) == pytest.approx((-((1 - p) ** 2) * np.log(p)).mean(), rel=1e-4)
    soft = smp.SoftBCEWithLogitsLoss if logits.shape[1] == 1 else smp.SoftCrossEntropyLoss
    if logits.shape[1] == 1:
        masked = soft(ignore_index=255, reduction="none")(logits[:, 0], target.masked_fill(~valid, 255).float())
        assert float(masked.sum() / valid.sum()) == pytest.approx(-np.log(p).mean(), rel=1e-5)
    for name in ("DiceLoss", "TverskyLoss", "LovaszLoss"):
        value = smp_loss(logits, target, valid, loss=getattr(smp, name))
        other = target.masked_fill(~valid, 1)  # what is ignored may say anything
        assert torch.isfinite(value)
        assert value == smp_loss(logits, other, valid, loss=getattr(smp, name))


def test_a_loss_of_smp_that_cannot_ignore_says_so(case):
    (logits, target, valid), *_ = case
    with pytest.raises(ValueError, match="JaccardLike cannot ignore any"):
        smp_loss(logits, target, valid, loss=JaccardLike)
    with pytest.raises(ValueError, match=r"datamodule.items.target=any"):
        smp_loss(logits, torch.rand(3, 2, 5, 6), valid, loss=smp.DiceLoss)


class JaccardLike(nn.Module):
    def __init__(self, mode):
        super().__init__()


@pytest.mark.parametrize("path", sorted((CONF / "sft_loss").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_yaml_gives_a_loss_that_falls(path, case):
    (logits, target, valid), *_ = case
    with initialize_config_dir(str(CONF), version_base="1.3"):
        loss = instantiate(compose("train", overrides=[f"sft_loss={path.stem}"]).sft_loss)
    worse = loss(logits, target, valid)
    step = logits.clone().requires_grad_()
    loss(step, target, valid).backward()
    assert loss(logits - 5 * step.grad, target, valid) < worse
    assert (step.grad[:, :, 0][0] == 0).all()  # ignored pixels

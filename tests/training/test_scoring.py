"""Training on logits before their upsampling: the same losses and weights as by the plain path."""

import copy
from functools import partial

import pytest
import torch
from lightning.pytorch import Callback
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from segdpo import Anchor, PreferenceLoss, Score
from segdpo.data import PairBatch, RankingDataset
from segdpo.kernels import LowResolution, pair_index
from segdpo.kernels import low_resolution as bands
from segdpo.losses import anchors, listwise, objectives
from segdpo.models import Segmenter, add_lora
from segdpo.training import AdapterOff, CachedScores, FrozenCopy, Moving, PreferenceTask, Reference
from segdpo.training import scoring as low_resolution


class Losses(Callback):
    def __init__(self):
        self.seen = []

    def on_train_batch_end(self, trainer, module, *_):
        self.seen.append(float(trainer.callback_metrics["train/loss"]))


@pytest.fixture
def small():
    """Logits at a quarter of the size, of images that are padded from 10 to 12 pixels."""
    torch.manual_seed(3)
    network = nn.Sequential(
        nn.Conv2d(3, 6, 3, stride=2, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 1, 3, stride=2, padding=1)
    )
    network.train()(torch.randn(8, 3, 12, 12) * 2 + 1)
    return Segmenter(network, classes=2, multiple=4)


@pytest.fixture
def trained(small, data, noise, fit, monkeypatch):
    """Train five steps either way; return losses, weights, and which logits were scored while training."""
    asked = []
    ask = low_resolution.low_resolution_pairs
    monkeypatch.setattr(low_resolution, "low_resolution_pairs", lambda *a, **k: asked.append(1) or ask(*a, **k))

    def run(loss, make=FrozenCopy, adapted=False, low=True, **options):
        torch.manual_seed(0)
        policy = copy.deepcopy(small)
        policy = add_lora(policy, rank=2) if adapted else policy
        optimizer = partial(torch.optim.SGD, lr=0.05)
        task = PreferenceTask(
            policy, make(small), loss, optimizer, starts_at_reference=make is not Moving, low_resolution=low
        )
        losses = Losses()
        logged = fit(task, data(noise(size=10), **options), max_steps=5, callbacks=[losses]).callback_metrics
        numbers = [*losses.seen, *(float(value) for name, value in sorted(logged.items()))]
        return numbers, list(task.policy.state_dict().values()), len(asked)

    return run


def assert_same(one, other):
    assert one[0] == pytest.approx(other[0], abs=1e-5)
    for ours, plain in zip(one[1], other[1], strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("score", [Score(region="disagreement"), Score(quantity="log_odds", region="boundary")])
def test_five_steps_of_dpo_with_a_hinge_and_a_hold(trained, score):
    loss = PreferenceLoss(
        partial(objectives.dpo, beta=3.0),
        {"hinge": Anchor(2.0, partial(anchors.hinge, tau=0.2), Score()), "hold": Anchor(1.0, anchors.hold)},
        score=score,
    )
    plain, low = trained(loss, low=False), trained(loss)
    assert plain[2] == 0 < low[2]
    assert len(set(plain[0][:5])) == 5
    assert_same(low, plain)


@pytest.mark.parametrize("make", ["off", "cached", "moving"])
def test_every_reference_answers_at_low_resolution(make, trained, hinge, tmp_path):
    """A cache answers with its scores, which were taken the plain way."""
    makes = {"off": AdapterOff, "cached": partial(CachedScores, folder=tmp_path), "moving": partial(Moving, decay=0.5)}
    options = {"make": makes[make], "adapted": make == "off"}
    assert_same(trained(hinge, **options), trained(hinge, low=False, **options))


def test_rankings(trained):
    loss = PreferenceLoss(partial(listwise.plackett_luce, beta=2.0), {"hold": Anchor(1.0, anchors.hold)})
    items = partial(RankingDataset, length=3)
    assert_same(trained(loss, items=items), trained(loss, low=False, items=items))


def test_a_training_step_allocates_nothing_of_the_images_size_and_all_classes(monkeypatch, sgd, hinge):
    """From the networks' logits to their gradient, without what the networks themselves allocate."""
    monkeypatch.setattr(bands, "CPU_BAND", 1024)
    made = []

    class Note(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor) and result.is_floating_point():
                made.append(result.untyped_storage().nbytes() // result.itemsize)
            return result

    segmenter = Segmenter(nn.Conv2d(3, 8, 4, stride=4), classes=8)
    task = PreferenceTask(segmenter, FrozenCopy(segmenter), hinge, sgd, low_resolution=True)
    masks = torch.randint(0, 8, (2, 2, 64, 64), dtype=torch.uint8)
    batch = make_batch(torch.randn(2, 3, 64, 64), *masks)
    with Note():
        scored = task._score(batch, watch=True)
        task._compute_loss(scored, batch.weight).total.backward()
    assert isinstance(scored.logits, LowResolution)
    assert max(made) <= 2 * 3 * 64 * 64  # the image; the logits would have 2 · 8 · 64 · 64


def make_batch(image, chosen, rejected):
    images = len(image)
    return PairBatch(
        image=image,
        valid=torch.ones(images, *image.shape[2:], dtype=torch.bool),
        view=torch.zeros(images, dtype=torch.long),
        ids=[str(i) for i in range(images)],
        gold=None,
        chosen=chosen,
        rejected=rejected,
        image_index=torch.arange(images),
        weight=torch.ones(images),
        pair_masks=torch.zeros(images, 2, dtype=torch.long),
        index=pair_index(chosen, rejected),
    )


def test_a_network_without_the_method_is_refused(network, hinge, sgd):
    with pytest.raises(ValueError, match=r"low_resolution\(image\).*Sequential.*segdpo\.models\.Segmenter"):
        PreferenceTask(network, FrozenCopy(network), hinge, sgd, low_resolution=True)


def test_a_network_that_does_not_upsample_is_refused_at_the_first_step(network, data, fit, hinge, sgd):
    whole = Segmenter(network, classes=2)
    task = PreferenceTask(whole, FrozenCopy(whole), hinge, sgd, low_resolution=True)
    with pytest.raises(ValueError, match="ends in a bilinear upsampling but Sequential"):
        fit(task, data())


class AtFullSize(Reference):
    def __init__(self, network):
        self.network = copy.deepcopy(network).eval()

    def __call__(self, batch, policy):
        return self.network(batch.image)


def test_a_users_reference_may_return_logits_at_full_size(trained, hinge):
    assert_same(trained(hinge, make=AtFullSize), trained(hinge, low=False))
    hold = PreferenceLoss(partial(objectives.dpo, beta=1.0), {"hold": Anchor(1.0, anchors.hold)})
    with pytest.raises(TypeError, match=r"self\.logits.*low_resolution=false"):
        trained(hold, make=AtFullSize)

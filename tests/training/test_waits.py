"""No step waits for a GPU. Tried on the meta device, where reading a value is an error; on a GPU it is a wait."""

import copy
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from segdpo import PreferenceLoss, Score
from segdpo.data import RankingDataset, SupervisedDataset
from segdpo.kernels import triton_scores
from segdpo.losses import RewardLoss, bradley_terry, listwise
from segdpo.scores import pairs, rankings
from segdpo.training import (
    CachedScores,
    FrozenCopy,
    Moving,
    PreferenceTask,
    RewardTask,
    SharedEncoder,
    SupervisedTask,
    cross_entropy,
    score_cache,
    task,
)

SGD = partial(torch.optim.SGD, lr=0.1)


class Copies(TorchDispatchMode):
    """Notes what is copied from the CPU to another device while Python waits."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func.overloadpacket is torch.ops.aten._to_copy and not kwargs.get("non_blocking"):
            to = torch.device(kwargs.get("device") or args[0].device)
            if args[0].device.type != to.type:
                self.found.append((tuple(args[0].shape), args[0].dtype))
        return func(*args, **kwargs)


class Launches:
    """Kernels that are launched and do nothing."""

    def __init__(self):
        self.options = []

    def __getitem__(self, grid):
        return lambda *args, **options: self.options.append(options)


@pytest.fixture(params=["sparse", "triton"])
def backend(request, monkeypatch):
    """Score as a GPU would: the sparse form, or Triton with kernels that do nothing."""
    launches = Launches()
    if request.param == "triton":
        launch = pytest.importorskip("segdpo.kernels.triton_launch", exc_type=ImportError)
        for name in ("margin_forward", "chosen_forward", "softmax_gradient", "sigmoid_gradient"):
            monkeypatch.setattr(launch, name, launches)
        monkeypatch.setattr(triton_scores, "is_usable", lambda logits: True)
    for module in (pairs, rankings):
        monkeypatch.setattr(module, "choose_backend", lambda *args, **options: request.param)
    return launches


@pytest.fixture
def run(monkeypatch):
    """Take three steps on the meta device; return what was copied there, with waiting, in the second and the third."""
    monkeypatch.setattr(task.FiniteGuard, "watch", lambda *args: None)  # it reads values one step late

    def run(lightning_module, batches):
        lightning_module.trainer = SimpleNamespace(
            world_size=1, log_every_n_steps=1000, fast_dev_run=False, precision="32-true", training=True,
            current_epoch=0, global_step=0, ckpt_path=None,
        )  # fmt: skip
        if isinstance(lightning_module, PreferenceTask):
            lightning_module.on_fit_start()
            for batch in batches:  # a cache is filled before
                lightning_module.reference.see(batch)
                lightning_module.reference(batch, lightning_module.policy)
        lightning_module.to("meta")
        trained = [parameter for parameter in lightning_module.parameters() if parameter.requires_grad]
        optimizer, copies = torch.optim.AdamW(trained), Copies()
        for number, batch in enumerate([*batches, *batches, *batches][:3]):
            batch = lightning_module.on_before_batch_transfer(batch, 0).to("meta", non_blocking=True)
            with copies:
                copies.found *= number > 1  # tensors that are kept there are sent in the first step
                optimizer.zero_grad()
                lightning_module.training_step(batch, number).backward()
                optimizer.step()
                if isinstance(lightning_module, PreferenceTask):
                    lightning_module.reference.after_step(lightning_module.policy, number + 1)
        return copies.found

    return run


def batches_of(module):
    module.setup("fit")
    return list(module.train_dataloader())


REFERENCES = {
    "live": lambda network, folder: FrozenCopy(network),
    "cached": CachedScores,
    "moving": lambda network, folder: Moving(network, decay=0.9),
    "shared": lambda network, folder: SharedEncoder(network, "0"),
}


@pytest.mark.parametrize("reference", REFERENCES)
@pytest.mark.parametrize("few", [True, False])
def test_a_step_of_preference_training(network, data, hinge, backend, run, monkeypatch, tmp_path, reference, few):
    monkeypatch.setattr(score_cache, "_sent", lambda rows, to: torch.from_numpy(rows).to(to, non_blocking=True))
    monkeypatch.setattr(SharedEncoder, "_check_weights", lambda *args: None)  # it reads the weights once
    policy = copy.deepcopy(network)
    policy[0].requires_grad_(False)
    module = PreferenceTask(policy, REFERENCES[reference](network, tmp_path), hinge, SGD)
    batches = batches_of(data())
    for batch in batches:
        batch.shared = batch.shared if few else None
    assert run(module, batches) == []
    if backend.options:
        assert {options["num_warps"] for options in backend.options} == {4}


@pytest.mark.parametrize("backend", ["triton"], indirect=True)  # without an index, the sparse form waits
def test_a_step_on_rankings(network, data, backend, run):
    loss = PreferenceLoss(partial(listwise.plackett_luce, beta=1.0), score=Score())
    module = PreferenceTask(copy.deepcopy(network), FrozenCopy(network), loss, SGD)
    assert run(module, batches_of(data(items=partial(RankingDataset, length=3)))) == []


def test_a_supervised_step(network, data, run):
    module = SupervisedTask(network, cross_entropy, SGD)
    assert run(module, batches_of(data(items=SupervisedDataset))) == []


def test_a_step_of_a_reward_model(data, run):
    assert run(RewardTask(Linear(), RewardLoss(bradley_terry), SGD), batches_of(data())) == []


class Linear(nn.Module):
    def __init__(self):
        super().__init__()
        self.weights = nn.Parameter(torch.linspace(-1, 1, 64).view(8, 8))

    def forward(self, image, masks, image_index):
        return (image.index_select(0, image_index)[:, 0] * (masks == 1) * self.weights).sum((1, 2))


@pytest.fixture
def calls(monkeypatch):
    """Return a list that grows with each call of Tensor.pin_memory and Tensor.to, which send nothing."""
    found = []
    monkeypatch.setattr(Tensor, "pin_memory", lambda self: found.append("pin") or self)
    monkeypatch.setattr(Tensor, "to", lambda self, to, **options: found.append((str(to), options)) or self)
    return found


def test_a_batch_is_sent_to_a_gpu_without_waiting(network, data, calls):
    module, [batch, *_] = SupervisedTask(network, cross_entropy, SGD), batches_of(data())
    calls.clear()
    module.transfer_batch_to_device(batch, torch.device("cuda", 1), 0)
    assert len(calls) >= 5
    assert {to for to, _ in calls} == {"cuda:1"}
    assert all(options == {"non_blocking": True} for _, options in calls)


def test_cached_scores_are_sent_from_pinned_memory(calls):
    score_cache._sent(np.zeros((2, 3), np.float32), torch.device("cuda"))
    assert calls == ["pin", ("cuda", {"non_blocking": True})]

"""The task: where it starts, what it asks for, when it stops, and that it climbs."""

import copy
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from segdpo.data.datasets import SupervisedDataset
from segdpo.losses.policy_gradient import clipped_surrogate, group_advantages
from segdpo.models import ValueHead
from segdpo.rl.algorithm import Algorithm, Divergence
from segdpo.rl.rewards import iou
from segdpo.rl.task import Collapse, CollapsedPolicyError, PolicyGradientTask
from segdpo.training import RandomState
from segdpo.training.references import FrozenCopy, NoReference

GRPO = {"baseline": group_advantages, "masks": 3}


def algorithm_of(**options):
    return Algorithm("test", partial(clipped_surrogate), **(GRPO | options))


@pytest.fixture
def made(network, sgd):
    """Make a task; the reference is the network as it starts."""

    def make(algorithm, reward=iou, reference=True, policy=network, **options):
        held = FrozenCopy(policy) if reference is True else reference
        given = {"classes": 2, "starts_at_reference": True} | options
        return PolicyGradientTask(policy, held or None, reward, algorithm, sgd, **given)

    return make


@pytest.fixture
def gold(data):
    return partial(data, items=partial(SupervisedDataset, target="gold"))


def logged(fit, task, datamodule, steps=1, **options):
    trainer = fit(task, datamodule, max_steps=steps, **options)
    return trainer, {name: float(value) for name, value in trainer.callback_metrics.items()}


def test_ratio_1_and_kl_0_at_the_first_step(made, gold, fit):
    algorithm = algorithm_of(divergence=Divergence(reward=0.1, loss=0.2))
    trainer, found = logged(fit, made(algorithm), gold())
    assert trainer.global_step == 1
    assert found["train/policy/ratio"] == pytest.approx(1, abs=1e-6)
    assert found["train/policy/kl"] == pytest.approx(0, abs=1e-6)
    assert found["train/loss/divergence"] == pytest.approx(0, abs=1e-7)
    assert found["train/policy/clip_fraction"] == 0
    assert found["train/policy/kl_to_old"] == pytest.approx(0, abs=1e-7)
    assert found["train/kl_coefficient"] == pytest.approx(0.2)
    assert 0 < found["train/reward"] < 1


def test_a_policy_in_training_mode_does_not_start_there_and_says_so(made, gold, fit):
    with pytest.warns(UserWarning, match=r"the policy at the first step to be the one that drew the masks"):
        fit(made(algorithm_of(), hold_statistics=False), gold(), max_steps=1)


def test_several_epochs_move_ratios_and_max_steps_counts_them(made, gold, fit):
    task = made(algorithm_of(epochs=3, minibatches=2))
    trainer, found = logged(fit, task, gold(), steps=6)
    assert (trainer.global_step, task.rollouts, task.rewards_computed) == (6, 1, 4 * 3)
    assert found["train/policy/kl_to_old"] > 0
    assert found["train/policy/epochs"] == 3
    trainer, found = logged(fit, task, gold(), steps=4)
    assert trainer.global_step == 4
    assert found["train/policy/epochs"] == 2


def test_a_target_kl_ends_the_epochs(made, gold, fit):
    rollouts = {}
    for target in (None, 1e-4):
        task = made(algorithm_of(epochs=50, target_kl=target, gradient_clip=None), reward=Noisy())
        fit(task, gold(), max_steps=20)
        rollouts[target] = task.rollouts
    assert rollouts[None] == 1
    assert rollouts[1e-4] > 1


class Noisy:
    """A reward that has nothing to do with the image."""

    def __call__(self, request):
        return torch.rand(len(request.masks))


def test_a_constant_reward_changes_nothing(made, gold, fit, network):
    before = copy.deepcopy(network.state_dict())
    fit(made(algorithm_of(), reward=lambda request: torch.full((len(request.masks),), 0.3)), gold(), max_steps=3)
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


class Asked(FrozenCopy):
    count = 0

    def __call__(self, batch, policy):
        self.count += 1
        return super().__call__(batch, policy)


def test_a_reference_is_asked_once_a_rollout_and_only_where_a_divergence_asks(made, gold, fit, network):
    reference = Asked(network)
    fit(made(algorithm_of(epochs=2), reference=reference), gold(), max_steps=4)
    assert reference.count == 0
    task = made(algorithm_of(epochs=2, divergence=Divergence(loss=0.1)), reference=reference)
    fit(task, gold(), max_steps=4)
    assert reference.count == task.rollouts == 2
    with pytest.raises(ValueError, match="Expected a reference for the divergence of test but got none"):
        made(algorithm_of(divergence=Divergence(loss=0.1)), reference=None)
    task = made(algorithm_of(divergence=Divergence(loss=0.1)), reference=NoReference())
    with pytest.raises(ValueError, match=r"logits but NoReference"):
        fit(task, gold(), max_steps=1)


def test_coefficients_adapt_to_a_target(made, gold, fit):
    for target, factor in ((1e-9, 1.02), (1e9, 0.98)):
        task = made(algorithm_of(divergence=Divergence(loss=0.1, target=target)))
        fit(task, gold(), max_steps=5)
        # At the first rollout the divergence is 0, below any target.
        assert task.kl_scale == pytest.approx(0.98 * factor**4)


def test_a_stop_in_between_changes_nothing(made, gold, fit, network, tmp_path):
    options = {"divergence": Divergence(loss=0.1, target=1e-9), "epochs": 2}
    start = copy.deepcopy(network)

    def trained(policy, steps, ckpt_path=None):
        torch.manual_seed(5)
        # Of the first network: a checkpoint knows which reference it was trained against.
        task = made(algorithm_of(**options), policy=policy, reference=FrozenCopy(start))
        trainer = fit(task, gold(), ckpt_path=ckpt_path, max_steps=steps, callbacks=[RandomState()])
        return trainer, task

    whole = trained(copy.deepcopy(start), 12)[1]
    trainer, _ = trained(copy.deepcopy(start), 6)
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    rest = trained(copy.deepcopy(start), 12, tmp_path / "half.ckpt")[1]
    assert (rest.kl_scale, rest.rollouts, rest.rewards_computed) == (
        whole.kl_scale,
        whole.rollouts,
        whole.rewards_computed,
    )
    for name, value in whole.policy.state_dict().items():
        assert torch.equal(value, rest.policy.state_dict()[name]), name


@pytest.mark.parametrize("per", ["image", "pixel"])
def test_the_value_head_learns_what_to_expect(made, gold, fit, per):
    value = partial(ValueHead, per=per)
    algorithm = algorithm_of(baseline=None, value=value, value_lr=0.3, normalise=True, epochs=2)
    task = made(algorithm, reward=lambda request: torch.full((len(request.masks),), 0.5) + 0.01 * torch.rand(1))
    groups = task.configure_optimizers().param_groups
    assert [group["lr"] for group in groups] == [0.1, 0.3]
    assert not {id(p) for p in groups[0]["params"]} & {id(p) for p in task.value.parameters()}
    _, first = logged(fit, task, gold(), steps=1)
    _, last = logged(fit, task, gold(), steps=40)
    assert first["train/loss/value"] == pytest.approx(0.5 * 0.5**2, rel=0.05)
    assert last["train/loss/value"] < 0.02


def test_a_value_head_starts_at_0_and_looks_at_valid_pixels_alone():
    torch.manual_seed(0)
    head = ValueHead(classes=2, per="image")
    image, chances = torch.randn(2, 3, 8, 8), torch.rand(2, 2, 8, 8)
    valid = torch.ones(2, 8, 8, dtype=torch.bool)
    assert (head(image, chances, valid) == 0).all()
    nn.init.normal_(head.layers[-1].weight)
    coarse = head.layers(nn.functional.avg_pool2d(torch.cat([image, chances], 1), 4))[:, 0]
    torch.testing.assert_close(head(image, chances, valid), coarse.mean((1, 2)))
    valid[:, 4:] = False
    torch.testing.assert_close(head(image, chances, valid), coarse[:, 0].mean(1))
    pixels = ValueHead(classes=2, per="pixel")
    pixels.load_state_dict(head.state_dict())
    torch.testing.assert_close(pixels(image, chances, valid)[:, ::4, ::4], coarse)
    with pytest.raises(ValueError, match="per to be one of image, pixel but got 'mask'"):
        ValueHead(classes=2, per="mask")


def test_values_of_pixels_want_ratios_of_pixels(made):
    value = partial(ValueHead, per="pixel")
    with pytest.raises(ValueError, match=r"algorithm\.ratio=pixel for a value head of pixels but got mask"):
        made(algorithm_of(baseline=None, value=value, ratio="mask"))


def test_rewards_that_are_nan_stop_the_run_and_name_the_images(made, gold, fit):
    task = made(algorithm_of(), reward=lambda request: torch.full((len(request.masks),), torch.nan))
    with pytest.raises(ValueError, match=r"Expected finite rewards but 12 of 12 .*\(Step 0, images: noise"):
        fit(task, gold(), max_steps=1)


def test_a_collapsed_policy_stops_the_run(made, gold, fit):
    empty = nn.Conv2d(3, 1, 1)
    nn.init.zeros_(empty.weight)
    nn.init.constant_(empty.bias, -30.0)
    with pytest.raises(CollapsedPolicyError, match=r"in the last 3 rollouts the policy predicts class 0 alone"):
        fit(made(algorithm_of(collapse=3), policy=empty), gold(), max_steps=20)
    task = made(algorithm_of(collapse=None), policy=empty)
    _, found = logged(fit, task, gold(), steps=6)
    assert found["train/policy/one_class"] == 1


def test_what_counts_as_a_collapse():
    logits, valid = torch.full((2, 1, 2, 2), -1.0), torch.ones(2, 2, 2, dtype=torch.bool)
    some = torch.tensor([[[0, 1], [0, 255]], [[0, 0], [0, 0]]], dtype=torch.uint8)
    collapse = Collapse(2)
    for _ in range(5):  # nothing is there in truth
        assert collapse.check(logits, valid, torch.zeros_like(some), ["a", "b"]).all()
    collapse.check(logits, valid, some, ["a", "b"])
    mixed = logits.clone()
    mixed[1, 0, 0, 0] = 1.0
    assert collapse.check(mixed, valid, some, ["a", "b"]).tolist() == [True, False]
    collapse.check(logits, valid, None, ["a", "b"])
    with pytest.raises(CollapsedPolicyError, match=r"in the last 2 rollouts .*last images: a, b"):
        collapse.check(logits, valid, some, ["a", "b"])
    # Pixels that only fill up do not save it.
    valid[1, 0, 0] = False
    with pytest.raises(CollapsedPolicyError):
        collapse.check(mixed, valid, some, ["a", "b"])


@pytest.mark.parametrize(("devices", "precision"), [(2, "32-true"), (1, "16-mixed")])
def test_what_rollouts_are_not_made_for(made, devices, precision):
    task = made(algorithm_of())
    task._trainer = SimpleNamespace(world_size=devices, precision=precision)
    with pytest.raises(ValueError, match=rf"one device, .* but got {devices} devices and {precision}"):
        task.setup("fit")


@pytest.mark.parametrize("options", [{}, {"ratio": "mask_mean"}, {"smoothness": 1.0}], ids=str)
def test_it_climbs_a_reward_that_is_easy(made, gold, fit, options):
    """More foreground is better: the policy draws more of it, and less where a divergence holds it back."""
    areas = {}
    for coefficient in (0.0, 5.0):
        torch.manual_seed(1)
        policy = nn.Conv2d(3, 1, 1)
        nn.init.zeros_(policy.weight)
        reward = partial(_area)
        divergence = Divergence(loss=coefficient)
        # All foreground is what it is asked for.
        algorithm = algorithm_of(epochs=4, masks=8, divergence=divergence, gradient_clip=None, collapse=None, **options)
        task = made(algorithm, reward=reward, policy=policy)
        _, found = logged(fit, task, gold(), steps=80)
        areas[coefficient] = found["train/reward"]
    assert areas[0.0] > 0.5 + 0.1
    assert areas[5.0] < areas[0.0] - 0.05


def _area(request):
    return (request.masks == 1).float().flatten(1).mean(1)

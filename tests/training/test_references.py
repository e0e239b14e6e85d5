"""References: those that do not change give the same loss; the moving one follows its formula."""

import copy
import math
from functools import partial

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint

from segdpo import PreferenceLoss
from segdpo.losses import Anchor, anchors, objectives
from segdpo.models import Segmenter, add_lora
from segdpo.training import AdapterOff, CachedScores, FrozenCopy, Moving, PreferenceTask


class Losses(Callback):
    def __init__(self):
        self.seen = []

    def on_train_batch_end(self, trainer, module, *_):
        self.seen.append(float(trainer.callback_metrics["train/loss"]))


def test_all_fixed_references_give_the_same_loss(network, data, fit, hinge, tmp_path):
    whole = Segmenter(network, classes=2)
    torch.manual_seed(0)
    adapted = add_lora(copy.deepcopy(whole), rank=2)
    found = []
    for make in (FrozenCopy, AdapterOff, partial(CachedScores, folder=tmp_path)):
        losses = Losses()
        task = PreferenceTask(
            copy.deepcopy(adapted),
            make(whole),
            hinge,
            partial(torch.optim.SGD, lr=0.05),
            starts_at_reference=True,
        )
        logged = fit(task, data(), max_steps=8, callbacks=[losses]).callback_metrics
        found.append([*losses.seen, float(logged["val/loss"]), float(logged["val/score/reference_rejected"])])
    frozen, off, cached = found
    assert len(set(frozen)) > 5
    assert frozen == pytest.approx(off, abs=1e-5)
    assert frozen == pytest.approx(cached, abs=1e-5)


def test_adapter_off_computes_in_evaluation_mode_and_restores_modes(network):
    adapted = add_lora(Segmenter(copy.deepcopy(network), classes=2), rank=2, dropout=0.5)
    for name, parameter in adapted.named_parameters():
        if "lora" in name:
            torch.nn.init.normal_(parameter)
    adapted.train()
    adapted.get_submodule("network.3").eval()
    modes = {name: part.training for name, part in adapted.named_modules()}
    image = torch.randn(2, 3, 8, 8)
    answer = AdapterOff()(type("Batch", (), {"image": image}), adapted)
    assert torch.equal(answer, network.eval()(image))
    assert not answer.requires_grad
    assert modes == {name: part.training for name, part in adapted.named_modules()}


def test_a_moving_average_by_hand(network):
    reference = Moving(network, decay=0.75)
    policy = copy.deepcopy(network)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(1.0)
        policy[1].num_batches_tracked.add_(7)
    for step in (1, 2):
        reference.after_step(policy, step)
    # After two steps, 1 − .75² of the way.
    for own, start in zip(reference.network.parameters(), network.parameters(), strict=True):
        assert torch.allclose(own, start + 1 - 0.75**2, atol=1e-6)
    assert reference.network[1].num_batches_tracked == network[1].num_batches_tracked + 7


def test_a_synchronised_reference_is_the_policy_of_every_third_step(network, data, fit, dpo):
    reference = Moving(network, every=3)
    task = PreferenceTask(network, reference, dpo, partial(torch.optim.SGD, lr=1.0))
    policies, references = [], []

    class Note(Callback):
        def on_train_batch_end(self, *_):
            policies.append(network[0].weight.detach().clone())
            references.append(reference.network[0].weight.clone())

    start = network[0].weight.detach().clone()
    fit(task, data(), max_steps=7, callbacks=[Note()])
    taken = [start, start, policies[2], policies[2], policies[2], policies[5], policies[5]]
    assert all(torch.equal(a, b) for a, b in zip(references, taken, strict=True))
    assert not any(parameter.requires_grad for parameter in reference.network.parameters())


@pytest.mark.parametrize("options", [{}, {"decay": 0.9, "every": 3}])
def test_a_moving_reference_takes_one_of_two_options(options, network):
    with pytest.raises(ValueError, match=r"either decay .* or every"):
        Moving(network, **options)


def test_a_moving_reference_refuses_an_adapter(network):
    adapted = add_lora(Segmenter(copy.deepcopy(network), classes=2), rank=2)
    with pytest.raises(ValueError, match="adapter=none"):
        Moving(Segmenter(network, classes=2), decay=0.9).after_step(adapted, 1)


def resumable(network, reference, loss):
    return PreferenceTask(copy.deepcopy(network), reference, loss, partial(torch.optim.SGD, lr=0.5, momentum=0.9))


def test_a_resumed_run_has_the_moved_reference(network, data, fit, dpo, tmp_path):
    whole = resumable(network, Moving(network, decay=0.5), dpo)
    saved = ModelCheckpoint(tmp_path, filename="a", every_n_train_steps=3, save_top_k=-1)
    fit(whole, data(val=0), max_steps=5, callbacks=[saved], enable_checkpointing=True)
    again = resumable(network, Moving(network, decay=0.5), dpo)
    fit(again, data(val=0), max_steps=5, ckpt_path=tmp_path / "a.ckpt")
    for one, other in ((whole.policy, again.policy), (whole.reference.network, again.reference.network)):
        assert all(
            torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True)
        )


def test_a_resume_with_another_reference_is_refused(network, data, fit, dpo, tmp_path):
    trainer = fit(resumable(network, FrozenCopy(network), dpo), data(), max_steps=2)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    other = copy.deepcopy(network)
    other[0].weight.data[0, 0, 0, 0] += 1e-3
    with pytest.raises(ValueError, match=r"trained against .* resume with the same reference"):
        fit(resumable(network, FrozenCopy(other), dpo), data(), max_steps=4, ckpt_path=tmp_path / "a.ckpt")
    with pytest.raises(ValueError, match=r"moving reference .* but it has none"):
        fit(resumable(network, Moving(network, every=2), dpo), data(), max_steps=4, ckpt_path=tmp_path / "a.ckpt")
    fit(resumable(network, FrozenCopy(network), dpo), data(), max_steps=4, ckpt_path=tmp_path / "a.ckpt")


def test_a_resumed_policy_is_not_expected_to_be_the_reference(network, data, fit, dpo, sgd, tmp_path):
    fit(resumable(network, FrozenCopy(network), dpo), data(), max_steps=2).save_checkpoint(tmp_path / "a.ckpt")
    task = PreferenceTask(
        copy.deepcopy(network),
        FrozenCopy(network),
        dpo,
        partial(torch.optim.SGD, lr=0.5, momentum=0.9),
        starts_at_reference=True,
    )
    fit(task, data(), max_steps=4, ckpt_path=tmp_path / "a.ckpt")


def test_the_copy_is_a_copy(network):
    reference = FrozenCopy(network)
    with torch.no_grad():
        network[0].weight.zero_()
    assert reference.network[0].weight.abs().sum() > 0


def test_a_copy_may_move_during_evaluation(network):
    """Lightning evaluates in inference mode; weights that moved there would stay inference tensors in training."""
    reference, low = FrozenCopy(network), copy.deepcopy(network).eval().bfloat16()
    image = torch.randn(2, 3, 8, 8)
    with torch.inference_mode():
        answer = reference(type("Batch", (), {"image": image.bfloat16()}), low)
    assert torch.equal(answer, low(image.bfloat16()))
    assert not any(parameter.is_inference() for parameter in reference.network.parameters())
    assert reference(type("Batch", (), {"image": image}), network).dtype is torch.float32


def test_hold_reads_the_references_logits(network, data, fit, sgd):
    loss = PreferenceLoss(partial(objectives.dpo, beta=1.0), {"hold": Anchor(1.0, anchors.hold)})
    task = PreferenceTask(copy.deepcopy(network), FrozenCopy(network), loss, sgd)
    logged = fit(task, data(), max_steps=4).callback_metrics
    assert 0 < float(logged["train/loss/hold"]) < math.log(2)

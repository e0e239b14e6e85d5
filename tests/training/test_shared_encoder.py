"""A reference on the policy's own encoder: the losses of a frozen copy, one run of the encoder, or a refusal."""

import copy
from functools import partial

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

from segdpo import Anchor, PreferenceLoss, Score
from segdpo.losses import anchors, objectives
from segdpo.models import Segmenter, add_lora, freeze_parts, smp_model
from segdpo.training import FrozenCopy, Panels, PreferenceTask, SharedEncoder


class Net(nn.Module):
    """An encoder of two outputs with BatchNorm and dropout, under a name of the caller's; a decoder and a head."""

    def __init__(self, name="encoder"):
        super().__init__()
        self.add_module(name, Encoder())
        self.decoder = nn.Sequential(nn.Conv2d(10, 4, 3, padding=1), nn.ReLU())
        self.head = nn.Conv2d(4, 1, 1)
        self.name = name

    def forward(self, image):
        return self.head(self.decoder(torch.cat(self.get_submodule(self.name)(image), 1)))


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.drop = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Dropout2d(0.3)
        self.more = nn.Conv2d(4, 6, 3, padding=1)
        self.runs = 0

    def forward(self, image):
        self.runs += 1
        first = self.drop(self.norm(self.conv(image)).relu())
        return [first, self.more(first)]


def make_net(name="encoder", multiple=1):
    torch.manual_seed(3)
    net = Net(name)
    net.train()(torch.randn(8, 3, 8, 8) * 2 + 1)
    return Segmenter(net, classes=2, multiple=multiple)


def decoder_of(network, name="encoder"):
    policy = copy.deepcopy(network)
    freeze_parts(policy, [f"network.{name}"])
    return policy


@pytest.fixture
def net():
    return make_net()


@pytest.fixture
def loss():
    return PreferenceLoss(
        partial(objectives.dpo, beta=3.0),
        {"hinge": Anchor(2.0, partial(anchors.hinge, tau=0.2), Score()), "hold": Anchor(1.0, anchors.hold)},
        score=Score(region="disagreement"),
    )


class Losses(Callback):
    def __init__(self):
        self.seen = []

    def on_train_batch_end(self, trainer, module, *_):
        self.seen.append(float(trainer.callback_metrics["train/loss"]))


def train(policy, reference, loss, fit, data, **options):
    losses = Losses()
    task = PreferenceTask(policy, reference, loss, partial(torch.optim.SGD, lr=0.1), starts_at_reference=True)
    callbacks = [losses, *options.pop("callbacks", [])]
    logged = fit(task, data, max_steps=8, callbacks=callbacks, **options).callback_metrics
    return task, [*losses.seen, *(float(value) for _, value in sorted(logged.items()))]


@pytest.mark.parametrize(("name", "multiple"), [("encoder", 1), ("backbone", 16)])
def test_the_same_losses_as_a_frozen_copy(name, multiple, data, fit, loss):
    """Padded images too, of which each network makes its own."""
    network = make_net(name, multiple)
    frozen, expected = train(decoder_of(network, name), FrozenCopy(network), loss, fit, data())
    shared, found = train(decoder_of(network, name), SharedEncoder(network, f"network.{name}"), loss, fit, data())
    assert len(set(expected[:8])) == 8
    assert found == pytest.approx(expected, abs=1e-6)
    for ours, plain in zip(shared.policy.state_dict().values(), frozen.policy.state_dict().values(), strict=True):
        torch.testing.assert_close(ours, plain, rtol=0, atol=1e-6)
    encoder = shared.policy.get_submodule(f"network.{name}")
    # 12 images to train in batches of 4, 4 to validate: 8 steps and their epochs' ends.
    assert encoder.runs == 1 + 8 + 2
    assert frozen.policy.get_submodule(f"network.{name}").runs == encoder.runs
    assert frozen.reference.network.get_submodule(f"network.{name}").runs == encoder.runs
    assert "forward" not in vars(encoder)


def test_the_reference_holds_no_encoder_of_its_own(net):
    reference = SharedEncoder(net)
    own = {name for name, _ in reference.network.named_parameters()}
    assert own == {name for name, _ in net.named_parameters() if ".encoder." not in name}
    assert not any(parameter.requires_grad for parameter in reference.network.parameters())
    with torch.no_grad():
        net.network.head.weight.zero_()
    assert reference.network.network.head.weight.abs().sum() > 0


def test_the_encoder_of_smp_is_found_and_runs_once(loss, data, fit, noise):
    torch.manual_seed(0)
    network = smp_model("unet", "resnet18", classes=2, encoder_depth=3, decoder_channels=[8, 8, 8]).eval()
    runs = []
    policy = decoder_of(network)
    policy.network.encoder.conv1.register_forward_hook(lambda *_: runs.append(1))
    source = noise(count=8, size=16)
    _, found = train(policy, SharedEncoder(network), loss, fit, data(source, val=0))
    assert len(runs) == 8
    _, expected = train(decoder_of(network), FrozenCopy(network), loss, fit, data(source, val=0))
    assert found == pytest.approx(expected, abs=1e-6)


def test_an_adapter_in_the_decoder_alone(net, loss, data, fit):
    torch.manual_seed(0)
    adapted = add_lora(copy.deepcopy(net), rank=2, targets=["network.decoder*", "network.head"])
    _, found = train(copy.deepcopy(adapted), SharedEncoder(net), loss, fit, data())
    _, expected = train(copy.deepcopy(adapted), FrozenCopy(net), loss, fit, data())
    assert found == pytest.approx(expected, abs=1e-6)


def test_at_low_resolution_too(data, noise, fit, hinge, sgd):
    net = make_net(multiple=4)
    net.network.head.stride = (2, 2)
    found = []
    for make in (SharedEncoder, FrozenCopy):
        task = PreferenceTask(decoder_of(net), make(net), hinge, sgd, low_resolution=True)
        found.append(float(fit(task, data(noise(size=10)), max_steps=5).callback_metrics["train/loss"]))
    assert found[0] == pytest.approx(found[1], abs=1e-6)


def test_a_resumed_run_goes_on_to_the_same_bits(net, loss, data, fit, tmp_path):
    saved = ModelCheckpoint(tmp_path, filename="a", every_n_train_steps=3, save_top_k=-1)
    whole, _ = train(
        decoder_of(net), SharedEncoder(net), loss, fit, data(val=0), callbacks=[saved], enable_checkpointing=True
    )
    again, _ = train(decoder_of(net), SharedEncoder(net), loss, fit, data(val=0), ckpt_path=tmp_path / "a.ckpt")
    for one, other in zip(whole.policy.state_dict().values(), again.policy.state_dict().values(), strict=True):
        assert torch.equal(one, other)
    # It is the reference of a frozen copy: a run may change between the two, but not to other weights.
    train(decoder_of(net), FrozenCopy(net), loss, fit, data(val=0), ckpt_path=tmp_path / "a.ckpt")
    other = copy.deepcopy(net)
    other.network.head.weight.data += 1
    with pytest.raises(ValueError, match=r"trained against .* resume with the same reference"):
        train(decoder_of(net), SharedEncoder(other), loss, fit, data(val=0), ckpt_path=tmp_path / "a.ckpt")


def test_the_reference_can_be_called_without_the_policy(net, loss, data, fit, tmp_path):
    drawn = []
    panels = Panels(lambda rows, path, **_: drawn.append(rows), tmp_path)
    task, _ = train(decoder_of(net), SharedEncoder(net), loss, fit, data(), callbacks=[panels])
    assert drawn[0][0].reference is not None
    image = torch.randn(2, 3, 8, 8)
    answer = task.reference(type("Batch", (), {"image": image}), task.policy.eval())
    torch.testing.assert_close(answer, net.eval()(image), rtol=0, atol=0)


def test_in_bf16_the_weights_are_still_the_references(net, loss, data, fit):
    _, found = train(decoder_of(net), SharedEncoder(net), loss, fit, data(), precision="bf16-true")
    _, expected = train(decoder_of(net), FrozenCopy(net), loss, fit, data(), precision="bf16-true")
    assert found == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda policy: policy.requires_grad_(True), r"not trained but 6 .* first conv.weight; freeze it \(freeze=\["),
        (lambda policy: policy.network.encoder.conv.weight.data.mul_(2), r"network\.encoder.*reference=frozen"),
        (lambda policy: policy.network.encoder.norm.running_mean.add_(1), r"network\.encoder.*reference=frozen"),
        (
            lambda policy: delattr(policy.network, "encoder"),
            r"network\.encoder",
        ),
    ],
)
def test_an_encoder_that_is_not_the_references_is_refused(change, message, net, loss, data, fit):
    policy = decoder_of(net)
    change(policy)
    with pytest.raises(ValueError, match=message):
        train(policy, SharedEncoder(net), loss, fit, data())


def test_moving_statistics_are_refused(net, dpo, data, fit, sgd):
    task = PreferenceTask(decoder_of(net), SharedEncoder(net), dpo, sgd, hold_statistics=False)
    with pytest.raises(ValueError, match=r"eval mode but network.encoder is in training mode.* hold_statistics=true"):
        fit(task, data())


def test_weights_that_change_during_training_are_noticed(net, loss, data, fit):
    class Meddle(Callback):
        def on_train_batch_end(self, trainer, task, *_):
            with torch.no_grad():
                task.policy.network.encoder.more.bias.add_(1e-6 if task.global_step == 2 else 0)

    with pytest.raises(ValueError, match="it has others"):
        train(decoder_of(net), SharedEncoder(net), loss, fit, data(), callbacks=[Meddle()])


def test_a_misnamed_encoder_names_what_there_is(net):
    with pytest.raises(ValueError, match=r"network\.backbone.* network\.encoder, .*reference\.encoder"):
        SharedEncoder(net, "network.backbone")


@pytest.mark.parametrize(
    ("decode", "message"),
    [
        (lambda net, x: net.encoder(x)[0].mul_(2), r"in place.*reference=frozen"),
        (lambda net, x: net.encoder(x + torch.rand(()))[0], r"reference=frozen"),
    ],
)
def test_networks_that_cannot_share_are_named(decode, message, loss, data, fit, monkeypatch):
    net = make_net()
    monkeypatch.setattr(
        Net, "forward", lambda self, x: self.head(self.decoder(decode(self, x).repeat(1, 3, 1, 1)[:, :10]))
    )
    with pytest.raises(RuntimeError, match=message):
        train(decoder_of(net), SharedEncoder(net), loss, fit, data())


def test_an_encoder_that_runs_twice_gives_both_runs_their_own(loss, data, fit, monkeypatch):
    """A network of two scales: features go to the call that they belong to."""

    def two_scales(self, image):
        whole, half = self.encoder(image), self.encoder(image[..., ::2, ::2])
        wide = [nn.functional.interpolate(one, image.shape[2:]) for one in half]
        return self.head(self.decoder(torch.cat(whole, 1) - torch.cat(wide, 1)))

    monkeypatch.setattr(Net, "forward", two_scales)
    net = make_net()
    _, found = train(decoder_of(net), SharedEncoder(net), loss, fit, data())
    _, expected = train(decoder_of(net), FrozenCopy(net), loss, fit, data())
    assert found == pytest.approx(expected, abs=1e-6)


def test_validation_in_windows_is_that_of_a_frozen_copy_and_keeps_no_features(net, data, noise, hinge, sgd):
    found = []
    for reference in (FrozenCopy, SharedEncoder):
        task = PreferenceTask(decoder_of(net), reference(net), hinge, sgd, window=8)
        task.reference.beside_policy = pytest.fail if reference is SharedEncoder else task.reference.beside_policy
        batches = data(noise(size=21)).val_dataloader()
        task.eval()
        for batch in batches:
            task._evaluate("val", batch)
        found.append({name: float(value) for name, value in task.means["on_val"].compute().items()})
    assert found[0] == pytest.approx(found[1], abs=1e-6)
    assert "score/reference_margin" in found[0]

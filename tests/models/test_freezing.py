"""freeze_parts freezes what the patterns name; hold_statistics makes training compute what evaluation does."""

import pytest
import torch
from torch import nn

from segdpo.models import Segmenter, add_lora, freeze_parts, hold_statistics

NORM_AND_BIASES = {"encoder.1.weight", "encoder.1.bias", "encoder.0.bias", "decoder.0.bias"}


@pytest.mark.parametrize(
    ("patterns", "frozen"),
    [
        (["network.encoder*"], {"encoder.0.weight", "encoder.0.bias", "encoder.1.weight", "encoder.1.bias"}),
        (["network.head"], {"head.weight", "head.bias"}),
        ("network.head", {"head.weight", "head.bias"}),
        (["*.bias"], {"encoder.0.bias", "encoder.1.bias", "decoder.0.bias", "head.bias"}),
        (["network.encoder.1", "network.*coder.0.bias"], NORM_AND_BIASES),
        ([], set()),
    ],
)
def test_patterns_freeze_parameters_and_whole_modules(tiny, patterns, frozen):
    segmenter = tiny()
    names = freeze_parts(segmenter, patterns)
    assert set(names) == {f"network.{name}" for name in frozen}
    assert {name for name, p in segmenter.named_parameters() if not p.requires_grad} == set(names)
    assert len(names) == len(set(names))


def test_frozen_parameters_stay_through_a_step_and_the_others_move(tiny, image):
    segmenter = tiny()
    before = {name: p.detach().clone() for name, p in segmenter.named_parameters()}
    frozen = freeze_parts(segmenter, ["network.encoder*"])
    optimizer = torch.optim.SGD([p for p in segmenter.parameters() if p.requires_grad], lr=0.1)
    segmenter.eval()(image).square().mean().backward()
    optimizer.step()
    assert {name for name, p in segmenter.named_parameters() if torch.equal(p, before[name])} == set(frozen)


def test_a_pattern_without_a_match_lists_what_there_is(tiny):
    with pytest.raises(ValueError, match=r"'encoder\*'.*network\.encoder, network\.decoder, network\.head"):
        freeze_parts(tiny(), ["network.head", "encoder*"])


def test_freezing_everything_is_refused(tiny):
    with pytest.raises(ValueError, match=r"network\*"):
        freeze_parts(tiny(), ["network*"])


class Drops(nn.Module):
    """Drops by its own flag, as attention and stochastic depth do."""

    def forward(self, x):
        return nn.functional.dropout(x, 0.5, self.training)


def everything() -> Segmenter:
    parts = [
        nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.InstanceNorm2d(4, track_running_stats=True), nn.GroupNorm(2, 4),
        nn.Dropout(0.5), nn.Dropout2d(0.5), nn.AlphaDropout(0.5), nn.FeatureAlphaDropout(0.5), Drops(),
        nn.Conv2d(4, 1, 1),
    ]  # fmt: skip
    return Segmenter(nn.Sequential(*parts), 2)


def test_training_with_hold_statistics_computes_what_evaluation_does_and_still_learns(image):
    segmenter = everything().eval()
    expected = segmenter(image)
    buffers = {name: b.clone() for name, b in segmenter.named_buffers()}
    segmenter.train()
    assert not torch.equal(segmenter(image), expected)
    segmenter.load_state_dict(buffers, strict=False)
    hold_statistics(segmenter)
    for _ in range(3):
        logits = segmenter(image)
        torch.testing.assert_close(logits, expected, rtol=0, atol=0)
        logits.sum().backward()
    assert all(torch.equal(b, buffers[name]) for name, b in segmenter.named_buffers())
    assert all(p.grad is not None for p in segmenter.parameters())


def test_train_lets_go_and_holding_again_holds(tiny, image):
    segmenter = tiny()
    hold_statistics(segmenter)
    segmenter.train()
    before = segmenter.network.encoder[1].running_mean.clone()
    hold_statistics(segmenter)
    segmenter(image)
    assert torch.equal(segmenter.network.encoder[1].running_mean, before)
    segmenter.train()
    segmenter(image)
    assert not torch.equal(segmenter.network.encoder[1].running_mean, before)


def test_the_dropout_of_a_lora_stays_on_with_hold_statistics(tiny, image):
    segmenter = add_lora(tiny(), rank=2, dropout=0.5).train()
    hold_statistics(segmenter)
    training = {name for name, part in segmenter.named_modules() if part.training}
    assert training
    assert all("lora_dropout" in name for name in training)
    torch.testing.assert_close(segmenter(image), segmenter(image), rtol=0, atol=0)  # B is 0: nothing to be seen yet
    for name, parameter in segmenter.named_parameters():
        if "lora_B" in name:
            nn.init.ones_(parameter)
    assert not torch.equal(segmenter(image), segmenter(image))


def test_freezing_after_an_adapter_counts_for_the_adapter(tiny):
    segmenter = add_lora(tiny(), rank=2)
    freeze_parts(segmenter, ["network.encoder*"])
    trained = {name for name, p in segmenter.named_parameters() if p.requires_grad}
    assert trained == {
        f"network.{part}.lora_{letter}.default.weight" for part in ("decoder.0", "head") for letter in "AB"
    }

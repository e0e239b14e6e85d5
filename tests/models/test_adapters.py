"""With the adapter off, the network computes exactly what it did before; with it on, W + alpha/rank · B·A."""

import copy
import logging

import pytest
import torch
from peft import PeftModel
from torch import nn

from segdpo.models import (
    Segmenter,
    adapter_off,
    add_lora,
    fingerprint,
    freeze_parts,
    has_adapter,
    load_weights,
    merge_adapter,
    save_adapter,
    save_weights,
    smp_model,
)
from segdpo.models.adapters import choose_layers


def trained(segmenter, seed=1, scale=0.3):
    """Give all that is trainable other values, as training would."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in segmenter.parameters():
            if parameter.requires_grad:
                parameter += scale * torch.randn(parameter.shape, generator=generator)
    return segmenter


def test_the_policy_starts_as_the_reference_and_only_the_adapter_is_trained(tiny, image):
    plain = tiny().eval()
    expected = plain(image)
    adapted = add_lora(copy.deepcopy(plain), rank=2)
    torch.testing.assert_close(adapted(image), expected, rtol=0, atol=0)
    names = {name for name, p in adapted.named_parameters() if p.requires_grad}
    layers = ("encoder.0", "decoder.0", "head")
    assert names == {f"network.{layer}.lora_{letter}.default.weight" for layer in layers for letter in "AB"}
    assert sum(p.numel() for p in adapted.parameters()) == sum(p.numel() for p in plain.parameters()) + sum(
        [2 * 27 + 6 * 2, 2 * 54 + 6 * 2, 2 * 6 + 1 * 2]  # A: rank × in·k², B: out × rank; no second copy of anything
    )


def test_a_linear_layer_computes_w_plus_the_scaled_product():
    linear = nn.Linear(3, 5)
    weight, bias = linear.weight.double(), linear.bias.double()
    adapted = trained(add_lora(Segmenter(nn.Sequential(linear), 5), rank=2, alpha=6.0))
    layer = adapted.network[0]
    x = torch.randn(4, 3)
    low, high = (getattr(layer, f"lora_{letter}")["default"].weight.double() for letter in "AB")
    expected = x.double() @ (weight + 6.0 / 2 * high @ low).T + bias
    torch.testing.assert_close(layer(x).double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("context", ["grad", "no_grad", "inference", "autocast"])
def test_switched_off_it_is_the_network_before_bit_for_bit(tiny, image, context):
    contexts = {
        "grad": torch.enable_grad,
        "no_grad": torch.no_grad,
        "inference": torch.inference_mode,
        "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    }
    plain = tiny().eval()
    adapted = trained(add_lora(copy.deepcopy(plain), rank=2, modules_to_save=["network.head"]))
    with contexts[context]():
        expected = plain(image)
        on = adapted(image)
        with adapter_off(adapted):
            off = adapted(image)
            with adapter_off(adapted):
                pass
            again = adapted(image)
        on_again = adapted(image)
    assert off.dtype == expected.dtype
    assert torch.equal(off, expected)
    assert torch.equal(again, expected)
    assert not torch.allclose(on, expected)
    assert torch.equal(on_again, on)


def test_switching_off_between_forward_and_backward_changes_no_gradient_and_thaws_nothing(tiny, image):
    adapted = trained(add_lora(tiny().eval(), rank=2))
    freeze_parts(adapted, ["network.encoder*"])
    wanted = {name: p.requires_grad for name, p in adapted.named_parameters()}
    adapted(image).square().sum().backward()
    expected = {name: p.grad.clone() for name, p in adapted.named_parameters() if p.grad is not None}
    adapted.zero_grad()
    loss = adapted(image).square().sum()
    with torch.no_grad(), adapter_off(adapted):
        adapted(image)
    loss.backward()
    assert {name: p.requires_grad for name, p in adapted.named_parameters()} == wanted
    assert expected.keys() == {name for name, needed in wanted.items() if needed}
    assert all(torch.equal(p.grad, expected[name]) for name, p in adapted.named_parameters() if p.grad is not None)


def test_an_error_inside_switches_it_on_again(tiny, image):
    adapted = trained(add_lora(tiny().eval(), rank=2))
    on = adapted(image)
    with pytest.raises(KeyboardInterrupt), adapter_off(adapted):
        raise KeyboardInterrupt
    assert torch.equal(adapted(image), on)


def test_the_reference_is_unchanged_after_steps_of_training(tiny, image):
    plain = tiny().eval()
    adapted = add_lora(copy.deepcopy(plain), rank=2, modules_to_save=["network.head"])
    optimizer = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], lr=0.1)
    for _ in range(5):
        optimizer.zero_grad()
        (adapted(image) - 1).square().mean().backward()
        optimizer.step()
    with adapter_off(adapted):
        assert torch.equal(adapted(image), plain(image))
    assert not torch.allclose(adapted(image), plain(image), atol=1e-2)


def test_merged_equals_switched_on_dilation_and_padding_included(tiny, image):
    plain = tiny().eval()
    adapted = trained(add_lora(copy.deepcopy(plain), rank=2, modules_to_save=["network.head"])).eval()
    merged = merge_adapter(adapted).eval()
    # In single precision rounding grows with the logits, so measured against the largest; in double, it is exact.
    size = adapted(image).abs().max().item()
    torch.testing.assert_close(merged(image), adapted(image), rtol=0, atol=1e-5 * size)
    exact = copy.deepcopy(adapted).double()
    torch.testing.assert_close(merge_adapter(exact)(image.double()), exact(image.double()), rtol=0, atol=1e-12)
    assert merged.state_dict().keys() == plain.state_dict().keys()
    assert all(p.requires_grad for p in merged.parameters())
    assert not has_adapter(merged)
    with adapter_off(adapted):
        assert torch.equal(adapted(image), plain(image))
    with pytest.raises(ValueError, match="Expected a network with an adapter but it has none"):
        merge_adapter(merged)


def test_layers_that_cannot_be_merged_go_without_and_are_named(tiny, image, caplog):
    class Strange(nn.Conv2d):
        pass

    segmenter = tiny(groups=3)
    segmenter.network.head = Strange(6, 1, 1)
    plain = copy.deepcopy(segmenter).eval()
    taken, skipped = choose_layers(segmenter, ["*"])
    assert taken == ["network.encoder.0"]
    assert skipped == {
        "network.decoder.0": "a convolution in 3 groups cannot be merged",
        "network.head": "a Strange is no plain layer",
    }
    with caplog.at_level(logging.INFO):
        adapted = add_lora(segmenter, rank=2).eval()
    assert "no LoRA on network.decoder.0: a convolution in 3 groups cannot be merged" in caplog.text
    assert torch.equal(adapted(image), plain(image))
    torch.testing.assert_close(merge_adapter(trained(adapted)).eval()(image), adapted(image), rtol=1e-5, atol=1e-5)


def test_all_convolutions_of_a_unet_get_a_lora_or_those_of_targets():
    unet = smp_model("unet", "resnet18", classes=2, encoder_depth=3, decoder_channels=[16, 8, 8])
    convolutions = {n for n, layer in unet.named_modules() if isinstance(layer, nn.Conv2d)}
    decoder = {name for name in convolutions if name.startswith("network.decoder")}
    adapted = add_lora(copy.deepcopy(unet), rank=2)
    assert {n.split(".lora_A")[0] for n, _ in adapted.named_parameters() if ".lora_A" in n} == convolutions
    adapted = add_lora(unet, rank=2, targets=["network.decoder*"])
    assert {n.split(".lora_A")[0] for n, _ in adapted.named_parameters() if ".lora_A" in n} == decoder


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"targets": ["decoder*"]}, r"'decoder\*'.*network\.encoder, network\.decoder"),
        ({"targets": ["network.head"], "modules_to_save": ["network.head"]}, "'network.head' to match"),
        ({"targets": ["network.decoder*"]}, "all 1 are refused .a convolution in 3 groups cannot be merged"),
        ({"rank": 0}, "Expected rank ≥ 1 and dropout in .0, 1. but got 0 and 0.0"),
        ({"dropout": 1.0}, "but got 8 and 1.0"),
        ({"modules_to_save": ["head"]}, "'head' to match parts"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_changed(tiny, options, message):
    segmenter = tiny(groups=3)
    before = fingerprint(segmenter)
    with pytest.raises(ValueError, match=message):
        add_lora(segmenter, **options)
    assert fingerprint(segmenter) == before
    assert all(p.requires_grad for p in segmenter.parameters())


def test_a_second_adapter_and_a_missing_one_are_refused(tiny):
    plain = tiny()
    with pytest.raises(ValueError, match="has none; use adapter=lora, or reference=frozen"), adapter_off(plain):
        pass
    with pytest.raises(ValueError, match="Expected a network without an adapter"):
        add_lora(add_lora(plain, rank=2), rank=2)


def test_peft_opens_an_adapter_saved_alone(tiny, image, tmp_path):
    plain = tiny().eval()
    # Not the decoder, which is dilated.
    options = {"rank": 2, "alpha": 6.0, "dropout": 0.25, "targets": ["network.encoder*"]}
    options["modules_to_save"] = ["network.head"]
    adapted = trained(add_lora(copy.deepcopy(plain), **options)).eval()
    save_adapter(tmp_path / "adapter", adapted)
    assert sorted(path.name for path in (tmp_path / "adapter").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    save_weights(tmp_path / "whole.safetensors", adapted)
    size = (tmp_path / "adapter/adapter_model.safetensors").stat().st_size
    assert size < (tmp_path / "whole.safetensors").stat().st_size
    opened = PeftModel.from_pretrained(copy.deepcopy(plain), tmp_path / "adapter").eval()
    assert torch.equal(opened(image), adapted(image))
    assert opened.base_model.model.network.encoder[0].lora_dropout["default"].p == 0.25


def test_weights_of_a_network_with_an_adapter_say_what_is_missing(tiny, tmp_path):
    save_weights(tmp_path / "plain.safetensors", tiny())
    save_weights(tmp_path / "lora.safetensors", add_lora(tiny(), rank=2))
    with pytest.raises(ValueError, match="load the weights before the adapter is added"):
        load_weights(tmp_path / "plain.safetensors", add_lora(tiny(), rank=2))
    with pytest.raises(ValueError, match="the file holds an adapter: add one of the same rank and targets"):
        load_weights(tmp_path / "lora.safetensors", tiny())

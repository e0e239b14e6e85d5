"""Networks of transformers, from tiny configurations: built, saved for both libraries, and loaded."""

import json
import socket
import sys
from importlib import metadata

import pytest
import torch
from transformers import AutoModelForSemanticSegmentation

from segdpo.models import Segmenter, build_named, fingerprint, save_weights, transformers_model, without_download


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    """No test opens a connection, nor tries to."""

    def refuse(*_):
        pytest.fail("opened a connection")

    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, refuse)


IMAGE = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
CONVNEXT = {
    "model_type": "convnext",
    "hidden_sizes": [8] * 4,
    "depths": [1] * 4,
    "out_features": ["stage1", "stage2", "stage3", "stage4"],
}
TINY = {
    "segformer": {
        "hidden_sizes": [8] * 4,
        "depths": [1] * 4,
        "num_attention_heads": [1] * 4,
        "decoder_hidden_size": 8,
        "sr_ratios": [1] * 4,
    },
    "upernet": {"backbone_config": CONVNEXT, "hidden_size": 8, "auxiliary_channels": 8, "pool_scales": [1, 2]},
    "dpt": {
        "hidden_size": 16,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "image_size": 32,
        "patch_size": 8,
        "backbone_out_indices": [0, 1, 2, 3],
        "neck_hidden_sizes": [8] * 4,
        "fusion_hidden_size": 8,
    },
}
SMALL = TINY["segformer"]


def node(kind, classes=3, **options):
    network = {"_target_": "segdpo.models.transformers_model", "_partial_": True, "model_type": kind, **options}
    return {
        "_target_": "segdpo.models.wrap",
        "network_factory": network,
        "classes_argument": "num_labels",
        "multiple": 32,
        "classes": classes,
    }


def described(model, names):
    return {"model": model, "adapter": None, "classes": names, "mean": [0.5], "std": [0.5]}


def randomised(segmenter):
    """Give every parameter a value of its own, so that none that is lost goes unnoticed."""
    torch.manual_seed(1)
    for parameter in segmenter.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return segmenter.eval()


@pytest.mark.parametrize("kind", TINY)
def test_a_tuned_network_is_loaded_by_transformers_and_by_segdpo(tmp_path, kind):
    model = node(kind, **TINY[kind])
    segmenter = randomised(build_named(model, tmp_path, "model"))
    segmenter.description = described(model, ["background", "cell", "nucleus"])
    with torch.no_grad():
        logits = segmenter(IMAGE)
        assert logits.shape == (1, 3, 32, 32)
        segmenter.save_pretrained(tmp_path)
        theirs = AutoModelForSemanticSegmentation.from_pretrained(tmp_path)
        torch.testing.assert_close(theirs(IMAGE).logits, segmenter.network(IMAGE).logits)
        assert theirs.config.id2label == {0: "background", 1: "cell", 2: "nucleus"}
        ours = Segmenter.from_pretrained(tmp_path)
        torch.testing.assert_close(ours(IMAGE), logits)
    assert fingerprint(ours) == fingerprint(segmenter)


def test_one_logit_of_two_classes_is_named_after_the_object(tmp_path):
    model = node("segformer", 2, **SMALL)
    segmenter = build_named(model, tmp_path, "model")
    segmenter.description = described(model, ["background", "cell"])
    segmenter.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["id2label"] == {"0": "cell"}


def test_weights_that_do_not_fit_are_an_error(tmp_path):
    model = node("segformer", **SMALL)
    segmenter = build_named(model, tmp_path, "model")
    segmenter.description = described(model, ["a", "b", "c"])
    segmenter.save_pretrained(tmp_path)
    save_weights(tmp_path / "model.safetensors", torch.nn.Conv2d(3, 1, 1), {"format": "pt"})
    with pytest.raises(ValueError, match=r"model\.safetensors.*missing_keys.*unexpected_keys"):
        Segmenter.from_pretrained(tmp_path)


@pytest.mark.parametrize("kind", ["segformer", "upernet"])
def test_the_architecture_of_pretrained_weights_is_written_out(tmp_path, kind):
    first = transformers_model(3, model_type=kind, **TINY[kind])
    first.save_pretrained(tmp_path)
    started = {"_target_": "segdpo.models.transformers_model", "_partial_": True, "pretrained": str(tmp_path)}
    again = build_named({**started, "num_labels": 3, "_partial_": False}, tmp_path, "model", trusted=["segdpo"])
    assert fingerprint(again) == fingerprint(first)
    assert transformers_model(5, pretrained=str(tmp_path)).config.num_labels == 5
    written = without_download({"network_factory": started, "others": [1]})["network_factory"]
    assert (written["model_type"], "pretrained" in written) == (kind, False)
    # Such a node may be in a file that someone sends: it is built without trusting it.
    built = build_named({**json.loads(json.dumps(written)), "num_labels": 3, "_partial_": False}, tmp_path, "model")
    assert {n: p.shape for n, p in built.named_parameters()} == {n: p.shape for n, p in first.named_parameters()}


def test_pretrained_weights_that_are_not_here_stay_named(tmp_path):
    nowhere = {"_target_": "segdpo.models.transformers_model", "pretrained": str(tmp_path / "nowhere")}
    assert without_download(nowhere) == nowhere


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hiden_sizes": [8]}, r"segformer \(.*hidden_sizes.*\) but got hiden_sizes"),
        ({"model_type": "gpt2"}, r"model_type to be one of .*segformer.* but got 'gpt2'"),
        ({"model_type": "upernet", "backbone": "owner/name"}, "backbone"),
        (
            {"model_type": "upernet", "backbone_config": {"model_type": "timm_backbone", "backbone": "x"}},
            "timm_backbone",
        ),
        ({"model_type": "upernet", "backbone_config": {**CONVNEXT, "auto_map": {}}}, "auto_map"),
        ({"model_type": "upernet", "backbone_config": {"hidden_sizes": [8]}}, r"backbone_config\.model_type"),
    ],
    ids=str,
)
def test_options_that_transformers_would_keep_or_follow_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        transformers_model(2, **options)


def test_without_transformers_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.setattr(metadata, "requires", lambda _: ['transformers; extra == "hub"'])
    with pytest.raises(ImportError, match=r"transformers.*pip install 'segdpo\[hub\]'"):
        transformers_model(2)

"""Files from others: what a header or a run's configuration may name, and what is refused before it is called."""

import json
import sys
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from segdpo.inference import open_segmenter
from segdpo.models import (
    build_named,
    check_resolvers,
    check_targets,
    checked,
    save_weights,
    targets,
    without_interpolations,
)

STORED = Path(__file__).parent / "stored"
FILE = Path("weights.safetensors")
CONVOLUTION = {"_target_": "torch.nn.Conv2d", "_partial_": True, "in_channels": 3, "kernel_size": 1}
MODEL = {
    "_target_": "segdpo.models.wrap",
    "network_factory": CONVOLUTION,
    "classes": 2,
    "classes_argument": "out_channels",
}


def saved(folder, model, adapter=None):
    described = {"model": model, "adapter": adapter, "classes": ["a", "b"], "mean": [0.0], "std": [1.0]}
    save_weights(folder / "policy.safetensors", nn.Conv2d(3, 1, 1), {"config": json.dumps(described)})
    return folder / "policy.safetensors"


def test_a_target_inside_an_interpolation_is_never_resolved(tmp_path):
    written = tmp_path / "written"
    hidden = "${oc.create:{_target_: pathlib.Path.write_text, _args_: [{_target_: pathlib.Path, _args_: ['%s']}, x]}}"
    network = {"_target_": "torch.nn.Sequential", "_partial_": True, "_args_": [hidden % written]}
    model = {**MODEL, "network_factory": network, "classes_argument": None}
    with pytest.raises(ValueError, match=r"policy\.safetensors: .*network_factory\._args_\.0"):
        open_segmenter(saved(tmp_path, model))
    adapter = {"_target_": "segdpo.models.add_lora", "_partial_": True, "targets": ["${oc.env:HOME}"]}
    with pytest.raises(ValueError, match=r"adapter\.targets\.0"):
        open_segmenter(saved(tmp_path, MODEL, adapter))
    assert not written.exists()


GADGETS = {
    "sympy.sympify": {"a": "1"},
    "torch.load": {"f": "x.pt", "weights_only": False},
    "torch.hub.load": {"repo_or_dir": "a/b", "model": "c"},
    "pathlib.Path.write_text": {"self": "x", "data": "y"},
    "timm.models.load_state_dict": {"checkpoint_path": "x.pt", "weights_only": False},
    "transformers.SegformerForSemanticSegmentation.from_pretrained": {"trust_remote_code": True},
    "transformers.AutoModelForSemanticSegmentation.from_pretrained": {"trust_remote_code": True},
    "transformers.models.auto.modeling_auto.AutoModel.from_pretrained": {},
    "torchvision.datasets.utils._decompress": {"from_path": "x.gz"},
    "torchvision.models.get_model": {"name": "resnet18"},
    "torch.nn.os.system": {"command": "true"},
    "torch.nn.modules.module.torch.load": {"f": "x.pt"},
    "torch.nn.functional.relu": {},
    "torch.nn.Module.load_state_dict": {},
    "torch.nn.Parameter": {},
    "torchvision.models.segmentation.fcn.partial": {},
    "segmentation_models_pytorch.from_pretrained": {"pretrained_model_name_or_path": "a/b"},
    "monai.networks.nets.resnet50": {"pretrained": True},
    "monai.networks.nets.TorchVisionFCModel": {},
    "monai.networks.nets.TorchVisionFullyConvModel": {},
    "monai.networks.nets.MilModel": {},
    "monai.networks.nets.Transchex": {},
    "segdpo.files.write_atomically": {"path": "x", "content": "y"},
    "segdpo.inference.open_network": {"path": "x.pt"},
    "builtins.eval": {},
    "os.system": {"command": "true"},
    "": {},
}


@pytest.mark.parametrize("target", GADGETS)
def test_a_header_names_networks_and_nothing_else(target, tmp_path):
    network = {"_target_": target, "_partial_": True, **GADGETS[target]}
    with pytest.raises(ValueError, match="--trust") as said:
        open_segmenter(saved(tmp_path, {**MODEL, "network_factory": network}))
    for part in ("policy.safetensors", target, "model.network_factory"):
        assert part in str(said.value)
    with pytest.raises(ValueError, match=r"--trust"):
        open_segmenter(saved(tmp_path, MODEL, network))


SEGFORMER = {"_target_": "segdpo.models.transformers_model", "_partial_": True}
REFUSED = {
    "a hub name": {"_target_": "segdpo.models.smp_model", "encoder_name": "tu-hf-hub:some/one"},
    "a folder": {"_target_": "segmentation_models_pytorch.Unet", "encoder_name": "tu-local-dir:x"},
    "remote code": {"_target_": "transformers.SegformerConfig", "trust_remote_code": True},
    "an unknown option": {"_target_": "transformers.SegformerConfig", "surprise": 1},
    "a kernel": {**SEGFORMER, "attn_implementation": "kernels-community"},
    "a hidden key": {**SEGFORMER, "options": {"_attn_implementation": "x"}},
    "a pickle": {"_target_": "torch.nn.ReLU", "weights_only": False},
    "no list": {"_target_": "torch.nn.ReLU", "_args_": "abc"},
    "no flag": {"_target_": "torch.nn.ReLU", "_partial_": "yes"},
    "not recursive": {"_target_": "torch.nn.ReLU", "_recursive_": False},
    "a number as a name": {"_target_": "torch.nn.ReLU", 5: 1},
    "another special key": {"_target_": "torch.nn.ReLU", "_call_": 1},
    "a target that is no text": {"_target_": ["torch.nn.ReLU"]},
    "bytes": {"_target_": "torch.nn.ReLU", "inplace": b"x"},
    "fetching by another name": {**MODEL, "classes_argument": "pretrained"},
}


@pytest.mark.parametrize("node", REFUSED.values(), ids=REFUSED)
def test_arguments_are_plain_values_that_name_no_file(node):
    with pytest.raises(ValueError, match=r"weights\.safetensors: .*model"):
        checked(node, FILE, "model")


def test_nodes_lie_at_most_four_deep_and_lists_not_without_end():
    node = {"_target_": "torch.nn.ReLU"}
    for _ in range(3):
        node = {"_target_": "torch.nn.Sequential", "_args_": [node]}
    assert checked(node, FILE, "model") == node
    with pytest.raises(ValueError, match=r"4"):
        checked({"_target_": "torch.nn.Sequential", "_args_": [node]}, FILE, "model")
    endless = []
    endless.append(endless)
    with pytest.raises(ValueError, match=r"model"):
        checked({"_target_": "torch.nn.Sequential", "_args_": [endless]}, FILE, "model")


def test_a_header_nested_without_end_is_one_error(tmp_path):
    deep = "[" * 100_000 + "]" * 100_000
    save_weights(tmp_path / "policy.safetensors", nn.Conv2d(3, 1, 1), {"config": deep})
    with pytest.raises(ValueError, match=r"policy\.safetensors"):
        open_segmenter(tmp_path / "policy.safetensors")


@pytest.mark.parametrize(
    ("node", "nothing"),
    [
        ({"_target_": "segmentation_models_pytorch.Unet", "encoder_weights": "imagenet"}, "encoder_weights"),
        ({"_target_": "segmentation_models_pytorch.Unet"}, "encoder_weights"),
        ({"_target_": "segmentation_models_pytorch.create_model", "arch": "fpn"}, "encoder_weights"),
        ({"_target_": "torchvision.models.segmentation.deeplabv3_resnet50"}, "weights_backbone"),
        ({**SEGFORMER, "pretrained": "some/one"}, "pretrained"),
        ({"_target_": "monai.networks.nets.FlexibleUNet", "pretrained": True}, "pretrained"),
        ({"_target_": "segdpo.models.smp_model", "checkpoint_path": "x.pt"}, "checkpoint_path"),
        ({"_target_": "segdpo.models.smp_model", "pretrained_cfg": {"file": "x.pt"}}, "pretrained_cfg"),
    ],
)
def test_what_would_fetch_or_read_a_file_is_set_to_none(node, nothing):
    assert checked(node, FILE, "model")[nothing] is None


def test_a_network_larger_than_its_file_is_refused_before_it_takes_memory(tmp_path):
    large = {**MODEL, "network_factory": {**CONVOLUTION, "in_channels": 2**30}}
    with pytest.raises(ValueError, match=r"(?s)policy\.safetensors: model .*network of at most \d+ numbers"):
        open_segmenter(saved(tmp_path, large))


def test_a_segformer_of_another_size_says_how_it_opens(tmp_path):
    small = {**SEGFORMER, "depths": [1, 1, 1, 1], "hidden_sizes": [8, 8, 8, 8], "num_attention_heads": [1, 1, 1, 1]}
    model = {**MODEL, "network_factory": small, "classes_argument": "num_labels"}
    network = build_named(model, FILE, "model")
    model["network_factory"] = {**SEGFORMER, "pretrained": "some/one"}
    described = {"model": model, "classes": ["a", "b"], "mean": [0.0], "std": [1.0]}
    save_weights(tmp_path / "policy.safetensors", network, {"config": json.dumps(described)})
    with pytest.raises(ValueError, match=r"--trust segdpo"):
        open_segmenter(tmp_path / "policy.safetensors")
    assert checked(model, FILE, "model", trusted=["segdpo"])["network_factory"]["pretrained"] == "some/one"


def test_positional_weights_are_not_fetched_either():
    node = {"_target_": "segmentation_models_pytorch.Unet", "_args_": ["resnet18", 5, "imagenet"]}
    assert checked(node, FILE, "model")["_args_"] == ["resnet18", 5, None]


ALLOWED = [
    *[f"segmentation_models_pytorch.{name}" for name in ("Unet", "UnetPlusPlus", "MAnet", "Linknet", "FPN", "PSPNet")],
    *[f"segmentation_models_pytorch.{name}" for name in ("PAN", "DeepLabV3", "DeepLabV3Plus", "UPerNet", "DPT")],
    "segmentation_models_pytorch.Segformer",
    "segmentation_models_pytorch.create_model",
    *[f"torchvision.models.segmentation.{name}_resnet{depth}" for name in ("fcn", "deeplabv3") for depth in (50, 101)],
    "torchvision.models.segmentation.lraspp_mobilenet_v3_large",
    "transformers.SegformerForSemanticSegmentation",
    "transformers.UperNetForSemanticSegmentation",
    "transformers.UperNetConfig",
    "transformers.SwinConfig",
    "monai.networks.nets.UNet",
    "monai.networks.nets.SwinUNETR",
    "monai.networks.nets.unet.UNet",
    "torch.nn.Conv3d",
    "torch.nn.GroupNorm",
    "torch.nn.Sequential",
    "torch.nn.modules.conv.Conv2d",
    "segdpo.models.Segmenter",
    "segdpo.models.DenseRewardModel",
    "segdpo.models.ValueHead",
]


@pytest.mark.parametrize("target", ALLOWED)
def test_networks_of_the_libraries_are_allowed_by_name(target):
    assert checked({"_target_": target}, FILE, "model")["_target_"] == target


def test_a_network_of_transformers_builds_from_its_configuration():
    config = {"_target_": "transformers.SegformerConfig", "num_labels": 3, "depths": [1, 1, 1, 1]}
    network = {"_target_": "transformers.SegformerForSemanticSegmentation", "_partial_": True, "config": config}
    built = build_named({**MODEL, "network_factory": network, "classes": 3, "classes_argument": None}, FILE, "model")
    assert built.network.config.num_labels == 3


def test_a_package_that_is_trusted_may_be_named_and_its_arguments_are_free(tmp_path, monkeypatch):
    (tmp_path / "their_nets.py").write_text("import os\ndef make(path): return path\n")
    monkeypatch.syspath_prepend(tmp_path)
    node = {"_target_": "their_nets.make", "path": "/a/b"}
    assert build_named(node, FILE, "model", trusted=["their_nets"]) == "/a/b"
    with pytest.raises(ValueError, match=r"their_nets\.os\.system"):
        checked({"_target_": "their_nets.os.system"}, FILE, "model", trusted=["their_nets"])
    with pytest.raises(ValueError, match=r"model\.path"):
        checked({**node, "path": "${a}"}, FILE, "model", trusted=["their_nets"])
    assert "their_nets" in sys.modules


@pytest.mark.parametrize("name", ["first_release", "renamed"])
def test_files_of_earlier_versions_open(name, monkeypatch):
    """`renamed` is the same file under a target that MOVED maps."""
    monkeypatch.setattr(targets, "MOVED", {**targets.MOVED, "segdpo.models.wrapping": "segdpo.models"})
    segmenter, described = open_segmenter(STORED / f"{name}.safetensors")
    assert described["classes"] == ["background", "cell"]
    with torch.no_grad():  # a 1 × 1 convolution with weights 1, 2, 3 and bias −1
        logits = segmenter(torch.ones(1, 3, 2, 2))
    assert torch.equal(logits, torch.full((1, 1, 2, 2), 5.0))


def test_names_of_earlier_versions_are_those_of_today():
    assert targets.current_name("segdpo.models.segmenter.Segmenter") == "segdpo.models.Segmenter"
    assert targets.current_name("segdpo.pairs.judges.iou") == "segdpo.preferences.iou"
    assert targets.current_name("segdpo.data.transforms.albumentations.D4") == "segdpo.data.albumentations.D4"
    assert targets.current_name("segdpo.losses.listwise.plackett_luce") == "segdpo.listwise.plackett_luce"
    assert targets.current_name("segdpo.losses.reward_losses.plackett_luce") == "segdpo.losses.plackett_luce"
    assert targets.current_name("segdpo.regions.Boundary") == "segdpo.Boundary"
    assert targets.current_name("torch.nn.Conv2d") == "torch.nn.Conv2d"
    assert targets.current_name("segdpo.preferences.iou") == "segdpo.preferences.iou"
    assert {targets.current_name(f"{new}.x") for new in targets.MOVED.values()} == {
        f"{new}.x" for new in targets.MOVED.values()
    }


def test_a_yaml_of_the_user_may_have_names_of_earlier_versions():
    inner = {"_target_": "segdpo.pairs.annotators.Annotator", "noise": 0.5}
    with pytest.warns(FutureWarning) as warned:
        found = check_targets({"judge": {"_target_": "segdpo.pairs.judges.iou"}, "styles": [inner]})
    assert found == {
        "judge": {"_target_": "segdpo.preferences.iou"},
        "styles": [{"_target_": "segdpo.data.Annotator", "noise": 0.5}],
    }
    said = [str(warning.message) for warning in warned]
    assert len(said) == 2
    assert "segdpo.pairs.judges.iou is now segdpo.preferences.iou" in said[0]


def test_an_interpolation_is_named_with_its_file_and_key():
    with pytest.raises(ValueError, match=r"config\.yaml: .*data\.masks\.1"):
        without_interpolations({"data": {"masks": ["a", "x ${oc.env:HOME}"]}}, Path("config.yaml"))
    with pytest.raises(ValueError, match=r"config\.yaml"):
        without_interpolations({"${a}": 1}, Path("config.yaml"))


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "builtins.eval",
        "pathlib.Path.write_text",
        "torch.nn.modules.module.functools.partial",
        "importlib.import_module",
        "sympy.sympify",
        "torch.load",
        "torch.hub.load",
        "timm.models.load_state_dict",
        "torchvision.datasets.utils._decompress",
        "hydra.utils.instantiate",
        "numpy.load",
        "torch.nn.Module.__init__",
    ],
)
def test_a_yaml_of_the_users_calls_no_gadget(target):
    with pytest.raises(ValueError, match=target.replace(".", r"\.")):
        check_targets({"x": [{"_target_": target}]})
    with pytest.raises(ValueError, match=target.replace(".", r"\.")):
        check_targets({"_target_": "hydra.utils.get_method", "path": target})


def test_a_yaml_of_the_users_names_what_it_likes_beside_that(tmp_path, monkeypatch):
    (tmp_path / "their_losses.py").write_text("from functools import partial\nloss = partial(max, 1)\n")
    monkeypatch.syspath_prepend(tmp_path)
    for target in ("their_losses.loss", "torch.optim.Adam", "segdpo.PreferenceLoss", "torch.relu", "not_there.x"):
        check_targets({"_target_": target})
    with pytest.raises(ValueError, match="trust_remote_code"):
        check_targets({"_target_": "transformers.AutoModel.from_pretrained", "trust_remote_code": True})


def test_a_resolved_value_is_not_resolved_again(monkeypatch):
    monkeypatch.setenv("SURPRISE", "${oc.create:{_target_: os.system}}")
    node = OmegaConf.create({"_target_": "torch.nn.Conv2d", "padding_mode": "${oc.env:SURPRISE}"})
    with pytest.raises(ValueError, match="padding_mode"):
        check_targets(OmegaConf.to_container(node, resolve=True))


@pytest.mark.parametrize("text", ["${oc.create:{a: 1}}", "x ${oc.${b}:1}", "${oc.decode:'1'}", "${own:1}"])
def test_only_some_resolvers_resolve(text):
    with pytest.raises(ValueError, match=r"a\.0"):
        check_resolvers(OmegaConf.create({"a": [text], "b": "env"}))


def test_the_resolvers_that_our_yamls_use_resolve():
    kept = ["${oc.env:A,${b}}", "${oc.select:b,1}", "${hydra:runtime.output_dir}", "${now:%Y}", "${b}", "${.c.${b}}"]
    check_resolvers(OmegaConf.create({"a": kept, "b": "???"}))

import json
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from trained import MEAN, description, save_run, segmenter

from segdpo.inference import open_segmenter
from segdpo.models import ADAPTERS, add_lora, checked, load_weights, save_weights, weights_path
from segdpo.models.allowed import NETWORKS

IMAGE = torch.rand(2, 3, 10, 13)


@pytest.fixture
def network(tmp_path):
    return save_run(tmp_path)


def test_a_run_and_its_file_open_to_the_same_network(tmp_path, network):
    for path in (tmp_path, tmp_path / "policy.safetensors", str(tmp_path)):
        opened, described = open_segmenter(path, trusted=["trained"])
        assert torch.equal(opened(IMAGE), network(IMAGE))
        assert (opened.training, described["classes"], described["mean"]) == (False, ["background", "cell"], MEAN)


@pytest.mark.parametrize("prefix", ["policy.", "network."])
def test_a_checkpoint_opens_to_its_network(tmp_path, network, prefix):
    content = {
        "state_dict": {prefix + name: value for name, value in network.state_dict().items()},
        "hyper_parameters": {"config": description()},
        "global_step": 3,
    }
    torch.save(content, tmp_path / "last.ckpt")
    assert torch.equal(open_segmenter(tmp_path / "last.ckpt", trusted=["trained"])[0](IMAGE), network(IMAGE))


def test_an_adapter_is_merged(tmp_path, network):
    adapted = add_lora(segmenter(), rank=2, alpha=4.0)
    torch.manual_seed(3)
    for parameter in adapted.parameters():
        torch.nn.init.normal_(parameter)
    adapter = {"_target_": "segdpo.models.add_lora", "_partial_": True, "rank": 2, "alpha": 4.0}
    header = {"config": json.dumps({**description(), "adapter": adapter})}
    save_weights(tmp_path / "lora.safetensors", adapted, header)
    opened = open_segmenter(tmp_path / "lora.safetensors", trusted=["trained"])[0]
    assert not [name for name in opened.state_dict() if "lora" in name]
    torch.testing.assert_close(opened(IMAGE), adapted.eval()(IMAGE), rtol=1e-4, atol=1e-4)
    load_weights(tmp_path / "policy.safetensors", opened)  # the plain architecture again


def test_a_strangers_file_calls_nothing_that_is_not_trusted(tmp_path, network):
    with pytest.raises(ValueError, match=r"policy.safetensors: .*network_factory.* 'trained.two_layers'.*--trust tr"):
        open_segmenter(tmp_path)


def test_a_package_that_is_not_trusted_is_not_even_imported(tmp_path, monkeypatch):
    (tmp_path / "bad_package.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match=r"'bad_package.make'"):
        checked({"_target_": "bad_package.make"}, tmp_path, "model")


CONF = Path(__file__).parents[2] / "conf"
# model=target is the one that users fill in, and then have to trust.
OURS = [path for group in ("model", "adapter") for path in (CONF / group).glob("*.yaml") if path.stem != "target"]


@pytest.mark.parametrize("yaml", OURS, ids=lambda path: path.stem)
def test_what_the_yamls_build_is_trusted(yaml):
    table = ADAPTERS if yaml.parent.name == "adapter" else NETWORKS
    content = {key: value for key, value in OmegaConf.to_container(OmegaConf.load(yaml)).items() if value != "???"}
    checked({"_target_": "torch.nn.ReLU", **content, "defaults": None}, yaml, "model", table=table)


def test_a_target_that_does_not_exist_is_named():
    with pytest.raises(ValueError, match=r"'torch.nn.Conv9d'"):
        checked({"_target_": "torch.nn.Conv9d"}, Path(), "model")


def test_what_cannot_be_opened_says_why(tmp_path, network):
    with pytest.raises(FileNotFoundError, match="nowhere: no such run or file"):
        open_segmenter(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"Expected a run's folder, a .safetensors or a .ckpt"):
        weights_path(Path(__file__))
    (tmp_path / "run/checkpoints").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match="did the run finish"):
        open_segmenter(tmp_path / "run")
    torch.save({"state_dict": {}}, tmp_path / "run/checkpoints/last.ckpt")
    with pytest.raises(FileNotFoundError, match=r"the folder has .*checkpoints/last.ckpt: give one of them"):
        open_segmenter(tmp_path / "run")
    with pytest.raises(ValueError, match=r"last.ckpt: Expected a description .* model, classes, mean, std is missing"):
        open_segmenter(tmp_path / "run/checkpoints/last.ckpt")
    for content in ([1], {"hyper_parameters": [1]}):
        torch.save(content, tmp_path / "list.ckpt")
        with pytest.raises(ValueError, match=r"list.ckpt: .* model, classes, mean, std is missing"):
            open_segmenter(tmp_path / "list.ckpt")
    (tmp_path / "cut.ckpt").write_bytes(b"PK cut")
    with pytest.raises(ValueError, match=r"cut.ckpt"):
        open_segmenter(tmp_path / "cut.ckpt")
    save_weights(tmp_path / "bare.safetensors", network, {})
    with pytest.raises(ValueError, match=r"bare.safetensors: Expected a description"):
        open_segmenter(tmp_path / "bare.safetensors")


def test_a_checkpoint_that_torch_fails_at_is_named(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise OSError(22, "Invalid argument")

    torch.save({}, tmp_path / "last.ckpt")
    monkeypatch.setattr(torch, "load", fail)
    with pytest.raises(ValueError, match=r"last\.ckpt"):
        open_segmenter(tmp_path / "last.ckpt")


def test_a_description_that_does_not_build_and_weights_that_do_not_fit_are_errors(tmp_path, network):
    wrong = {**description(), "model": {**description()["model"], "classes": 1}}
    save_weights(tmp_path / "wrong.safetensors", network, {"config": json.dumps(wrong)})
    with pytest.raises(ValueError, match=r"(?s)cannot be built from its description.*model.classes"):
        open_segmenter(tmp_path / "wrong.safetensors", trusted=["trained"])
    save_weights(tmp_path / "other.safetensors", network, {"config": json.dumps(description(width=5))})
    with pytest.raises(ValueError, match=r"other.safetensors"):
        open_segmenter(tmp_path / "other.safetensors", trusted=["trained"])


@pytest.mark.parametrize(
    ("name", "value"), [("classes", 2), ("classes", [1, 2]), ("mean", 0.5), ("std", []), ("std", "1")]
)
def test_a_description_of_another_form_is_an_error(tmp_path, network, name, value):
    config = {**description(), name: value}
    save_weights(tmp_path / "policy.safetensors", network, {"config": json.dumps(config)})
    with pytest.raises(ValueError, match=rf"policy\.safetensors: Expected {name} .* list"):
        open_segmenter(tmp_path, trusted=["trained"])

"""Segmenter.save_pretrained, from_pretrained and push_to_hub: what is written, who can load it, what is refused."""

import json
import pickle
import sys
from importlib import metadata
from pathlib import Path

import huggingface_hub
import pytest
import segmentation_models_pytorch as smp
import torch
from fake_hub import stand_in
from safetensors.torch import load_file, save_file
from torch import nn
from trained import description, preparation_of, save_run

from segdpo import cli
from segdpo.inference import open_segmenter
from segdpo.models import Segmenter, add_lora, save_weights, smp_model

IMAGE = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
# One of the smallest.
ENCODER = "timm-mobilenetv3_small_minimal_100"
UNET = {"architecture": "unet", "encoder_name": ENCODER, "encoder_depth": 3, "decoder_channels": [8, 4, 2]}
NAMES = ["background", "cell", "nucleus"]


def unet_run(folder, names=NAMES, summary=None, **options):
    """Write what a run of a small U-Net leaves, and return its network."""
    torch.manual_seed(3)
    segmenter = smp_model(**UNET, classes=len(names)).eval()
    model = {"_target_": "segdpo.models.smp_model", **UNET, "classes": len(names), "encoder_weights": "imagenet"}
    described = {**description(names), "model": model, **options}
    save_weights(folder / "policy.safetensors", segmenter, {"config": json.dumps(described)})
    if summary is not None:
        (folder / "summary.json").write_text(json.dumps(summary))
    return segmenter


def interval(mean, n=60):
    return {"mean": mean, "low": mean - 0.01, "high": mean + 0.02, "n": n}


SUMMARY = {
    "task": "preference",
    "loss": "hinge_anchor",
    "data": "shapes",
    "reference_training": "noisy_masks",
    "seed": 4,
    "max_steps": 60,
    "versions": {"segdpo": "0.2.0"},
    "pairs": {"train": 210, "judgements": 840},
    "kept": {"rule": "safe", "network": "policy"},
    "policy": {"iou": interval(0.73), "dice": interval(0.84)},
    "reference": {"iou": interval(0.64), "dice": interval(0.75)},
    "difference": {"iou": interval(0.09), "dice": interval(0.09)},
}


def test_a_run_goes_through_the_folder_unchanged(tmp_path):
    preparation = preparation_of(("Resize", {"height": 32, "width": 32}), window=64)
    network = unet_run(tmp_path / "run", summary=SUMMARY, preparation=preparation)
    Segmenter.from_pretrained(tmp_path / "run").save_pretrained(tmp_path / "cells", license="cc-by-4.0")
    assert sorted(path.name for path in (tmp_path / "cells").iterdir()) == [
        "README.md", "config.json", "model.safetensors",
    ]  # fmt: skip
    again, described = open_segmenter(tmp_path / "cells")
    assert torch.equal(again(IMAGE), network(IMAGE))
    assert (again.classes, described["classes"], again.training) == (3, NAMES, False)
    assert described["preparation"].stored() == preparation
    # And once more, from the folder: nothing is lost.
    again.save_pretrained(tmp_path / "cells 2")
    assert (tmp_path / "cells 2/config.json").read_bytes() == (tmp_path / "cells/config.json").read_bytes()


def test_smp_loads_the_folder(tmp_path):
    network = unet_run(tmp_path / "run")
    Segmenter.from_pretrained(tmp_path / "run").save_pretrained(tmp_path / "cells")
    loaded = smp.from_pretrained(str(tmp_path / "cells")).eval()
    assert isinstance(loaded, smp.Unet)
    assert torch.equal(loaded(IMAGE), network(IMAGE))


def test_the_card_says_what_the_run_measured(tmp_path):
    preparation = preparation_of(("Resize", {"height": 32, "width": 32}))
    unet_run(tmp_path, ["background", "<b>*cell*</b>"], SUMMARY, preparation=preparation)
    Segmenter.from_pretrained(tmp_path).save_pretrained(tmp_path / "cells", license="mit", repo_id="me/cells")
    card = (tmp_path / "cells/README.md").read_text()
    front = huggingface_hub.ModelCard(card).data
    assert (front.license, front.library_name, front.pipeline_tag) == ("mit", "segdpo", "image-segmentation")
    assert "segmentation-models-pytorch" in front.tags
    for part in (
        "| loss | hinge_anchor |",
        "| reference_training | noisy_masks |",
        "| max_steps | 60 |",
        "| judgements | 840 |",
        "| this network | 0.730 (0.720 to 0.750) | 0.840 (0.830 to 0.860) | 60 |",
        "| difference | +0.090 (+0.080 to +0.110) |",
        "Resize(height=32, width=32)",
        '"me/cells"',
    ):
        assert part in card
    assert "<b>" not in card
    assert "*cell" not in card


@pytest.mark.parametrize(
    ("choices", "named"),
    [
        ({"task": "supervised", "judge": "iou"}, ["task", "data", "seed", "max_steps"]),
        (
            {"questions": "answered", "judge": "iou"},
            ["task", "loss", "data", "reference_training", "questions", "seed", "max_steps"],
        ),
    ],
)
def test_the_card_names_no_choice_that_had_no_part_in_the_run(tmp_path, choices, named):
    unet_run(tmp_path, summary=SUMMARY | choices)
    Segmenter.from_pretrained(tmp_path).save_pretrained(tmp_path / "cells")
    table = (tmp_path / "cells/README.md").read_text().split("|---|---|\n")[1]
    assert [row.split(" | ")[0].lstrip("| ") for row in table.splitlines()[: len(named)]] == named


def test_where_the_reference_was_kept_the_figures_are_its_own(tmp_path):
    unet_run(tmp_path, summary={**SUMMARY, "kept": {"rule": "safe", "network": "reference"}})
    Segmenter.from_pretrained(tmp_path).save_pretrained(tmp_path / "cells")
    card = (tmp_path / "cells/README.md").read_text()
    assert "| this network | 0.640 (0.630 to 0.660)" in card
    assert "0.730" not in card
    assert "weights of the reference" in card
    assert "license:" not in card


@pytest.mark.parametrize(
    "summary",
    [
        "",
        "[1]",
        '{"policy": 3, "pairs": [], "seed": {}}',
        '{"policy": {"iou": {"mean": "x"}}}',
        json.dumps({"policy": {"iou": interval(0.5) | {"mean": 10**400}}}),
    ],
    ids=len,
)
def test_a_damaged_summary_leaves_the_card_without_figures(tmp_path, summary):
    unet_run(tmp_path)
    (tmp_path / "summary.json").write_text(summary)
    Segmenter.from_pretrained(tmp_path).save_pretrained(tmp_path / "cells")
    assert "Not known." in (tmp_path / "cells/README.md").read_text().split("## Figures")[1]


def test_a_network_of_ones_own_names_its_package_on_the_card(tmp_path):
    network = save_run(tmp_path)
    Segmenter.from_pretrained(tmp_path, trusted=["trained"]).save_pretrained(tmp_path / "own")
    assert 'trusted=["trained"]' in (tmp_path / "own/README.md").read_text()
    assert torch.equal(Segmenter.from_pretrained(tmp_path / "own", trusted=["trained"])(IMAGE), network(IMAGE))
    with pytest.raises(ValueError, match=r"trained\.two_layers.*--trust trained"):
        Segmenter.from_pretrained(tmp_path / "own")


def test_a_run_of_an_earlier_version_needs_no_trust(tmp_path):
    stored = Path(__file__).parents[1] / "stored/run"
    Segmenter.from_pretrained(stored).save_pretrained(tmp_path)
    assert torch.equal(Segmenter.from_pretrained(tmp_path)(IMAGE), Segmenter.from_pretrained(stored)(IMAGE))
    card = (tmp_path / "README.md").read_text()
    assert "trusted" not in card
    assert "| this network | 0.219 (0.102 to 0.332) |" in card


def test_a_description_can_be_set_by_hand(tmp_path):
    segmenter = Segmenter(nn.Conv2d(3, 1, 1), 2)
    with pytest.raises(ValueError, match=r"segmenter\.description with model, classes, mean, std"):
        segmenter.save_pretrained(tmp_path)
    network = {"_target_": "torch.nn.Conv2d", "in_channels": 3, "out_channels": 1, "kernel_size": 1}
    model = {"_target_": "segdpo.models.Segmenter", "network": network, "classes": 2}
    segmenter.description = {"model": model, "classes": ["background", "cell"], "mean": [0.5], "std": [0.5]}
    segmenter.save_pretrained(tmp_path)
    assert torch.equal(Segmenter.from_pretrained(tmp_path)(IMAGE), segmenter(IMAGE))
    with pytest.raises(ValueError, match=r"license.*'My Own!'"):
        segmenter.save_pretrained(tmp_path, license="My Own!")
    with pytest.raises(ValueError, match="adapter"):
        (adapted := add_lora(segmenter, rank=1)).save_pretrained(tmp_path)
    assert adapted.description is not None


class Touch:
    def __reduce__(self):
        return Path.touch, (Path("touched"),)


MODEL = {"_target_": "segdpo.models.smp_model", **UNET, "classes": 3}
HOSTILE = {
    "a function": ({"model": {"_target_": "os.system", "_args_": ["touch touched"]}}, r"os\.system.*--trust os"),
    "code of another package": ({"model": {**MODEL, "_target_": "torch.hub.load"}}, r"torch\.hub\.load"),
    "a path": ({"model": {**MODEL, "encoder_name": "tu-../../x"}}, r"encoder_name.*without / "),
    "remote code": ({"model": {**MODEL, "trust_remote_code": True}}, "trust_remote_code"),
    "an interpolation": ({"model": {**MODEL, "encoder_name": "${oc.env:HOME}"}}, r"\$\{"),
    "a huge network": ({"model": {**MODEL, "in_channels": 10**9}}, r"at most \d+ numbers"),
    "a huge number": ({"model": {**MODEL, "classes": 10**400}}, "cannot be built"),
    "no model": ({"model": 3}, "cannot be built"),
    "a list as a model": ({"model": [MODEL]}, "Segmenter"),
    "wrong classes": ({"classes": {"a": 1}}, "classes"),
    "wrong mean": ({"mean": "0.5"}, "mean"),
    "an adapter that is none": ({"adapter": {"_target_": "os.system"}}, r"os\.system"),
    "a huge value range": ({"preparation": {**preparation_of(), "value_range": [0, 10**400]}}, "value_range"),
    "a transform that reads": (
        {"preparation": {**preparation_of(), "views": {"_target_": "albumentations.load", "_args_": ["x"]}}},
        r"albumentations\.load",
    ),
}


@pytest.mark.parametrize(("change", "message"), HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_config_is_an_error_and_runs_nothing(tmp_path, monkeypatch, change, message):
    monkeypatch.chdir(tmp_path)
    unet_run(tmp_path / "run")
    Segmenter.from_pretrained(tmp_path / "run").save_pretrained("cells")
    path = tmp_path / "cells/config.json"
    config = json.loads(path.read_text())
    del config["_segdpo"]["crc32"]  # with it, every change is an error
    config["_segdpo"] |= change
    path.write_text(json.dumps(config))
    with pytest.raises(ValueError, match=f"(?s)cells/.*{message}"):
        open_segmenter("cells")
    assert not (tmp_path / "touched").exists()


def test_a_changed_description_does_not_fit_its_checksum(tmp_path):
    segmenter = Segmenter(nn.Conv2d(3, 1, 1), 2)
    network = {"_target_": "torch.nn.Conv2d", "in_channels": 3, "out_channels": 1, "kernel_size": 1}
    model = {"_target_": "segdpo.models.Segmenter", "network": network, "classes": 2}
    segmenter.description = {"model": model, "classes": ["background", "ß"], "mean": [0.5], "std": [0.25]}
    segmenter.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content, sort_keys=True))  # as other programs write the same JSON
    assert torch.equal(Segmenter.from_pretrained(tmp_path)(IMAGE), segmenter(IMAGE))
    content["_segdpo"]["std"] = [0.5]
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"config\.json: .* crc32 .* damaged or was edited"):
        Segmenter.from_pretrained(tmp_path)


@pytest.mark.parametrize("text", ["", "[1, 2]", "{}", '{"_segdpo": 3}', "[" * 100_000, "\0"], ids=len)
def test_a_config_of_another_form_is_an_error(tmp_path, text):
    unet_run(tmp_path / "run")
    Segmenter.from_pretrained(tmp_path / "run").save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"config\.json"):
        open_segmenter(tmp_path)


def test_a_pickle_in_the_place_of_the_weights_is_an_error_and_runs_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    unet_run(tmp_path / "run")
    Segmenter.from_pretrained(tmp_path / "run").save_pretrained("cells")
    for content in (pickle.dumps(Touch()), b"", b"\xff" * 100):
        (tmp_path / "cells/model.safetensors").write_bytes(content)
        with pytest.raises(ValueError, match=r"model\.safetensors"):
            open_segmenter("cells")
    torch.save({"x": Touch()}, tmp_path / "cells/model.safetensors")
    with pytest.raises(ValueError, match=r"model\.safetensors"):
        open_segmenter("cells")
    (tmp_path / "cells/model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors"):
        open_segmenter("cells")
    assert not (tmp_path / "touched").exists()


def test_weights_of_another_network_are_an_error(tmp_path):
    unet_run(tmp_path / "run")
    Segmenter.from_pretrained(tmp_path / "run").save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors.pop("segmentation_head.0.bias")
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"model\.safetensors.*1 missing"):
        open_segmenter(tmp_path)


@pytest.fixture
def hub(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    return stand_in(monkeypatch, tmp_path / "snapshots")


def test_a_network_is_pushed_and_comes_back_by_its_name(tmp_path, hub):
    network = unet_run(tmp_path / "run")
    address = Segmenter.from_pretrained("run").push_to_hub("me/cells", license="mit")
    assert address == "https://huggingface.co/me/cells/commit/1"
    assert torch.equal(Segmenter.from_pretrained("me/cells")(IMAGE), network(IMAGE))
    assert torch.equal(open_segmenter(Path("me/cells@v1.0"))[0](IMAGE), network(IMAGE))
    files = ["config.json", "model.safetensors"]
    assert hub == [("me/cells", None, files), ("me/cells", "v1.0", files)]


def test_the_hub_is_asked_for_names_alone_and_its_error_is_explained(tmp_path, hub):
    (tmp_path / "outputs").mkdir()
    for path in ("outputs/mine", "mine", "a/b/c", "../x", "/tmp/nowhere", "me/x.safetensors", "me/x y"):
        with pytest.raises(FileNotFoundError, match="no such run or file;"):
            open_segmenter(path)
    assert hub == []
    with pytest.raises(FileNotFoundError, match=r"you/cells: .*could be read from the hub .*offline.*connect"):
        open_segmenter("you/cells")


def test_without_huggingface_hub_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    monkeypatch.setattr(metadata, "requires", lambda _: ['huggingface-hub>=1; extra == "hub"'])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ImportError, match=r"pip install 'segdpo\[hub\]'"):
        open_segmenter("me/cells")


def test_a_run_is_published_with_one_command(tmp_path, hub, capsys):
    unet_run(tmp_path / "run", summary=SUMMARY)
    assert cli.main(["publish", "run", "cells", "--license", "mit", "--push", "me/cells"]) == 0
    said = capsys.readouterr().out
    assert "cells: model.safetensors, config.json, README.md" in said
    assert "https://huggingface.co/me/cells/commit/1" in said
    assert '"me/cells"' in (tmp_path / "cells/README.md").read_text()
    assert cli.main(["publish", "nowhere", "cells"]) == 1

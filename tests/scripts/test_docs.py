"""The commands of prediction and export run on a small network; those of train and search in all pages compose."""

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from fake_hub import stand_in
from hydra import compose, initialize_config_dir
from PIL import Image as Pillow
from small import SMALL
from toy_records import toys
from trained import description, preparation_of
from warm import Warm

from segdpo import cli
from segdpo.data import write_folder
from segdpo.models import Segmenter, save_weights

ROOT = Path(__file__).parents[2]


def blocks(name, language):
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / "docs" / name).read_text(), re.DOTALL)


def commands(name):
    lines = [line for block in blocks(name, "bash") for line in block.replace("\\\n", " ").splitlines()]
    return [shlex.split(line, comments=True) for line in lines]


def small_network():
    """Return a network and the header of its weights."""
    convolution = {"_target_": "torch.nn.Conv2d", "_partial_": True, "in_channels": 3, "kernel_size": 3, "padding": 1}
    described = description()
    described["model"] |= {"network_factory": convolution, "classes_argument": "out_channels"}
    described["preparation"] = preparation_of(("Resize", {"height": 32, "width": 32}))
    return Segmenter(torch.nn.Conv2d(3, 1, 3, padding=1), 2, multiple=4), {"config": json.dumps(described)}


def test_prediction_and_export_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_weights("outputs/mine/policy.safetensors", *small_network())
    (tmp_path / "photos").mkdir()
    Pillow.fromarray(np.full((40, 50, 3), 90, np.uint8)).save("photos/one.png")
    pages = ("howto/predict.md", "howto/export.md")
    ran = [words for page in pages for words in commands(page)]
    assert len(ran) == 7
    for _, *words in ran:
        assert cli.main(words) == 0, words
    assert sorted(path.name for path in (tmp_path / "predictions").iterdir()) == ["masks", "overlays", "probabilities"]
    files, array, onnx_masks, program_masks, onnx = (block for page in pages for block in blocks(page, "python"))
    names = {}
    exec(files, names)
    exec(array, names)
    assert names["mask"].shape == (100, 150)
    exec(onnx_masks, names)
    assert names["mask"].shape == (40, 50)
    predicted = Pillow.open("predictions/masks/one.png")
    np.testing.assert_array_equal(names["mask"], predicted)
    exec(program_masks, names)
    np.testing.assert_array_equal(names["mask"], predicted)
    exec(onnx, names)
    assert names["mask"].shape == (1, 256, 320)


def test_all_of_hub_runs(tmp_path, monkeypatch):
    pytest.importorskip("datasets").disable_caching()
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    stand_in(monkeypatch, tmp_path / "snapshots")
    save_weights("outputs/mine/policy.safetensors", *small_network())
    photo = np.full((40, 50, 3), 90, np.uint8)
    (tmp_path / "photos").mkdir()
    Pillow.fromarray(photo).save("photos/one.png")
    write_folder("outputs/mined", toys(3), toys().classes)
    ran = [words[1:] for words in commands("howto/hub.md") if words[1] != "train"]
    assert [words[0] for words in ran] == ["publish", "predict", "pack", "pack"]
    for words in ran:
        assert cli.main(words) == 0, words
    names = {}
    for block in blocks("howto/hub.md", "python"):
        exec(block, names)
    np.testing.assert_array_equal(names["mask"], Pillow.open("predictions/masks/one.png"))
    assert (type(names["unet"]).__name__, names["segformer"].config.num_labels) == ("Unet", 3)
    assert len(names["rows"]) == 3


@pytest.mark.untraced
def test_the_quickstart_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ran = [words for words in commands("quickstart.md") if words[0] == "segdpo"]
    verbs = [words[1] for words in ran]
    assert verbs == ["train", "report", "mine", "pack", "predict", "train", "train", "train"]
    for _, verb, *words in ran[:5]:
        if verb in ("train", "mine"):
            short = [*SMALL, f"cache={tmp_path / 'cache'}"] if verb == "train" else []
            Warm([*words, *short], tmp_path, script="train.py" if verb == "train" else f"scripts/{verb}.py").finish()
        else:
            assert cli.main([verb, *words]) == 0, words
    assert (tmp_path / "outputs/first/report.html").is_file()
    assert len(list((tmp_path / "outputs/predictions/masks").rglob("*.png"))) == 20


# Commands of the results are those of conf/experiment/, which have tests of their own. "…" stands for options,
# and --config-dir names a folder of the user's.
PAGES = [path for path in sorted((ROOT / "docs").rglob("*.md")) if path.name != "results.md"]
TYPED = [words for page in [ROOT / "README.md", *PAGES] for words in commands(page)]
COMPOSED = sorted(
    {
        tuple(words[2:])
        for words in TYPED
        if words[1:2] in (["train.py"], ["train"], ["search"]) and not {"…", "--help", "--config-dir"} & set(words)
    }
)


@pytest.mark.parametrize("words", COMPOSED, ids=" ".join)
def test_the_commands_of_other_pages_compose(words):
    """Of each sweep its first run; where a launcher's plugin is not installed, all but the launcher."""
    overrides = [word.split(",")[0] for word in words if not word.startswith("-")]
    if "cluster=ray" in overrides:
        pytest.importorskip("hydra_plugins.hydra_ray_launcher")
    if "cluster=slurm" in overrides:
        pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = compose("train", overrides, return_hydra_config=True)
    assert len(config.hydra.overrides.task) + len(config.hydra.overrides.hydra) == len(overrides)

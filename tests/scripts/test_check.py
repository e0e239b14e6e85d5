"""segdpo check of a folder as people have it: what it prints, writes, and says about training."""

import re
import shlex
from pathlib import Path

import layouts
import numpy as np
import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from layouts import IDS, OBJECT, images, save
from stored import contents

from segdpo.cli import check
from segdpo.data.readiness import command_line

CONF = Path(__file__).parents[2] / "conf"


@pytest.fixture
def run(capsys):
    def call(*words):
        status = check([str(word) for word in words])
        return status, capsys.readouterr().out

    return call


def train_words(out):
    """The words of the command that was printed."""
    (line,) = [line for line in out.splitlines() if line.startswith("segdpo train ")]
    return shlex.split(line)[2:]


def data_of(words):
    """The data set that the words of a command name."""
    named = [word for word in words if word.startswith(("data=", "data."))]
    with initialize_config_dir(str(CONF), version_base=None):
        return instantiate(compose(overrides=[f"+{named[0]}", *named[1:]]).data, _convert_="all")


def same(one, other):
    assert (one.classes, len(one)) == (other.classes, len(other))
    for k in range(len(one)):
        a, b = one[k], other[k]
        assert (a.id, a.mask_names, a.group, a.split) == (b.id, b.mask_names, b.group, b.split)
        np.testing.assert_array_equal(a.masks, b.masks)
        assert (a.gold is None) == (b.gold is None)
        if a.gold is not None:
            np.testing.assert_array_equal(a.gold, b.gold)


@pytest.mark.untraced
@pytest.mark.parametrize("build", layouts.KNOWN, ids=lambda build: build.__name__)
def test_the_command_and_the_yaml_read_the_same_records(tmp_path, run, build, monkeypatch):
    """Nothing is guessed by either: the function that looks at names is taken away."""
    root = tmp_path / "my data (2)"
    root.mkdir()
    build(root)
    status, out = run(root, "--yaml", tmp_path / "mine.yaml", "--allow", "duplicate image")
    if build is layouts.images_alone:
        assert (status, "not ready to train; missing:\n  - masks: " in out) == (0, True)
        return
    assert (status, "\nready to train:\n  - " in out) == (0, True)
    expected = instantiate({"_target_": "segdpo.data.plain_folder", "root": str(root)})
    monkeypatch.setattr("segdpo.data.guessing.guess.find_layout", None)
    values = yaml.safe_load((tmp_path / "mine.yaml").read_text())
    same(instantiate(values, _convert_="all"), expected)
    same(data_of(train_words(out)), expected)


def test_what_is_printed_and_written(tmp_path, run):
    root = tmp_path / "cells"
    layouts.black_and_white(root)
    before = contents(root)
    status, out = run(root, "--html", tmp_path / "sheet.html")
    assert status == 0
    assert out.startswith(
        "plain: 6 images in images/, gold of 3 in masks/ (0/255 → background, object), no candidates\n"
    )
    assert "6 images, 0 candidate masks, 0 pairs: nothing is wrong" in out
    printed = yaml.safe_load(re.search(r"_target_: segdpo\.data\.plain_folder\n(.+\n)+", out)[0])
    assert printed["root"] == str(root)
    assert printed["mask_format"] == {"kind": "ids", "values": {0: 0, 255: 1}, "only_values": True}
    words = train_words(out)
    assert words[:3] == ["data=plain", f"data.root={root}", "data.images=images"]
    assert "reference_training=few_masks" in words
    assert "candidates=own_candidates" in words
    assert "judge=agreement" in words
    assert words[-1] == "hydra.run.dir=outputs/cells"
    assert "segdpo predict outputs/cells NEW_IMAGES --out outputs/cells/predictions\n" in out
    assert "Ready to train" in (tmp_path / "sheet.html").read_text()
    assert contents(root) == before


def test_options_replace_the_guess_with_or_without_data(tmp_path, run):
    layouts.annotators(tmp_path)
    for word in ("masks={anna:masks_anna}", "data.masks={anna:masks_anna}"):
        status, out = run(tmp_path, word)
        assert (status, "candidates anna (6): 0/255, not used: masks_ben/\n" in out) == (0, True)
    assert "data.masks={anna:masks_anna}" in train_words(out)
    assert "reference_training=few_masks" not in out


def test_a_question_ends_the_check_and_nothing_is_written(tmp_path, run):
    images(tmp_path / "f", "images/*.png")
    for name in IDS:
        save(tmp_path / f"f/masks/{name}.png", OBJECT[name] * np.uint8(7))
    before = contents(tmp_path)
    status, out = run(tmp_path / "f", "--html", tmp_path / "a.html", "--yaml", tmp_path / "a.yaml")
    assert status == 1
    assert out.startswith("error question: ")
    assert "0 and 7" in out
    assert contents(tmp_path) == before
    answer = shlex.split(re.search(r"'data\.[^']+'", out)[0])
    assert run(tmp_path / "f", *answer)[0] == 0


def test_what_is_missing_comes_with_its_fix(tmp_path, run):
    layouts.black_and_white(tmp_path)
    save(tmp_path / "masks/zz.png", OBJECT["a1"])
    save(tmp_path / "masks/b2.png", np.zeros((3, 3), np.uint8))
    status, out = run(tmp_path, "--html", tmp_path / "sheet/page.html")
    assert status == 1
    assert "Not ready to train." in (tmp_path / "sheet/page.html").read_text()
    missing = out.partition("not ready to train; missing:\n")[2].splitlines()
    assert [line.split(":")[0] for line in missing] == ["  - 1 × mask without image", "  - 1 × size"]
    assert "--allow 'mask without image'" in missing[0]
    assert "segdpo train" not in out


def test_few_images_are_too_few(tmp_path, run):
    images(tmp_path, "images/*.png", IDS[:2])
    save(tmp_path / "masks/a1.png", OBJECT["a1"])
    out = run(tmp_path)[1]
    assert "not ready to train; missing:\n  - 4 images at least" in out


def test_reasons_are_whole_sentences_that_say_what_training_does(tmp_path, run):
    """Of 6 images, one validates, which is too few for the safety rule; images of several sizes have one reason."""
    layouts.black_and_white(tmp_path)
    save(tmp_path / "images/a1.png", np.zeros((40, 50), np.uint8))
    save(tmp_path / "masks/a1.png", np.eye(40, 50, dtype=np.uint8) * np.uint8(255))
    out = run(tmp_path, "--html", tmp_path / "page/sheet.html")[1]
    reasons = out.partition("ready to train:\n")[2].partition("\n\n")[0].splitlines()
    assert all(len(reason) > len("  - ") for reason in reasons)
    assert "  - the reference learns from gold masks: 3 images have one, and some of them validate and test" in reasons
    (held_out,) = [reason for reason in reasons if "validate:" in reason]
    assert held_out.startswith("  - 1 of 6 images validate: with fewer than 5")
    assert "keep=always" in held_out
    assert "; ." not in (tmp_path / "page/sheet.html").read_text()


def test_gold_of_every_image_can_be_trained_on_directly(tmp_path, run):
    images(tmp_path, "images/*.png")
    for name in IDS:
        save(tmp_path / f"masks/{name}.png", OBJECT[name])
    reasons = run(tmp_path)[1].partition("ready to train:\n")[2].partition("\n\n")[0]
    assert "every image has gold: task=supervised datamodule.items.target=gold" in reasons


def test_a_yaml_of_the_menu_is_named(tmp_path, run, monkeypatch):
    (tmp_path / "conf/data").mkdir(parents=True)
    layouts.black_and_white(tmp_path / "photos")
    monkeypatch.setattr("segdpo.files.conf_folder", lambda: tmp_path / "conf")
    out = run(tmp_path / "photos", "--yaml", tmp_path / "conf/data/mine.yaml")[1]
    assert train_words(out)[:2] == ["data=mine", "reference_training=few_masks"]


def test_a_yaml_in_a_folder_of_your_own_is_named_with_that_folder(tmp_path, run):
    layouts.black_and_white(tmp_path / "photos")
    written = tmp_path / "own/data/mine.yaml"
    words = train_words(run(tmp_path / "photos", "--yaml", written)[1])
    assert words[0] == "data=mine"
    assert words[-2:] == ["--config-dir", str(tmp_path / "own")]
    assert train_words(run(written)[1])[-2:] == words[-2:]
    (tmp_path / "own/data/few.yaml").write_text("defaults: [shapes]\ncount: 5\n")
    assert "5 images" in run(tmp_path / "own/data/few.yaml")[1]


def test_conf_is_that_of_the_installation(tmp_path, run, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "7 images" in run("conf/data/shapes.yaml", "count=7")[1]


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([(64, 64)], []),
        ([(100, 120), (128, 90)], ["transforms=resized", "transforms.size=128"]),
        ([(400, 500)], ["transforms=resized", "transforms.size=256"]),
        ([(1024, 2048)], ["transforms=crop"]),
    ],
)
def test_the_size_of_the_images_decides_on_the_transforms(tmp_path, run, sizes, expected):
    for k, name in enumerate(IDS):
        height, width = sizes[k % len(sizes)]
        pixels = np.zeros((height, width), np.uint8)
        pixels[: 20 + k] = 1
        save(tmp_path / f"images/{name}.png", pixels * np.uint8(90))
        save(tmp_path / f"masks/{name}.png", pixels)
    words = train_words(run(tmp_path)[1])
    assert [word for word in words if word.startswith("transforms")] == expected


@pytest.mark.parametrize(
    "value",
    [
        *("a b", 'say "x"', "null", "1st", "a,b", "x=1", "{id}", "#7", "ünï", "'", "back\\slash", "**/*_mask"),
        *(3, 2.5, None, True, [0.5, 4000]),
        *({"annotator 7": "a.json#annotator 7", "x,y": "z"}, {"kind": "ids", "values": {0: 0, 255: 1}}),
    ],
)
def test_any_value_passes_through_shell_and_hydra(value):
    words = shlex.split(command_line({"data.x": value}, []))[2:]
    with initialize_config_dir(str(CONF), version_base=None):
        config = compose(overrides=["+" + word for word in words])
    found = config.data.x
    assert (found if not hasattr(found, "_content") else instantiate(found, _convert_="all")) == value

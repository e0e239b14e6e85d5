"""segdpo predict in this process, on a network of two layers."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image as Pillow
from trained import MEAN, STD, save_run

from segdpo.cli import main
from segdpo.data import overlay
from segdpo.inference.image_files import find_images, probabilities

NAMES = ("background", "cell", "nucleus")
RNG = np.random.default_rng(0)


def picture(height, width, channels=3):
    return RNG.integers(0, 256, (height, width, channels), dtype=np.uint8)


def save(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Pillow.fromarray(pixels.squeeze()).save(path)
    return pixels


def logits_of(network, pixels, mean=MEAN, std=STD):
    """The whole image in float64's arithmetic, without windows."""
    inputs = (pixels / 255 - np.array(mean)) / np.array(std)
    with torch.no_grad():
        return network(torch.from_numpy(inputs.transpose(2, 0, 1)[None]).float())[0].double().numpy()


def call(*words):
    return main(["predict", *map(str, words), "--device", "cpu", "--trust", "trained"])


def test_masks_probabilities_and_overlays_of_a_folder(tmp_path, capsys):
    network = save_run(tmp_path / "run", NAMES)
    sizes = {"a": (20, 30), "b": (20, 30), "deep/c d": (9, 11), "deep/ä": (20, 30)}
    pictures = {name: save(tmp_path / f"in/{name}.png", picture(*size)) for name, size in sizes.items()}
    out = tmp_path / "out"
    words = ("--native", "--probabilities", "--overlays", "--batch", 2)
    assert call(tmp_path / "run", tmp_path / "in", "--out", out, *words) == 0
    said, counted = capsys.readouterr().out.splitlines()
    assert said == "native: images at their own size, in windows of 512, masks at the images' own size"
    assert counted == f"{out}: 4 of 4 images predicted, 0 skipped"
    for name, pixels in pictures.items():
        logits = logits_of(network, pixels)
        mask = np.array(Pillow.open(out / f"masks/{name}.png"))
        assert mask.dtype == np.uint8
        np.testing.assert_array_equal(mask, logits.argmax(0))
        stored = np.load(out / f"probabilities/{name}.npz")
        assert (list(stored["classes"]), stored["probabilities"].dtype) == (list(NAMES), np.float16)
        expected = np.exp(logits) / np.exp(logits).sum(0)
        np.testing.assert_allclose(stored["probabilities"], expected, atol=5e-4)
        np.testing.assert_array_equal(np.array(Pillow.open(out / f"overlays/{name}.png")), overlay(pixels, mask, NAMES))
    assert len([path for path in out.rglob("*") if path.is_file()]) == 12


def test_only_masks_by_default_and_a_single_file(tmp_path):
    network = save_run(tmp_path / "run")
    pixels = save(tmp_path / "one.bmp", picture(12, 12))
    assert call(tmp_path / "run/policy.safetensors", tmp_path / "one.bmp", "--out", tmp_path / "out") == 0
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["masks"]
    mask = np.array(Pillow.open(tmp_path / "out/masks/one.png"))
    np.testing.assert_array_equal(mask, logits_of(network, pixels)[0] > 0)


def test_windows_on_a_large_image_change_nothing_for_a_pixelwise_network(tmp_path):
    network = save_run(tmp_path / "run", NAMES, kernel=1)
    pixels = save(tmp_path / "in/large.png", picture(70, 101))
    words = ("--window", 32, "--overlap", 0.5, "--batch", 3, "--probabilities")
    assert call(tmp_path / "run", tmp_path / "in", "--out", tmp_path / "out", *words) == 0
    logits = logits_of(network, pixels)
    stored = np.load(tmp_path / "out/probabilities/large.npz")["probabilities"]
    np.testing.assert_allclose(stored, np.exp(logits) / np.exp(logits).sum(0), atol=5e-4)
    np.testing.assert_array_equal(np.array(Pillow.open(tmp_path / "out/masks/large.png")), logits.argmax(0))


def test_unreadable_images_are_named_and_the_others_are_predicted(tmp_path, capsys):
    save_run(tmp_path / "run")
    for name in ("a", "c", "z"):
        save(tmp_path / f"in/{name}.png", picture(8, 8))
    whole = (tmp_path / "in/z.png").read_bytes()
    (tmp_path / "in/b.png").write_bytes(whole[:-20])
    (tmp_path / "in/d.jpg").write_bytes(b"")
    Pillow.fromarray(np.zeros((8, 8), np.uint16)).save(tmp_path / "in/e.png")
    assert call(tmp_path / "run", tmp_path / "in", "--out", tmp_path / "out") == 1
    captured = capsys.readouterr()
    assert captured.out.endswith(f"{tmp_path / 'out'}: 3 of 6 images predicted, 3 skipped\n")
    assert f"skipped {tmp_path}/in/b.png: the PNG is cut short" in captured.err
    assert f"skipped {tmp_path}/in/d.jpg: cannot be decoded" in captured.err
    assert f"skipped {tmp_path}/in/e.png: Expected 8 bits a channel" in captured.err
    assert sorted(path.name for path in (tmp_path / "out").rglob("*.*")) == ["a.png", "c.png", "z.png"]


def test_a_network_for_grey_images_reads_them_grey(tmp_path):
    network = save_run(tmp_path / "run", in_channels=1, mean=[0.5], std=[0.5])
    pixels = save(tmp_path / "in/grey.png", picture(8, 8, 1))
    assert call(tmp_path / "run", tmp_path / "in", "--out", tmp_path / "out", "--overlays") == 0
    mask = np.array(Pillow.open(tmp_path / "out/masks/grey.png"))
    np.testing.assert_array_equal(mask, logits_of(network, pixels, [0.5], [0.5])[0] > 0)
    shown = np.array(Pillow.open(tmp_path / "out/overlays/grey.png"))
    np.testing.assert_array_equal(shown, overlay(np.repeat(pixels, 3, 2), mask, ("background", "cell")))


def test_images_of_one_name_and_predictions_among_the_images(tmp_path):
    for name in ("a.png", "a.jpg", "b.png", "out/masks/a.png"):
        save(tmp_path / name, picture(4, 4))
    found = find_images(tmp_path, leave_out=tmp_path / "out")
    assert {name: path.name for name, path in found.items()} == {"a.jpg": "a.jpg", "a.png": "a.png", "b": "b.png"}


def test_of_a_data_folder_only_its_images_are_predicted(tmp_path):
    for name in ("images/a.png", "images/deep/b.png", "masks/a.png"):
        save(tmp_path / name, picture(4, 4))
    assert set(find_images(tmp_path, leave_out=tmp_path / "out")) == {"a", "deep/b"}


def test_probabilities_of_one_channel_are_two_and_never_overflow():
    logits = np.array([[[0.0, np.log(3), 500.0, -500.0]]], np.float32)
    np.testing.assert_allclose(probabilities(logits)[:, 0], [[0.5, 0.25, 0, 1], [0.5, 0.75, 1, 0]], atol=1e-7)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("nowhere", "in"), "error nowhere: no such run or file"),
        (("run", "nowhere"), "error nowhere: no such file or folder"),
        (("run", "run"), "error run: Expected images but found none"),
        (("run", "in", "--overlap", 1), "error Expected overlap"),
    ],
)
def test_what_cannot_be_done_is_said_before_anything_is_written(tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    save_run(tmp_path / "run")
    save(tmp_path / "in/a.png", picture(4, 4))
    assert call(*words, "--out", "out") == 1
    assert capsys.readouterr().err.startswith(message)
    assert not Path("out").exists()

"""segdpo export on a network of two layers: the files are opened by their own libraries and compared."""

import json

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image as Pillow
from trained import MEAN, preparation_of, save_run

from segdpo import cli
from segdpo.data import read_preparation
from segdpo.inference import formats

NAMES = ("background", "cell", "nucleus")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    return folder, save_run(folder, NAMES)


def call(*words):
    return cli.main(["export", *map(str, words), "--trust", "trained"])


def from_onnx(path, image):
    return onnxruntime.InferenceSession(path).run(None, {"image": image.numpy()})[0]


def from_program(path, image):
    return torch.export.load(path).module()(image).detach().numpy()


KINDS = pytest.mark.parametrize(("form", "name", "predict"), [
    ("onnx", "n.onnx", from_onnx), ("torch_export", "n.pt2", from_program)
])  # fmt: skip


@KINDS
def test_a_file_of_one_size(run, tmp_path, capsys, form, name, predict):
    """13 × 10 is no multiple of 4: padding and cropping are in the file."""
    folder, network = run
    assert call(folder, tmp_path / name, "--format", form, "--height", 13, "--width", 10) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("1 × 3 × 13 × 10: largest difference ")
    assert float(said[0].split("difference ")[1].split(",")[0]) < 1e-4
    image = torch.randn(1, 3, 13, 10)
    with torch.no_grad():
        np.testing.assert_allclose(predict(tmp_path / name, image), network(image), atol=1e-5)
    assert [path.name for path in tmp_path.iterdir()] == [name]


@KINDS
def test_a_file_of_any_size(run, tmp_path, capsys, form, name, predict):
    folder, network = run
    assert call(folder, tmp_path / name, "--format", form, "--height", 16, "--width", 16, "--dynamic") == 0
    assert [line.split(":")[0] for line in capsys.readouterr().out.splitlines()[:2]] == [
        "1 × 3 × 16 × 16",
        "3 × 3 × 20 × 28",
    ]
    for shape in ((1, 3, 4, 8), (5, 3, 40, 12)):
        image = torch.randn(*shape)
        with torch.no_grad():
            np.testing.assert_allclose(predict(tmp_path / name, image), network(image), atol=1e-5)


def test_the_files_say_how_to_use_them(run, tmp_path):
    folder, _ = run
    call(folder, tmp_path / "n.onnx", "--height", 8, "--width", 8)
    notes = onnxruntime.InferenceSession(tmp_path / "n.onnx").get_modelmeta().custom_metadata_map
    assert (json.loads(notes["classes"]), json.loads(notes["mean"])) == (list(NAMES), MEAN)
    stored = json.loads(notes["preparation"])
    assert stored["views"]["mean"] == MEAN
    assert read_preparation(stored, tmp_path / "n.onnx").stored() == stored
    call(folder, tmp_path / "n.pt2", "--height", 8, "--width", 8, "--format", "torch_export")
    extra = {"classes": "", "mean": "", "preparation": ""}
    torch.export.load(tmp_path / "n.pt2", extra_files=extra)
    assert (json.loads(extra["classes"]), json.loads(extra["mean"])) == (list(NAMES), MEAN)
    assert json.loads(extra["preparation"]) == stored


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    for number, (height, width) in enumerate(((40, 50), (33, 90), (20, 30))):
        coarse = np.random.default_rng(number).integers(0, 256, (5, 6, 3), np.uint8)
        Pillow.fromarray(coarse).resize((width, height), Pillow.Resampling.BICUBIC).save(folder / f"{number}.png")
    return folder


def masks_of(path):
    """Return a function from one image to its mask, by the library that the file is for."""
    if path.suffix == ".onnx":
        session = onnxruntime.InferenceSession(path)
        return lambda image: session.run(["mask"], {"image": image[None]})[0][0]
    module = torch.export.load(path).module()
    return lambda image: module(torch.from_numpy(image[None]))[0].numpy()


@pytest.mark.parametrize(("form", "name"), [("onnx", "n.onnx"), ("torch_export", "n.pt2")])
def test_a_file_with_the_preparation_gives_the_masks_of_predict(tmp_path, photos, capsys, form, name):
    stored = preparation_of(("Resize", {"height": 24, "width": 32}), window=64)
    save_run(tmp_path / "run", NAMES, preparation=stored)
    words = ("--with-preparation", "--dynamic", "--format", form, "--height", 40, "--width", 50)
    assert call(tmp_path / "run", tmp_path / name, *words) == 0
    said = capsys.readouterr()
    assert [line.split("%")[0] for line in said.out.splitlines()[:2]] == [
        "1 × 3 × 40 × 50: 0.0000",
        "3 × 3 × 77 × 33: 0.0000",
    ]
    assert "the file sees images whole, predict in windows of 64" in said.err
    assert cli.predict([*map(str, (tmp_path / "run", photos, "--out", tmp_path / "out")), "--trust", "trained"]) == 0
    mask_of = masks_of(tmp_path / name)
    for number in range(3):
        image, predicted = (
            np.array(Pillow.open(folder / f"{number}.png")) for folder in (photos, tmp_path / "out" / "masks")
        )
        assert len(np.unique(predicted)) > 1
        assert (mask_of(image) != predicted).mean() <= 1e-3


@pytest.mark.parametrize("wrong", [1.0, float("nan")])
def test_a_file_that_computes_something_else_is_not_written(run, tmp_path, monkeypatch, capsys, wrong):
    folder, _ = run
    (tmp_path / "n.pt2").write_bytes(b"the old one")
    opened = formats.open_export
    monkeypatch.setattr(formats, "open_export", lambda content: lambda image: opened(content)(image) + wrong)
    assert call(folder, tmp_path / "n.pt2", "--height", 8, "--width", 8, "--format", "torch_export") == 1
    assert f"largest difference {wrong:g}, largest logit" in capsys.readouterr().err
    assert (tmp_path / "n.pt2").read_bytes() == b"the old one"
    assert len(list(tmp_path.iterdir())) == 1


def test_the_tolerance_is_of_the_largest_logit():
    assert formats.Check((1,), 9e-5, 0.1).passed
    assert not formats.Check((1,), 2e-4, 0.1).passed
    assert formats.Check((1,), 2e-4, 30.0).passed


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("nowhere", "n.onnx"), "nowhere: no such run or file"),
        (("RUN", "n.onnx", "--dynamic", "--height", 13), "Expected height and width as multiples of 4"),
        (("RUN", "n.onnx", "--height", 0), "Expected images of at least 1 pixel"),
    ],
)
def test_what_cannot_be_done_is_said(run, tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    assert call(*(run[0] if word == "RUN" else word for word in words)) == 1
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_another_format_is_refused(run, tmp_path):
    with pytest.raises(ValueError, match="a format of onnx, torch_export but got 'tflite'"):
        formats.export(run[1], tmp_path / "n", (1, 3, 8, 8), format="tflite")

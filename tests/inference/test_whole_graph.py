"""Preparation, network and classes as one graph, against what predict computes with albumentations and NumPy."""

from pathlib import Path

import cv2
import numpy as np
import onnxruntime
import pytest
import torch
from trained import segmenter

from segdpo.data import Pipeline, Preparation, albumentations
from segdpo.inference import formats
from segdpo.inference.whole_graph import WholeGraph, example_images, resized
from segdpo.preferences import Network, masks_of


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("size", [(1, 5), (37, 40), (64, 64), (64, 96), (200, 33)])
def test_images_are_resized_as_by_cv2_to_the_bit(size, channels):
    for wanted in ((32, 48), (64, 64), (31, 70)):
        image = torch.randint(0, 256, (1, channels, *size), dtype=torch.int32)
        ours = resized(image, wanted)[0].permute(1, 2, 0).numpy()
        theirs = cv2.resize(image[0].permute(1, 2, 0).byte().numpy(), wanted[::-1], interpolation=cv2.INTER_LINEAR)
        np.testing.assert_array_equal(ours, theirs.reshape(ours.shape))


def padded(**options):
    return albumentations.PadIfNeeded(**{"min_height": None, "min_width": None, **options})


BY_DIVISOR = {"pad_height_divisor": 32, "pad_width_divisor": 16}
PIPELINES = {
    "as it is": [],
    "resized": [albumentations.Resize(24, 40)],
    "padded": [padded(**BY_DIVISOR, position="top_left")],
    "centred": [padded(min_height=90, min_width=80, fill=40)],
    "resized and padded": [albumentations.Resize(24, 40), padded(**BY_DIVISOR)],
}
NAMES = {2: ("background", "cell"), 4: ("background", "a", "b", "c")}
COLOURS = {1: {"mean": [0.4], "std": [0.2]}, 3: {}}


def prepared(name, channels=3):
    steps = PIPELINES[name]
    return Preparation(Pipeline(steps, **COLOURS[channels]), channels=channels)


def network_of(classes, channels=3):
    torch.manual_seed(3)
    return segmenter(NAMES[classes], in_channels=channels)


def predicted(network, preparation, images):
    return masks_of(np.concatenate([Network(network, preparation).predict(image[None]) for image in images]))


@pytest.mark.parametrize("name", PIPELINES)
@pytest.mark.parametrize(("classes", "channels"), [(2, 1), (2, 3), (4, 3)])
def test_the_graph_computes_what_predict_computes(name, classes, channels):
    network, preparation = network_of(classes, channels), prepared(name, channels)
    images = example_images((2, channels, 50, 61))
    graph = WholeGraph(network, preparation, (2, channels, 50, 61))
    with torch.no_grad():
        found = graph(images).numpy()
    assert found.dtype == np.uint8
    assert len(np.unique(found)) > 1
    assert (found != predicted(network, preparation, images.numpy())).mean() <= 1e-3


def from_onnx(path, images):
    return onnxruntime.InferenceSession(path).run(["mask"], {"image": images})[0]


def from_program(path, images):
    return torch.export.load(path).module()(torch.from_numpy(images)).numpy()


KINDS = pytest.mark.parametrize(("form", "name", "run"), [
    ("onnx", "n.onnx", from_onnx), ("torch_export", "n.pt2", from_program)
])  # fmt: skip


@KINDS
def test_a_file_for_images_of_any_size(tmp_path, form, name, run):
    network, preparation = network_of(4), prepared("resized and padded")
    options = {"format": form, "dynamic": True, "preparation": preparation}
    checks = formats.export(network, tmp_path / name, (1, 3, 40, 40), **options)
    assert [check.shape for check in checks] == [(1, 3, 40, 40), (3, 3, 77, 26)]
    for size in ((40, 40), (24, 40), (13, 200), (301, 90)):
        images = example_images((2, 3, *size)).numpy()
        assert (run(tmp_path / name, images) != predicted(network, preparation, images)).mean() <= 1e-3


@KINDS
def test_a_file_for_images_of_one_size(tmp_path, form, name, run):
    network, preparation = network_of(2), prepared("padded")
    formats.export(network, tmp_path / name, (1, 3, 50, 61), format=form, preparation=preparation)
    images = example_images((1, 3, 50, 61)).numpy()
    assert (run(tmp_path / name, images) != predicted(network, preparation, images)).mean() <= 1e-3


def test_windows_are_no_part_of_the_file(tmp_path):
    network = network_of(2)
    preparation = Preparation(Pipeline(PIPELINES["resized"]), window=16)
    (check,) = formats.export(
        network, tmp_path / "n.pt2", (1, 3, 50, 61), format="torch_export", preparation=preparation
    )
    assert check.passed


def test_a_file_of_other_masks_is_not_written(tmp_path, monkeypatch):
    (tmp_path / "n.pt2").write_bytes(b"the old one")
    opened = formats.open_export
    monkeypatch.setattr(formats, "open_export", lambda content: lambda image: 1 - opened(content)(image))
    with pytest.raises(ValueError, match=r"masks of segdpo predict in all but 0\.1% .* 100\.0000%"):
        formats.export(
            network_of(2), tmp_path / "n.pt2", (1, 3, 8, 8), format="torch_export", preparation=prepared("resized")
        )
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"the old one"]


@pytest.mark.parametrize(
    ("steps", "problem"),
    [
        ([albumentations.LongestMaxSize(64)], "LongestMaxSize too"),
        ([padded(**BY_DIVISOR), albumentations.Resize(32, 32)], "Resize too"),
        ([albumentations.Resize(32, 32, interpolation=cv2.INTER_AREA)], "interpolation=3"),
        ([albumentations.Resize(32, 32, area_for_downscale="image")], "area_for_downscale=image"),
        ([albumentations.Resize(32, 32, p=0.5)], "left to chance"),
        ([padded(**BY_DIVISOR, position="random")], "position=random"),
        ([padded(**BY_DIVISOR, fill=(1, 2, 3))], r"fill=\(1"),
        ([padded(**BY_DIVISOR, border_mode=cv2.BORDER_REFLECT_101)], "border_mode=4"),
    ],
)
def test_what_a_graph_cannot_do(tmp_path, steps, problem):
    with pytest.raises(ValueError, match=f"{problem}.*without --with-preparation"):
        formats.export(network_of(2), tmp_path / "n", (1, 3, 50, 61), preparation=Preparation(Pipeline(steps)))
    assert not list(tmp_path.iterdir())


def test_any_size_needs_one_size_to_resize_to():
    with pytest.raises(ValueError, match=r"padded to multiples of 32 × 16.*leave out --dynamic"):
        formats.export(network_of(2), Path("n"), (1, 3, 50, 61), dynamic=True, preparation=prepared("padded"))

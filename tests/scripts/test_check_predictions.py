"""The masks that `segdpo predict` writes are those that a run and `segdpo evaluate` scored, by an IoU in NumPy."""

import shutil

import check_predictions
import numpy as np
import pytest
from gold_sources import Discs
from PIL import Image as Pillow
from small import SMALL, composed

from segdpo.cli import predict
from segdpo.data import Record, write_folder
from segdpo.inference import open_segmenter
from segdpo.preferences import Network
from segdpo.recipes.measure import Measurement, Predictions
from segdpo.recipes.run import open_run, run_recipe

# Trained and measured in a second; the network is better than nothing, so that masks are neither empty nor full.
OF_RUNS = [word for word in SMALL if not word.startswith("data.")]
QUICK = [
    *OF_RUNS,
    "task=supervised",
    "datamodule.items.target=gold",
    "trainer.max_steps=4",
    "callbacks=none",
    "logger=none",
    "datamodule.split.test=0.5",
]
SIZES = ((20, 31), (33, 17), (40, 40), (20, 31))


def of_many_sizes(root):
    source = Discs(12, sizes=SIZES)
    records = [source[number] for number in range(len(source))]
    write_folder(root, records, source.classes)


def of_several_classes(root):
    """Images of three classes, with pixels that are ignored, and one image without a class but the background."""
    records = []
    for number in range(12):
        height, width = SIZES[number % len(SIZES)]
        gold = np.zeros((height, width), np.uint8)
        if number:
            gold[: height // 2, 4:12], gold[height // 2 :, number:], gold[0] = 1, 2, 255
        noise = np.random.default_rng(number).integers(0, 60, (height, width, 3))
        image = (noise + 90 * (gold % 255)[..., None]).astype(np.uint8)
        records.append(Record(f"deep/image {number}", image, gold[None][:0], (), gold=gold))
    write_folder(root, records, ("background", "left", "right"))


def folder_of(write, root):
    write(root)
    return ["data=folder", f"data.root={root}"]


@pytest.fixture(scope="module", params=["shapes", "resized", "classes"])
def trained(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "shapes":
        own = ["data.count=24", "data.size=32"]
    elif request.param == "resized":
        own = ["transforms=resized", "transforms.size=24", *folder_of(of_many_sizes, folder / "data")]
    else:
        own = ["++transforms.window=16", "background=true", *folder_of(of_several_classes, folder / "data")]
    config = composed(*QUICK, *own, folder=folder)
    return request.param, run_recipe(config), config, folder / "run"


LINES = {
    "shapes": "as trained: padded to multiples of 32",
    "resized": "as trained: resized to 24 × 24",
    "classes": "as trained: padded to multiples of 32, in windows of 16",
}


@pytest.mark.untraced
def test_predict_evaluate_and_the_run_agree(trained, tmp_path, capsys):
    name, summary, _, run = trained
    found = check_predictions.compare(run, tmp_path, [])
    # Both commands say it.
    assert capsys.readouterr().err.count(f"{LINES[name]}, masks at the images' own size\n") == 2
    assert found.images == (12 if name == "shapes" else 6)
    assert 0.05 < found.evaluated < 0.999
    assert found.largest <= 1e-6
    assert found.evaluated == pytest.approx(found.predicted, abs=1e-6)
    assert summary["policy"]["iou"]["mean"] == pytest.approx(found.predicted, abs=1e-6)


@pytest.mark.untraced
def test_the_masks_are_those_of_evaluation_to_the_bit(trained, tmp_path):
    _, _, config, run = trained
    opened = open_run(config)
    segmenter, description = open_segmenter(run)
    measurement = Measurement(opened.source, opened.splits.test)
    check_predictions.compare(run, tmp_path, [])
    for one in Predictions(Network(segmenter, description["preparation"]), measurement):
        written = np.array(Pillow.open(tmp_path / "predicted" / "masks" / f"{one.id}.png"))
        np.testing.assert_array_equal(written, one.mask)
        assert written.shape == opened.source[one.number].image.shape[:2]


@pytest.mark.untraced
def test_at_their_own_size_both_agree_too(trained, tmp_path, capsys):
    run = trained[-1]
    found = check_predictions.compare(run, tmp_path, ["--native", "--window", "24"])
    assert capsys.readouterr().err.count("native: images at their own size, in windows of 24, masks at") == 2
    assert found.largest <= 1e-6


def test_weights_of_an_earlier_version_are_predicted_at_the_images_size_and_it_is_said(tmp_path, capsys):
    shutil.copytree(check_predictions.conf_folder().parent / "tests" / "stored" / "run", tmp_path / "run")
    Pillow.fromarray(np.zeros((40, 30, 3), np.uint8)).save(tmp_path / "one.png")
    assert predict([str(tmp_path / "run"), str(tmp_path / "one.png"), "--out", str(tmp_path), "--device", "cpu"]) == 0
    assert "native, since the weights do not say how images were prepared" in capsys.readouterr().out
    assert check_predictions.compare(tmp_path / "run", tmp_path / "compared", []).largest <= 1e-6

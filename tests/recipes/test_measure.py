"""What is measured of a network: what does not count, each image by itself, at the image's own size."""

from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from gold_sources import Discs
from small import SMALL, composed
from torch import nn

from segdpo.data.preparation import Preparation
from segdpo.data.record import RecordInfo
from segdpo.data.transforms import Pipeline, albumentations
from segdpo.files import DataError
from segdpo.preferences.network import Network
from segdpo.recipes.measure import Measurement, measure_network
from segdpo.recipes.run import open_run


def test_what_does_not_count_is_nan_and_counted(tmp_path):
    """Of six images two have nothing; a network that finds nothing is right there, and 0 elsewhere."""
    silent = nn.Conv2d(3, 1, 1)
    nn.init.zeros_(silent.weight)
    nn.init.constant_(silent.bias, -1.0)
    measurement = Measurement(Discs(6, empty=(2, 4)), np.arange(6, dtype=np.uint32), metrics=("iou", "hd95"))
    measured = measure_network(network(silent), measurement, "silent")
    assert np.isnan(measured.values["iou"]).tolist() == [False, False, True, False, True, False]
    assert np.nanmax(measured.values["iou"]) == 0
    # The image's diagonal, never left out and never 0.
    assert np.nanmin(measured.values["hd95"]) == pytest.approx(np.hypot(32, 32), abs=2)


def network(module, *steps):
    return Network(module, Preparation(Pipeline(list(steps))))


@pytest.fixture
def convolution():
    torch.manual_seed(3)
    return nn.Conv2d(3, 1, 7, padding=3)


class Described(Discs):
    """Says which images have no gold, and refuses to read those."""

    def describe(self, index):
        return RecordInfo(f"disc {index:02d}", gold=index not in self.lacking)

    def __getitem__(self, index):
        assert index not in self.lacking
        return super().__getitem__(index)


def test_images_said_to_have_no_gold_are_not_read(convolution):
    measurement = Measurement(Described(5, lacking=(1, 3)), np.arange(5, dtype=np.uint32))
    measured = measure_network(network(convolution), measurement, "")
    assert (measured.numbers, measured.without_gold) == ([0, 2, 4], ["disc 01", "disc 03"])


def test_at_the_images_size_filled_up_views_measure_as_they_are(convolution):
    padded = albumentations.PadIfNeeded(None, None, 32, 32, position="center")
    measurement = Measurement(Discs(5, sizes=((30, 41), (50, 32))), np.arange(5, dtype=np.uint32))
    plain, native = (
        measure_network(network(convolution, padded), replace(measurement, measured_at=at), "")
        for at in ("view", "image")
    )
    for metric in ("iou", "dice", "precision", "recall"):
        assert native.values[metric].tolist() == plain.values[metric].tolist()


def test_resized_views_are_measured_at_the_images_size(convolution):
    """Logits taken back to the image's size by OpenCV, and IoU by NumPy."""
    source = Discs(4, sizes=((70, 41), (50, 90)))
    resized = albumentations.Resize(32, 40)
    measurement = Measurement(source, np.arange(4, dtype=np.uint32))
    measured = measure_network(network(convolution, resized), measurement, "")
    for number in range(4):
        record = source[number]
        view = Pipeline([resized])(record.image, record.gold[None], np.random.default_rng(0))
        with torch.no_grad():
            logits = convolution(torch.from_numpy(view.image)[None])[0, 0].numpy()
        height, width = record.gold.shape
        mask = cv2.resize(logits, (width, height), interpolation=cv2.INTER_LINEAR) > 0
        gold = record.gold == 1
        assert measured.values["iou"][number] == pytest.approx((mask & gold).sum() / (mask | gold).sum(), abs=2e-3)


def test_what_a_network_says_of_an_image_does_not_depend_on_its_neighbours(convolution):
    source = Discs(4, sizes=((40, 40), (64, 30)))
    four, one = (
        measure_network(network(convolution), Measurement(source, np.array(numbers, np.uint32)), "")
        for numbers in ([0, 1, 2, 3], [2])
    )
    assert four.values["iou"][2] == one.values["iou"][0]


def test_views_that_could_not_be_measured_are_refused_before_anything_is_trained(tmp_path):
    step = "{_target_: segdpo.data.albumentations.CenterCrop, height: 20, width: 20}"
    words = [*SMALL, f"transforms.eval.steps=[{step}]"]
    with pytest.raises(DataError, match=r"shapes-0-\d+: .*whole image.*measured_at=view"):
        open_run(composed(*words, folder=tmp_path))
    assert not (tmp_path / "run").exists()
    assert open_run(composed(*words, "measured_at=view", folder=tmp_path)).config.measured_at == "view"

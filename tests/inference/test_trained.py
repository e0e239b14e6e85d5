"""segdpo.load: the masks of `segdpo predict`, from Python."""

import numpy as np
import pytest
import torch
from PIL import Image
from trained import preparation_of, save_run

import segdpo
from segdpo.inference import find_images, open_segmenter, predict_files

TRUSTED = ("trained",)
RGB = np.random.default_rng(3).integers(0, 255, (37, 51, 3), dtype=np.uint8)


def written(run, path, folder):
    """Return the mask that `segdpo predict` writes for an image."""
    segmenter, description = open_segmenter(run, trusted=TRUSTED)
    for outcome in predict_files(segmenter, description, find_images(path, folder), folder):
        assert outcome.error is None
    return np.asarray(Image.open(folder / "masks" / f"{path.stem}.png"))


@pytest.mark.parametrize(
    "preparation",
    [
        None,
        preparation_of(("Resize", {"height": 24, "width": 16})),
        preparation_of(("PadIfNeeded", {"min_height": 64, "min_width": 64}), window=32),
    ],
)
def test_masks_are_those_of_predict(preparation, tmp_path):
    save_run(tmp_path / "run", preparation=preparation)
    Image.fromarray(RGB).save(tmp_path / "photo.png")
    expected = written(tmp_path / "run", tmp_path / "photo.png", tmp_path / "out")
    assert 0 < expected.mean() < 1
    model = segdpo.load(tmp_path / "run", trusted=TRUSTED)
    for image in (tmp_path / "photo.png", str(tmp_path / "photo.png"), RGB, Image.fromarray(RGB)):
        mask = model.predict(image)
        assert mask.dtype == np.uint8
        np.testing.assert_array_equal(mask, expected)


def test_images_of_other_kinds_are_converted_as_files_are(tmp_path):
    save_run(tmp_path / "run")
    model = segdpo.load(tmp_path / "run", trusted=TRUSTED)
    grey, alpha = RGB[..., 0], np.dstack([RGB, RGB[..., :1]])
    for number, pixels in enumerate((grey, alpha)):
        path = tmp_path / f"{number}.png"
        Image.fromarray(pixels).save(path)
        expected = written(tmp_path / "run", path, tmp_path / "out")
        np.testing.assert_array_equal(model.predict(pixels), expected)
        np.testing.assert_array_equal(model.predict(Image.open(path)), expected)
    np.testing.assert_array_equal(model.predict(grey[..., None]), model.predict(grey))
    with pytest.raises(ValueError, match="uint16"):
        model.predict(RGB.astype(np.uint16))
    with pytest.raises(ValueError, match=r"nothing\.png"):
        model.predict("nothing.png")


def test_it_is_a_segmenter_with_its_classes(tmp_path):
    network = save_run(tmp_path / "run", names=("background", "cell", "rim"))
    model = segdpo.load(tmp_path / "run", trusted=TRUSTED)
    assert (model.class_names, model.classes, model.training) == (("background", "cell", "rim"), 3, False)
    image = torch.rand(1, 3, 9, 7)
    torch.testing.assert_close(model(image), network(image))
    assert set(model.state_dict()) == set(network.state_dict())

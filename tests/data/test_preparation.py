"""How images become inputs and logits come back, how that is kept in a file, and what a file may say."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from segdpo.data.preparation import Preparation, read_preparation, unknown_preparation
from segdpo.data.transforms import Pipeline, albumentations

RESIZE = {"_target_": "segdpo.data.albumentations.Resize", "height": 4, "width": 6}
VIEWS = {"_target_": "segdpo.data.Pipeline", "_convert_": "all", "steps": [RESIZE], "mean": [0.5], "std": [0.25]}
STORED = {"views": VIEWS, "channels": 1, "value_range": [0.0, 4095.0], "window": 128}
FILE = Path("policy.safetensors")


def test_what_is_stored_is_read_and_prepares_the_same():
    node = {key: value for key, value in VIEWS.items() if key != "_convert_"}
    pipeline = Pipeline([albumentations.Resize(4, 6)], mean=[0.5], std=[0.25])
    first = Preparation(pipeline, 1, (0.0, 4095.0), 128, node)
    found = read_preparation(json.loads(json.dumps(first.stored())), FILE)
    assert found.stored() == first.stored() == {**STORED, "views": node}
    assert (found.channels, found.value_range, found.window) == (1, (0.0, 4095.0), 128)
    image = np.random.default_rng(0).integers(0, 256, (9, 7, 1), np.uint8)
    np.testing.assert_array_equal(found.input_of(image).image, first.input_of(image).image)
    # Twice: what was read is stored as it was.
    assert read_preparation(found.stored(), FILE).stored() == found.stored()


def test_images_at_their_own_size_are_only_normalised():
    native = read_preparation(STORED, FILE).native()
    image = np.random.default_rng(0).integers(0, 256, (9, 7, 1), np.uint8)
    prepared = native.input_of(image)
    np.testing.assert_allclose(prepared.image[0], (image[..., 0] / 255 - 0.5) / 0.25, atol=1e-6)
    logits = torch.rand(2, 9, 7)
    assert torch.equal(prepared.at_image_size(logits), logits)
    assert (native.window, native.channels, native.value_range) == (512, 1, (0.0, 4095.0))
    assert read_preparation(native.stored(), FILE).line(native=True) == native.line(native=True)


def test_padding_is_cut_off_the_logits():
    padded = albumentations.PadIfNeeded(8, 16, position="center")
    prepared = Preparation(Pipeline([padded])).input_of(np.zeros((4, 10, 3), np.uint8))
    logits = torch.arange(2 * 8 * 16.0).reshape(2, 8, 16)
    assert torch.equal(prepared.at_image_size(logits), logits[:, 2:6, 3:13])


@pytest.mark.parametrize(
    ("preparation", "words"),
    [
        (read_preparation(STORED, FILE), "as trained: resized to 4 × 6, in windows of 128"),
        (
            Preparation(Pipeline([albumentations.PadIfNeeded(None, None, 32, 32)]), node={}),
            "as trained: padded to multiples of 32",
        ),
        (Preparation(Pipeline([albumentations.Blur()]), node={}), "as trained: through Blur"),
        (Preparation().native(), "as trained: images at their own size, in windows of 512"),
        (
            unknown_preparation([0.5], [0.5], 1),
            "native, since the weights do not say how images were prepared (an earlier version wrote them): "
            "images at their own size, in windows of 512",
        ),
    ],
)
def test_in_words(preparation, words):
    assert preparation.line() == f"{words}, masks at the images' own size"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ([], r"Expected a preparation of images \(views, channels, value_range, window\) but got list"),
        ({"views": VIEWS}, r"but got \['views'\]"),
        ({**STORED, "gamma": 2}, r"but got \['channels', 'gamma', .*later version"),
        ({**STORED, "views": {"_target_": "os.system"}}, r"preparation\.views asks to call 'os\.system'.*--trust os"),
        ({**STORED, "views": {**VIEWS, "steps": [{"_target_": "torch.load"}]}}, r"steps\.0 asks to call 'torch\.load'"),
        ({**STORED, "views": RESIZE}, r"Expected transforms\.eval to build a segdpo\.data\.Pipeline but .* a Resize"),
        ({**STORED, "views": {**VIEWS, "steps": [{**RESIZE, "height": "x"}]}}, r"cannot be built from its description"),
        ({**STORED, "channels": 4}, r"Expected channels to be 3 .* but got 4"),
        ({**STORED, "channels": [3]}, r"Expected channels to be 3 .* but got \[3\]"),
        ({**STORED, "window": 0}, r"Expected a window of at least 1 pixel, .* but got 0"),
        ({**STORED, "window": "512"}, r"Expected a window of at least 1 pixel, .* but got '512'"),
        ({**STORED, "value_range": [1, 1]}, r"Expected value_range as \[lowest, highest\] .* but got \(1, 1\)"),
        ({**STORED, "value_range": [0, "x"]}, r"Expected value_range"),
        ({**STORED, "value_range": 7}, r"policy\.safetensors: preparation: "),
    ],
)
def test_a_file_that_says_something_else_is_refused(change, said):
    with pytest.raises(ValueError, match=said) as found:
        read_preparation(change, FILE)
    assert "policy.safetensors" in str(found.value)


def test_an_image_that_the_views_cannot_show_is_named():
    crops = Preparation(Pipeline([albumentations.CenterCrop(8, 8)]))
    with pytest.raises(ValueError, match=r"small: cannot be prepared as in training .*transforms\.eval"):
        crops.input_of(np.zeros((4, 4, 3), np.uint8), "small")
    with pytest.raises(ValueError, match=r"large: .*whole image"):
        crops.input_of(np.zeros((16, 16, 3), np.uint8), "large")
    with pytest.raises(ValueError, match=r"odd: Expected an image uint8 \[H, W, C\] but got float64"):
        crops.input_of(np.zeros((4, 4, 3)), "odd")


def test_without_its_node_a_preparation_cannot_be_stored():
    with pytest.raises(ValueError, match="node"):
        Preparation(Pipeline([albumentations.Blur()])).stored()

"""Validation and test in windows: nothing that evaluates forwards more than a window, and the numbers stay the same."""

import copy
from functools import partial

import albumentations as A
import pytest
import torch
from torch import nn

from segdpo.data import Pipeline, PreferenceDataset, SupervisedDataset
from segdpo.preferences import whole_or_in_windows
from segdpo.training import CachedScores, FrozenCopy, Moving, Panels, PreferenceTask, SupervisedTask, cross_entropy

WINDOW, SIZE = 8, 21


class Pixelwise(nn.Module):
    """Looks at one pixel at a time, so that windows cannot matter; keeps the shapes that were seen in evaluation."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.seen = nn.Conv2d(3, 1, 1), []

    def __deepcopy__(self, memo):
        copied = Pixelwise()
        copied.load_state_dict(self.state_dict())
        copied.seen = self.seen  # one list for all copies
        return copied

    def forward(self, image):
        if not torch.is_grad_enabled():
            self.seen.append(tuple(image.shape))
        return self.layer(image)


@pytest.fixture
def crops(data, noise):
    """A data module that trains on crops of a window and evaluates whole images."""
    return partial(data, noise(size=SIZE), Pipeline([A.RandomCrop(WINDOW, WINDOW)]), test=0.25, views=1)


def logged(trainer):
    found = trainer.callback_metrics.items()
    return {name: float(value) for name, value in found if name.startswith(("val/", "test/"))}


def same_numbers(make, module, fit):
    """Train and test whole and in windows; return the shapes of the forwards in windows."""
    found = []
    for window in (None, WINDOW):
        network = Pixelwise()
        task = make(network, window)
        trainer = fit(task, module(), max_steps=2, callbacks=[Panels(lambda *a, **k: None, "unused")])
        values = logged(trainer)
        trainer.test(task, datamodule=module(), verbose=False)
        found.append((values | logged(trainer), network.seen))
    (whole, seen_whole), (windows, seen) = found
    assert whole.keys() == windows.keys()
    assert len(whole) > 3
    for name, value in whole.items():
        assert windows[name] == pytest.approx(value, abs=1e-6), name
    assert max(shape[2] for shape in seen_whole) == SIZE
    return seen


@pytest.mark.parametrize("reference", [FrozenCopy, partial(Moving, decay=0.9), "cached"])
def test_preference_training_evaluates_in_windows(reference, crops, fit, hinge, sgd, tmp_path):
    def make(network, window):
        built = CachedScores(network, tmp_path) if reference == "cached" else reference(network)
        return PreferenceTask(copy.deepcopy(network), built, hinge, sgd, start=copy.deepcopy(network), window=window)

    seen = same_numbers(make, crops, fit)
    assert {shape[2:] for shape in seen} == {(WINDOW, WINDOW)}


@pytest.mark.parametrize("target", ["pairs", "gold"])
def test_supervised_training_evaluates_in_windows(target, crops, fit, sgd):
    def make(network, window):
        return SupervisedTask(network, cross_entropy, sgd, start=copy.deepcopy(network), window=window)

    gold = partial(SupervisedDataset, target="gold")
    module = partial(crops, items=gold, **({"eval_items": gold} if target == "gold" else {}))
    if target == "pairs":
        module = partial(module, eval_items=PreferenceDataset)
    assert {shape[2:] for shape in same_numbers(make, module, fit)} == {(WINDOW, WINDOW)}


def test_a_test_batch_counts_once(crops, fit, sgd):
    """Twice the batches would be twice the images of test/iou."""
    gold = partial(SupervisedDataset, target="gold")
    task, module = SupervisedTask(Pixelwise(), cross_entropy, sgd), crops(items=gold)
    trainer = fit(task, module, max_steps=1)
    task.network.seen.clear()
    trainer.test(task, datamodule=module, verbose=False)
    assert sum(shape[0] for shape in task.network.seen) == len(module.splits.test)


def test_images_that_fit_and_no_window_are_forwarded_as_they_are():
    """The very tensor, with its gradient: training is the same to the bit."""
    images = torch.randn(2, 3, 16, 12)
    seen = []
    for window in (None, 16, 40):
        logits = whole_or_in_windows(lambda image: seen.append(image) or 2 * image.requires_grad_(), images, window)
        assert seen[-1] is images
        assert logits.requires_grad


def test_a_forward_holds_no_more_pixels_the_more_images_there_are():
    seen = []
    network = lambda image: seen.append(image.shape) or image[:, :1]  # noqa: E731
    for images in (1, 8):
        logits = whole_or_in_windows(network, torch.zeros(images, 3, 512, 640), 320)
        assert logits.shape == (images, 1, 512, 640)
    assert max(shape.numel() for shape in seen) <= 3 * 1024**2


def test_cached_scores_of_another_window_are_not_found(crops, fit, hinge, sgd, tmp_path):
    computed = []
    for window in (None, WINDOW, None, WINDOW, 2 * WINDOW):
        network = Pixelwise()
        reference = CachedScores(network, tmp_path)
        fit(PreferenceTask(copy.deepcopy(network), reference, hinge, sgd, window=window), crops(), max_steps=2)
        computed.append(reference.computed > 0)
    assert computed == [True, True, False, False, True]

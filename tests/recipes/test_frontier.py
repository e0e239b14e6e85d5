"""The frontier of a run: KL and rewards worked out again in NumPy, judges that cannot say, images with a margin."""

import math

import numpy as np
import pytest
import torch
from scipy.special import expit, log_softmax
from small import CONVOLUTION, SMALL, composed
from toy_records import record, toys

from segdpo.data.splits import Splits
from segdpo.models.segmenter import Segmenter
from segdpo.models.weights import load_weights
from segdpo.recipes import run as memory
from segdpo.recipes.compare import evaluated_network
from segdpo.recipes.config import build
from segdpo.recipes.frontier import TestViews, frontier_of, judge_of, rewards
from segdpo.recipes.run import Run, open_run, run_recipe

QUIET = ["callbacks=none", "logger=none"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("frontier")
    config = composed(*SMALL, *QUIET, folder=folder)
    return run_recipe(config), open_run(config), folder / "run"


def logits_of(run, path, images):
    network = build(run.config.model, classes=2)
    load_weights(path, network)
    with torch.no_grad():
        return network(torch.from_numpy(images))[:, 0].double().numpy()


def test_kl_and_rewards_are_numpys(finished):
    summary, run, folder = finished
    pipeline = build(run.config.transforms)["eval"]
    views = []
    for number in run.splits.test:
        found = run.source[int(number)]
        views.append(pipeline(found.image, found.gold[None], np.random.default_rng(0)))
    images, gold = np.stack([view.image for view in views]), np.stack([view.masks[0] for view in views])
    ours, theirs = (expit(logits_of(run, folder / f"{name}.safetensors", images)) for name in ("policy", "reference"))
    each = (ours * np.log(ours / theirs) + (1 - ours) * np.log((1 - ours) / (1 - theirs))).sum((1, 2))
    frontier = summary["frontier"]
    assert frontier["kl"]["mean"] == pytest.approx(each.mean(), rel=1e-4)
    assert frontier["kl_per_pixel"]["mean"] == pytest.approx(each.mean() / gold[0].size, rel=1e-4)
    assert frontier["kl"]["mean"] > 0.1, "the policy has moved"
    rng = np.random.default_rng(5)
    for said, chances in ((frontier, ours), (frontier["reference"], theirs)):
        assert said["reward"]["mean"] == pytest.approx(iou(chances > 0.5, gold).mean(), abs=1e-6)
        many = np.stack([iou(rng.random(chances.shape) < chances, gold) for _ in range(200)])
        # Four masks an image were drawn.
        error = np.sqrt(many.var(0).mean() / 4 / len(gold))
        assert abs(said["reward_sampled"]["mean"] - many.mean()) < 5 * error


def iou(masks, gold):
    masks, gold = masks.astype(bool), gold == 1
    return (masks & gold).sum((1, 2)) / (masks | gold).sum((1, 2))


def test_reward_by_iou_is_the_iou_of_the_comparison(finished):
    summary = finished[0]
    assert summary["frontier"]["reward"]["mean"] == pytest.approx(summary["policy"]["iou"]["mean"], abs=1e-6)
    before = summary["frontier"]["reference"]["reward"]["mean"]
    assert before == pytest.approx(summary["reference"]["iou"]["mean"], abs=1e-6)


def test_what_it_took(finished):
    frontier, seconds = finished[0]["frontier"], finished[0]["seconds"]
    assert frontier["seconds"] == pytest.approx(seconds["pairs"] + seconds["policy"])
    assert 50 < frontier["peak_memory"] < 100_000
    assert frontier["judge"] == "iou(background=False)"
    assert "point" not in frontier


class Drawing(torch.nn.Module):
    """Logits that depend on the place alone."""

    def __init__(self, channels, seed):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.logits = torch.nn.Parameter(torch.randn(channels, 64, 64, generator=generator))

    def forward(self, image):
        return self.logits[:, : image.shape[2], : image.shape[3]].expand(len(image), -1, -1, -1)


def run_of(source, tmp_path, *choices):
    """All records are test images."""
    none = np.empty(0, np.uint32)
    splits = Splits(none, none, np.arange(len(source), dtype=np.uint32), (0, 0, len(source)))
    config = composed(*CONVOLUTION, f"model.classes={len(source.classes)}", *choices, folder=tmp_path)
    return Run(config, source, splits, tmp_path)


def frontier_between(run, *channels):
    classes = len(run.source.classes)
    networks = [Segmenter(Drawing(count, seed), classes) for seed, count in enumerate(channels)]
    return networks, frontier_of(run, *(evaluated_network(run, one) for one in networks))


def test_several_classes_and_pixels_outside_the_image(tmp_path):
    """Images of 20 × 24 are filled up to 32 × 32: what is outside counts neither in KL nor in rewards."""
    source = toys(2, size=(20, 24))
    source = type(source)(source.records, ("a", "b", "c"))
    run = run_of(source, tmp_path, "background=true")
    networks, found = frontier_between(run, 3, 3)
    ours, theirs = (log_softmax(one.network.logits.detach().double().numpy()[:, :20, :24], 0) for one in networks)
    assert found["kl"]["mean"] == pytest.approx((np.exp(ours) * (ours - theirs)).sum(), rel=1e-6)
    assert found["kl_per_pixel"]["mean"] == pytest.approx(found["kl"]["mean"] / 480, rel=1e-6)
    gold, mask = source[0].gold, ours.argmax(0)
    each = [((mask == c) & (gold == c)).sum() / ((mask == c) | (gold == c)).sum() for c in (0, 1, 2)]
    assert found["reward"]["mean"] == pytest.approx(np.mean(each))


def test_a_network_against_itself_has_moved_nowhere(tmp_path):
    run = run_of(toys(2), tmp_path)
    network = evaluated_network(run, Segmenter(Drawing(1, 0), 2))
    found = frontier_of(run, network, network)
    assert found["kl"]["mean"] == 0
    # The same random numbers for both, so differences are the networks' own.
    assert found["reward_sampled"] == found["reference"]["reward_sampled"]


def test_the_judge_sees_the_image_as_it_was(tmp_path):
    run = run_of(toys(3), tmp_path)
    network = evaluated_network(run, Segmenter(Drawing(1, 0), 2))
    views = list(TestViews(run.source, network, run.splits.test, 0))
    for view, before in zip(views, run.source.records, strict=True):
        np.testing.assert_array_equal(view.record.image[:8, :8], before.image)
        np.testing.assert_array_equal(view.record.gold[:8, :8], before.gold)
        assert (view.record.gold[8:] == 255).all()
        assert len(view.record.masks) == 0


def test_images_without_gold_and_judges_of_several_masks_give_no_number(tmp_path, caplog):
    source = toys(1)
    source.records.append(record("blind", gold=False))
    run = run_of(source, tmp_path)
    _, found = frontier_between(run, 1, 1)
    assert (found["reward"]["n"], found["kl"]["n"]) == (1, 2)
    assert "1 of 2 test images have no reward" in caplog.text
    caplog.clear()
    caplog.set_level("INFO")
    _, found = frontier_between(run_of(source, tmp_path, "judge=agreement"), 1, 1)
    assert found["reward"]["n"] == 0
    assert math.isnan(found["reward_sampled"]["mean"])
    assert "agreement(background=False) compares candidates" in caplog.text
    assert not [one for one in caplog.records if one.levelname == "WARNING"]  # nothing that the user could change


def test_a_judge_that_errs_is_asked_without_its_errors(tmp_path):
    found = record("a")
    scores = [
        rewards(judge_of(composed(*CONVOLUTION, judge, folder=tmp_path)), found, found.masks, 0)
        for judge in ("judge=noisy", "judge=iou")
    ]
    np.testing.assert_array_equal(*scores)


def test_the_peak_is_the_systems_and_can_be_forgotten(tmp_path, monkeypatch):
    status, clear = tmp_path / "status", tmp_path / "clear"
    status.write_text("Name:\tpython\nVmPeak:\t9999 kB\nVmHWM:\t   3072 kB\n")
    monkeypatch.setattr(memory, "STATUS", status)
    monkeypatch.setattr(memory, "CLEAR", clear)
    assert memory.peak_mib() == 3.0
    memory.reset_peak()
    assert clear.read_text() == "5"
    status.unlink()
    assert memory.peak_mib() > 50, "by getrusage"

"""Rewards: overlap against the judges of the same name in NumPy, judges and models as rewards, sums, bad input."""

from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from segdpo.data.record import Record
from segdpo.models import IMAGENET_MEAN, IMAGENET_STD
from segdpo.preferences import judges
from segdpo.rl.rewards import Part, RewardRequest, by_judge, by_model, dice, iou, rewards_of, weighted_sum

INDEX = torch.tensor([0, 0, 1, 2, 2, 2])


def request_of(seed=0, classes=2, size=6, gold=True):
    """Three images with six masks; the right two columns only fill up, some of gold is ignored."""
    rng = np.random.default_rng(seed)
    valid = torch.ones(3, size, size, dtype=torch.bool)
    valid[:, :, -2:] = False
    truth = rng.integers(0, classes, (3, size, size)).astype(np.uint8)
    truth[:, 0] = 255
    truth[2, 1:] = 0  # an image without anything
    masks = rng.integers(0, classes, (6, size, size)).astype(np.uint8)
    masks[5] = 0
    images = torch.from_numpy(rng.normal(size=(3, 3, size, size)).astype(np.float32))
    return RewardRequest(
        images, torch.from_numpy(masks), INDEX, torch.from_numpy(truth) if gold else None, valid, classes
    )


def by_hand(request, judge):
    """Each mask judged alone, on the pixels that count and nothing else."""
    rewards = []
    for mask, image in zip(request.masks, request.image_index, strict=True):
        kept = (slice(None), slice(0, -2))
        record = Record(
            "a",
            np.zeros((1, 1, 3), np.uint8),
            np.zeros((0, 1, 1), np.uint8),
            (),
            gold=request.gold[image].numpy()[kept],
        )
        rewards.append(judge(record, mask.numpy()[None][:, :, :-2], np.random.default_rng(0))[0])
    return np.array(rewards)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), classes=st.sampled_from([2, 4]), background=st.booleans())
def test_overlaps_are_those_of_the_judges(seed, classes, background):
    request = request_of(seed, classes)
    for reward, judge in ((iou, judges.iou), (dice, judges.dice)):
        expected = by_hand(request, partial(judge, background=background))
        np.testing.assert_allclose(reward(request, background=background), expected, atol=1e-6)
        np.testing.assert_allclose(by_judge(request, judge=partial(judge, background=background)), expected, atol=1e-6)


def test_nothing_to_find_and_nothing_found_is_right():
    rewards = iou(request_of())
    assert float(rewards[5]) == 1
    assert float(rewards[4]) == 0


def test_a_judge_sees_the_image_its_gold_and_all_its_masks_together():
    seen = []

    def judge(record, masks, rng):
        seen.append((record, masks, rng.random()))
        return np.arange(len(masks), dtype=float)

    request = request_of()
    assert by_judge(request, judge=judge).tolist() == [0, 1, 0, 0, 1, 2]
    record, masks, drawn = seen[2]
    assert masks.shape == (3, 6, 6)
    assert (masks[:, :, -2:] == 255).all()
    assert (record.gold[:, -2:] == 255).all()
    pixels = request.image[2].numpy().transpose(1, 2, 0) * np.float32(IMAGENET_STD) + np.float32(IMAGENET_MEAN)
    np.testing.assert_array_equal(record.image, (pixels * 255).round().clip(0, 255).astype(np.uint8))
    by_judge(request, judge=judge)
    assert seen[5][2] == drawn, "a judge that draws answers the same question the same way"


def test_boundary_iou_as_a_reward():
    request = request_of()
    found = by_judge(request, judge=partial(judges.boundary_iou, width=1))
    assert ((found >= 0) & (found <= 1)).all()


class Area(nn.Module):
    """A reward model: the area of a mask, times the first pixel of its image."""

    classes = 2

    def forward(self, image, masks, image_index):
        assert not self.training
        return (masks == 1).flatten(1).sum(1) * image[image_index, 0, 0, 0]


def test_a_reward_model_sees_only_pixels_that_count():
    request = request_of()
    expected = (request.masks[:, :, :-2] == 1).flatten(1).sum(1) * request.image[INDEX, 0, 0, 0]
    torch.testing.assert_close(by_model(request, model=Area().train()), expected)


def test_a_reward_model_of_other_classes_is_refused():
    with pytest.raises(ValueError, match=r"reward model of masks with 4 classes, .* trained on masks with 2"):
        rewards_of(partial(by_model, model=Area()), request_of(classes=4))


def test_a_weighted_sum():
    request = request_of()
    parts = {"overlap": Part(0.7, iou), "area": Part(-0.01, partial(by_model, model=Area()))}
    expected = 0.7 * iou(request) - 0.01 * by_model(request, model=Area())
    torch.testing.assert_close(weighted_sum(request, parts=parts), expected)
    broken = {"fine": Part(1.0, iou), "broken": Part(0.0, lambda request: torch.full((6,), torch.nan))}
    with pytest.raises(ValueError, match="the part 'broken' of a weighted sum gave NaN"):
        weighted_sum(request, parts=broken)
    with pytest.raises(ValueError, match="at least one part"):
        weighted_sum(request, parts={})
    with pytest.raises(ValueError, match="weight to be finite but got nan"):
        Part(float("nan"), iou)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_rewards_that_are_no_numbers_are_named(value):
    def reward(request):
        return torch.tensor([0.0, 1.0, 2.0, value, 0.0, 0.0])

    with pytest.raises(ValueError, match=r"1 of 6 are NaN or infinite, the first (nan|inf) for a mask of image 2"):
        rewards_of(reward, request_of())


def test_a_reward_gives_one_number_a_mask():
    with pytest.raises(ValueError, match=r"one reward a mask, shape \(6,\), but the reward gave \(6, 1\)"):
        rewards_of(lambda request: torch.zeros(6, 1), request_of())


def test_gold_that_is_missing_is_named():
    with pytest.raises(ValueError, match=r"the batch has none that counts.*reward=reward_model"):
        iou(request_of(gold=False))
    request = request_of()
    request.gold[1] = 255
    with pytest.raises(ValueError, match="image 1 of the batch has none that counts"):
        dice(request)

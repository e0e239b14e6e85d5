"""Reward models: what they are averaged over, against NumPy; files that build them again; what they refuse."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from segdpo.models import (
    DenseRewardModel,
    RewardModel,
    load_reward_model,
    reward_inputs,
    save_reward_model,
    save_weights,
    soft_inputs,
)

DENSE = {"encoder_depth": 3, "decoder_channels": [16, 8, 8]}
BOTH = pytest.mark.parametrize("kind", [RewardModel, DenseRewardModel])


def made(kind, classes=2, **options):
    torch.manual_seed(0)
    model = kind(classes=classes, **(DENSE if kind is DenseRewardModel else {}), **options)
    return model.eval()


def some(classes=2, masks=3, images=2, size=(12, 20)):
    generator = torch.Generator().manual_seed(1)
    image = torch.randn(images, 3, *size, generator=generator)
    return image, torch.randint(0, classes, (masks, *size), generator=generator).byte()


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 4), st.integers(0, 100))
def test_planes(classes, seed):
    rng = np.random.default_rng(seed)
    masks = rng.choice([*range(classes), 255], (2, 3, 4)).astype(np.uint8)
    masks[:, 0, 0] = 0
    inputs = reward_inputs(torch.zeros(2, 3, 3, 4), torch.from_numpy(masks), None, classes)
    if classes == 2:
        expected = np.select([masks == 0, masks == 1], [-1, 1], 0)[:, None]
    else:
        expected = np.stack([masks == label for label in range(classes)], 1)
    np.testing.assert_array_equal(inputs.planes.numpy(), expected)
    np.testing.assert_array_equal(inputs.foreground.numpy(), (masks > 0) & (masks != 255))
    # The same mask as shares of its classes: what an attack starts from.
    shares = torch.from_numpy(np.stack([masks == label for label in range(classes)], 1))
    soft = soft_inputs(torch.zeros(2, 3, 3, 4), shares, inputs.known)
    np.testing.assert_array_equal(soft.planes.numpy(), expected)


@BOTH
@pytest.mark.parametrize("classes", [2, 3])
def test_each_mask_with_its_image(kind, classes):
    image, masks = some(classes)
    model, index = made(kind, classes), torch.tensor([1, 0, 1])
    with torch.no_grad():
        together = model(image, masks, index)
        alone = [model(image[i : i + 1], masks[p : p + 1]) for p, i in enumerate(index.tolist())]
        swapped = model(image, masks, 1 - index)
    assert together.shape == (3,)
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(together, swapped), "the image does not matter"


@torch.no_grad()
def test_a_reward_is_linear_in_the_mean_over_what_is_known():
    model, (image, masks) = made(RewardModel), some(size=(16, 24), masks=2)
    masks[0, :, 10:] = 255  # cells of 8 × 8: one whole column known, a quarter of the next, none of the last
    inputs = reward_inputs(image, masks, None, 2)
    features = model.encoder(torch.cat([inputs.image, inputs.planes], 1))[-1].double().numpy()
    assert features.shape[2:] == (2, 3)
    means = [np.average(features[0].mean(1), axis=1, weights=[1, 0.25, 0]), features[1].mean((1, 2))]
    expected = np.stack(means) @ model.head.weight.double().numpy()[0] + model.head.bias.item()
    np.testing.assert_allclose(model(image, masks).numpy(), expected, rtol=1e-4)


@torch.no_grad()
def test_a_dense_reward_is_the_mean_of_its_map_over_the_area():
    model, (image, masks) = made(DenseRewardModel, classes=3), some(3, masks=2)
    masks[1] = 0  # empty: the mean over all that is known
    masks[:, :4] = 255
    reward_map = model.reward_map(image, masks).double().numpy()
    expected = [reward_map[0][np.isin(masks[0].numpy(), (1, 2))].mean(), reward_map[1, 4:].mean()]
    np.testing.assert_allclose(model(image, masks).numpy(), expected, rtol=1e-5)


@BOTH
def test_a_file_builds_its_model_again(kind, tmp_path):
    model, (image, masks) = made(kind, 3, mean=[0.5] * 3, std=[0.25] * 3), some(3, images=3)
    save_reward_model(tmp_path / "reward_model.safetensors", model, {"config": "{}"})
    # The file, or the folder of its run.
    for place in (tmp_path / "reward_model.safetensors", tmp_path):
        again = load_reward_model(place, classes=3)
        assert (type(again), again.classes, again.mean, again.training) == (kind, 3, (0.5,) * 3, False)
        with torch.no_grad():
            assert torch.equal(model(image, masks), again(image, masks))


def test_files_of_something_else_are_refused(tmp_path):
    model = made(RewardModel)
    save_reward_model(tmp_path / "binary.safetensors", model)
    with pytest.raises(ValueError, match=r"reward model of 4 classes but .*binary\.safetensors holds one of 2"):
        load_reward_model(tmp_path / "binary.safetensors", classes=4)
    save_weights(tmp_path / "policy.safetensors", torch.nn.Linear(1, 1), {"config": "{}"})
    with pytest.raises(ValueError, match=r"policy\.safetensors to hold a reward model but its header names none"):
        load_reward_model(tmp_path / "policy.safetensors")
    with pytest.raises(TypeError, match="RewardModel or a DenseRewardModel to save but got a Linear"):
        save_reward_model(tmp_path / "new.safetensors", torch.nn.Linear(1, 1))


IMAGE, MASKS = some(masks=2)
IGNORED = MASKS.clone().index_fill(0, torch.tensor(1), 255)
WRONG = {
    "class 7": (IMAGE, MASKS.clone().fill_(7), None, "2 classes of this reward model, 0 to 1, but mask 0 has"),
    "negative class": (IMAGE, MASKS.long() - 1, None, "has class -1"),
    "nothing to reward": (IMAGE, IGNORED, None, "every mask but mask 1 ignores all"),
    "probabilities": (IMAGE, MASKS.float(), None, "threshold probabilities"),
    "another size": (IMAGE, MASKS[..., :5], None, "resize both"),
    "no index": (IMAGE, MASKS[:1], None, "1 masks for 2 images"),
    "a short index": (IMAGE, MASKS, torch.tensor([0]), r"image_index of shape \(2,\)"),
}


@BOTH
@pytest.mark.parametrize("case", WRONG)
def test_masks_that_cannot_be_rewarded_are_refused(kind, case):
    image, masks, index, said = WRONG[case]
    with pytest.raises(ValueError, match=said):
        made(kind)(image, masks, index)


@BOTH
def test_classes_have_to_come_from_somewhere(kind):
    with pytest.raises(ValueError, match="null takes the number from the data"):
        made(kind, None)

"""A network as a judge, with networks whose rewards are known by hand."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from segdpo.data.record import Candidates, Record
from segdpo.data.transforms import Pipeline, albumentations
from segdpo.models.reward_model import RewardModel
from segdpo.preferences.judges import CannotJudge, by_network
from segdpo.preferences.mining import Recipe, mine_record
from segdpo.preferences.questions import all_pairs

RNG = np.random.default_rng(0)


class Covered(torch.nn.Module):
    """Mean of the (normalised) image's first channel over the mask's foreground, as a reward."""

    mean, std = (0.5,), (0.25,)

    def forward(self, image, masks, image_index):
        area = (masks == 1).float()
        return (image[image_index, 0] * area).sum((1, 2)) / area.sum((1, 2)).clamp(min=1)


@dataclass(eq=False)
class Constant(torch.nn.Module):
    value: float

    def __post_init__(self):
        super().__init__()

    def forward(self, image, masks, image_index):
        return torch.full((len(masks),), self.value)


def record():
    image = np.zeros((8, 8, 3), np.uint8)
    image[:, 4:] = 255
    masks = np.zeros((3, 8, 8), np.uint8)
    masks[0, :, 4:] = 1  # the bright half: (1 − .5)/.25 = 2
    masks[1, :, :4] = 1  # the dark half: −2
    masks[2, :, 2:6] = 1  # half and half: 0
    return Record("half", image, masks, ("bright", "dark", "both"))


def test_rewards_by_hand():
    scores = by_network(record(), record().masks, RNG, model=Covered())
    np.testing.assert_allclose(scores, [2, -2, 0], atol=1e-6)
    assert scores.dtype == np.float64


def test_views_are_what_the_network_sees():
    """Halved in size, and normalised by the pipeline rather than by the model's own numbers."""
    sizes = []
    model = Covered()
    model.register_forward_pre_hook(lambda _, given: sizes.append((given[0].shape, given[1].shape)))
    views = Pipeline([albumentations.Resize(4, 4)], mean=[0.0], std=[1.0])
    scores = by_network(record(), record().masks, RNG, model=model, views=views)
    assert sizes == [((1, 3, 4, 4), (3, 4, 4))]
    np.testing.assert_allclose(scores[:2], [1, 0], atol=0.01)


def test_mining_needs_no_gold():
    made = record()
    recipe = Recipe(
        lambda record, rng: Candidates(made.masks, made.mask_names),
        lambda *given: by_network(*given, model=Covered()),
        all_pairs,
        ranking=True,
    )
    mined = mine_record(made, recipe).record
    assert mined.ranking == (0, 2, 1)
    assert {(pair.chosen, pair.rejected) for pair in mined.pairs} == {(0, 1), (0, 2), (2, 1)}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_rewards_that_are_no_numbers_stop_with_the_record(value):
    with pytest.raises(ValueError, match="3 finite rewards for record 'half'"):
        by_network(record(), record().masks, RNG, model=Constant(value))


def test_another_number_of_classes_stops_with_the_record():
    model = RewardModel(classes=2)
    with pytest.raises(ValueError, match=r"Record 'half': Expected masks of the 2 classes .* mask 0 has class 3"):
        by_network(record(), 3 * record().masks, RNG, model=model)


def test_a_mask_that_ignores_everything_is_not_judged():
    masks = record().masks
    masks[1] = 255
    with pytest.raises(CannotJudge, match="'half': mask 1 ignores every pixel"):
        by_network(record(), masks, RNG, model=Covered())

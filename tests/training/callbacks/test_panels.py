"""Panels show the pixels, pairs and predictions of the validation batch, every n epochs."""

from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging
from torch import nn
from torch.utils.data import DataLoader

from segdpo import PreferenceLoss
from segdpo.data import PairBatch, RankingBatch, SupervisedBatch
from segdpo.losses import objectives
from segdpo.preferences import to_model_input
from segdpo.reports import draw_panel
from segdpo.scores import predicted_classes
from segdpo.training import FrozenCopy, Panels, PreferenceTask

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (2, 6, 8, 3), dtype=np.uint8)
MASKS = torch.from_numpy(RNG.integers(0, 2, (5, 6, 8), dtype=np.uint8))


def common(**more):
    valid = torch.ones(2, 6, 8, dtype=torch.bool)
    valid[1, :, 6:] = False
    image = torch.stack([to_model_input(one) for one in IMAGES])
    return {"image": image, "valid": valid, "view": torch.zeros(2).long(), "ids": ["a", "b"], "gold": MASKS[:2], **more}


def pair_batch():
    # Image a has the pairs 0 > 1 and 2 > 1, image b has 3 > 4; b's come first.
    return PairBatch(
        **common(),
        chosen=MASKS[[3, 0, 2]],
        rejected=MASKS[[4, 1, 1]],
        image_index=torch.tensor([1, 0, 0]),
        weight=torch.ones(3),
        pair_masks=torch.tensor([[3, 4], [0, 1], [2, 1]]),
    )


def expected(number, of_image):
    """Return a mask as a panel must show it: b's last columns are outside."""
    mask = MASKS[number].numpy().copy()
    if of_image == "b":
        mask[:, 6:] = 255
    return mask


def networks():
    return nn.Conv2d(3, 1, 1), nn.Conv2d(3, 1, 1)


def rows_of(task, batch, **settings):
    """Return what the callback would draw after one validation."""
    drawn = []
    panels = Panels(lambda rows, path, title: drawn.append((rows, path, title)), "panels", **settings)
    trainer = SimpleNamespace(current_epoch=0, global_step=7, sanity_checking=False, is_global_zero=True)
    panels.on_validation_batch_end(trainer, task, None, batch, 0)
    panels.on_validation_end(trainer, task)
    ((rows, path, title),) = drawn
    assert str(path) == "panels/epoch_000.png"
    assert title == "epoch 0, step 7"
    return rows


def test_pixels_pairs_and_gold_are_those_of_the_batch():
    policy, other = networks()
    rows = rows_of(SimpleNamespace(policy=policy, reference=lambda batch, policy: other(batch.image)), pair_batch())
    assert [row.id for row in rows] == ["a", "b"]
    for row, image, chosen, rejected, gold in zip(rows, IMAGES, (0, 3), (1, 4), (0, 1), strict=True):
        assert np.array_equal(row.image, image)
        assert np.array_equal(row.chosen, expected(chosen, row.id))
        assert np.array_equal(row.rejected, expected(rejected, row.id))
        assert np.array_equal(row.gold, expected(gold, row.id))
    for name, network in (("policy", policy), ("reference", other)):
        by_hand = (network(pair_batch().image)[0, 0] > 0).numpy().astype(np.uint8)
        assert np.array_equal(getattr(rows[0], name), by_hand)


def test_an_image_without_gold_beside_one_with_gold_has_none():
    """Its gold in the batch is 255 all over, which a panel would show as an image in which nothing is to be found."""
    policy, other = networks()
    batch = replace(pair_batch(), gold=torch.stack([MASKS[0], torch.full_like(MASKS[1], 255)]))
    rows = rows_of(SimpleNamespace(policy=policy, reference=lambda batch, policy: other(batch.image)), batch)
    assert [row.gold is None for row in rows] == [False, True]


def test_a_ranking_shows_its_best_and_its_worst():
    ranking = torch.stack([MASKS[:3], MASKS[2:]])
    batch = RankingBatch(**common(gold=None), ranking=ranking, ranking_masks=torch.zeros(2, 3).long())
    # Kept scores instead of logits: there is no reference's mask to show.
    rows = rows_of(SimpleNamespace(policy=networks()[0], reference=lambda batch, policy: {}), batch, images=1)
    (row,) = rows
    assert np.array_equal(row.chosen, expected(0, "a"))
    assert np.array_equal(row.rejected, expected(2, "a"))
    assert row.reference is None
    assert row.gold is None


def test_a_supervised_task_shows_its_network():
    batch = SupervisedBatch(**common(), target=MASKS[:2])
    network = networks()[0]
    row, _ = rows_of(SimpleNamespace(network=network), batch)
    assert np.array_equal(row.policy, (network(batch.image)[0, 0] > 0).numpy().astype(np.uint8))
    assert row.chosen is None


def test_images_with_another_number_of_channels_are_scaled():
    batch = SupervisedBatch(**common(image=torch.randn(2, 1, 6, 8)), target=MASKS[:2])
    row, _ = rows_of(SimpleNamespace(network=nn.Conv2d(1, 1, 1)), batch)
    assert row.image.shape == (6, 8, 1)
    assert (row.image.min(), row.image.max()) == (0, 255)


def test_pictures_of_a_training_with_an_average(fit, tmp_path):
    policy = networks()[0]
    before = predicted_classes(policy(pair_batch().image))[0].numpy()
    loss = PreferenceLoss(partial(objectives.dpo, beta=1.0))
    task = PreferenceTask(policy, FrozenCopy(policy), loss, partial(torch.optim.SGD, lr=5.0))
    drawn = {}

    def draw(rows, path, title):
        drawn[path.name] = rows[0]
        draw_panel(rows, path, title=title)

    callbacks = [EMAWeightAveraging(decay=0.5), Panels(draw, tmp_path / "panels", every_n_epochs=2)]
    fit(
        task,
        callbacks=callbacks,
        max_steps=6,
        loaders=[DataLoader([pair_batch()] * count, batch_size=None) for count in (2, 1)],
    )
    assert sorted(drawn) == sorted(path.name for path in (tmp_path / "panels").iterdir())
    assert sorted(drawn) == ["epoch_000.png", "epoch_002.png"]
    last = drawn["epoch_002.png"]
    assert np.array_equal(last.reference, before)
    # What is validated, drawn and left at the end is the average.
    assert np.array_equal(last.policy, predicted_classes(task.policy(pair_batch().image))[0].numpy())
    assert not np.array_equal(last.policy, before)


def test_0_images_are_refused():
    with pytest.raises(ValueError, match="at least 1 image and 1 epoch but got 0 and 1"):
        Panels(draw_panel, "panels", images=0)

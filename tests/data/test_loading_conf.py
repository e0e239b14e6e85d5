"""Every yaml of conf/transforms and conf/datamodule composes, instantiates and does what its comment says."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf
from toy_records import coordinates, encode

from segdpo.data.batches import PairBatch, RankingBatch, SupervisedBatch

CONF = Path(__file__).parents[2] / "conf"
TRANSFORMS = sorted(path.stem for path in (CONF / "transforms").glob("*.yaml"))
DATA = {"data": {"_target_": "toy_records.toys", "count": 20, "ranking": [2, 1, 0]}}


def composed(*overrides):
    with initialize_config_dir(str(CONF), version_base=None):
        return OmegaConf.merge(DATA, compose(overrides=list(overrides)))


@pytest.mark.parametrize(
    "overrides",
    [
        ["+datamodule=preference", "datamodule.items.pairs_per_image=4"],
        ["+datamodule=ranking", "datamodule.items.length=4"],
        ["+datamodule=supervised", "datamodule.items.target=any"],
        ["+datamodule=preference", "datamodule/split=folds", "datamodule.split.fold=1"],
        ["+datamodule=preference", "datamodule.split.val=0.2", "datamodule.batch_size=4"],
    ],
    ids=str,
)
def test_the_lines_of_the_docs_take_every_data_module(overrides):
    with initialize_config_dir(str(CONF), version_base=None):
        config = compose(overrides=["+data=shapes_judged", "+transforms=flips", *overrides])
    config.data.source.count = 20
    assert len(next(iter(instantiate(config.datamodule).train_dataloader())).ids) > 0


@pytest.mark.parametrize("name", TRANSFORMS)
@pytest.mark.parametrize("masks", [2, 5])
def test_transforms_move_every_mask_alike(name, masks):
    pipelines = instantiate(composed(f"+transforms={name}").transforms)
    image, stack = coordinates(50, 90, masks)
    for part in ("train", "eval"):
        for seed in range(6):
            view = pipelines[part](image, stack, np.random.default_rng(seed))
            x, y = view.masks[:2]
            for k, mask in enumerate(view.masks[2:]):
                np.testing.assert_array_equal(mask[view.valid], encode(x, y, k)[view.valid])
            assert (view.masks[:, ~view.valid] == 255).all()
            assert not any(side % 32 for side in view.valid.shape)
    if name in ("resized", "scenes"):
        assert view.valid.shape == (128, 128)
        assert view.valid.all()
        return
    np.testing.assert_array_equal(view.masks[:, :50, :90], stack)  # eval shows the image as it is
    assert view.valid.sum() == 50 * 90


def test_crops_have_the_size_asked_for():
    config = composed("+transforms=crop", "transforms.size=64")
    view = instantiate(config.transforms).train(*coordinates(50, 90, 2), np.random.default_rng(0))
    assert view.valid.shape == (64, 64)


def test_scenes_are_mirrored_and_never_upside_down():
    config = composed("+transforms=scenes", "transforms.size=64")
    train = instantiate(config.transforms).train
    mirrored = 0
    for seed in range(24):
        x, y = (mask.astype(int) for mask in train(*coordinates(64, 64, 2), np.random.default_rng(seed)).masks)
        np.testing.assert_array_equal(y, np.arange(64)[:, None].repeat(64, 1))
        left_to_right = np.arange(64)[None].repeat(64, 0)
        if (x != left_to_right).any():
            np.testing.assert_array_equal(x, left_to_right[:, ::-1])
            mirrored += 1
    assert 4 <= mirrored <= 20


def test_scenes_change_colours_in_training_alone():
    pipelines = instantiate(composed("+transforms=scenes", "transforms.size=64").transforms)
    image, stack = np.full((64, 64, 3), (200, 100, 50), np.uint8), np.zeros((1, 64, 64), np.uint8)
    plain, again = (pipelines["eval"](image, stack, np.random.default_rng(seed)).image for seed in (0, 1))
    assert torch.equal(torch.as_tensor(plain), torch.as_tensor(again))
    seen = [torch.as_tensor(pipelines["train"](image, stack, np.random.default_rng(seed)).image) for seed in range(24)]
    assert 12 <= sum(not torch.allclose(view, torch.as_tensor(plain), atol=0.05) for view in seen) <= 24


@pytest.mark.parametrize(
    ("name", "overrides", "kind"),
    [
        ("loading", (), PairBatch),
        ("preference", ("datamodule.items.pairs_per_image=1",), PairBatch),
        ("ranking", ("datamodule.items.length=2",), RankingBatch),
        ("supervised", ("datamodule.items.target=mean",), SupervisedBatch),
    ],
)
def test_data_modules(name, overrides, kind):
    config = composed("+transforms=flips", f"+datamodule={name}", *overrides)
    data = instantiate(config.datamodule)
    assert [len(data.splits.train), len(data.splits.val), len(data.splits.test)] == [14, 2, 4]
    batch = next(iter(data.train_dataloader()))
    assert type(batch) is kind
    assert batch.image.shape == (8, 3, 32, 32)
    if name == "supervised":
        assert batch.target.dtype == torch.float32
        assert next(iter(data.val_dataloader())).target.dtype == torch.uint8


def test_folds():
    tests = []
    for fold in range(5):
        split = ("datamodule/split=folds", f"datamodule.split.fold={fold}")
        config = composed("+transforms=whole", "+datamodule=preference", *split)
        tests += instantiate(config.datamodule).splits.test.tolist()
    assert sorted(tests) == list(range(20))

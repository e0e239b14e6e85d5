"""Every yaml of conf/data, conf/transforms and conf/datamodule composes, is built, and does what its comment says."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf
from stored import CLASSES, draw_many, folder, pack
from toy_records import coordinates, encode

from segdpo.data.batches import PairBatch, RankingBatch, SupervisedBatch
from segdpo.data.checking import check_source
from segdpo.data.formats.coco import CocoDataset, write_coco
from segdpo.data.formats.folder import FolderDataset
from segdpo.data.formats.pack import PackDataset

CONF = Path(__file__).parents[2] / "conf"
REAL = Path(os.environ.get("SEGDPO_DATA", CONF.parent / "../shared/data"))
TRANSFORMS = sorted(path.stem for path in (CONF / "transforms").glob("*.yaml"))
DATA = {"data": {"_target_": "toy_records.toys", "count": 20, "ranking": [2, 1, 0]}}


def make(name, *options):
    with initialize_config_dir(str(CONF), version_base=None):
        return instantiate(compose(overrides=[f"+data={name}", *options]).data)


def real(name, folder, *options):
    if not (REAL / folder).is_dir():
        pytest.skip(f"{folder} is not there")
    return make(name, f"data.root={REAL / folder}", *options)


def test_our_own_forms(tmp_path):
    records = draw_many(3)
    write_coco(tmp_path / "d.json", records, CLASSES)
    assert isinstance(make("folder", f"data.root={folder(tmp_path, records)}"), FolderDataset)
    assert isinstance(make("pack", f"data.path={pack(tmp_path, records)}"), PackDataset)
    source = make("coco", f"data.annotations={tmp_path / 'd.json'}", "data.channels=null")
    assert isinstance(source, CocoDataset)
    assert source[1].image.shape[2] == 1


def test_a_plain_folder(tmp_path):
    root = folder(tmp_path, draw_many(1))
    source = make(
        "plain",
        f"data.root={root}",
        "data.index=null",
        "data.classes=[a,b,c]",
        "data.masks={one:'masks/rater 0',two:'masks/rater 1'}",
        "data.pairs=[[one,two]]",
        "data.values={2:1}",
    )
    record = source[0]
    assert (record.mask_names, record.pairs[0].chosen) == (("one", "two"), 0)
    assert set(np.unique(record.masks)) == {0, 1, 255}


@pytest.mark.parametrize("name", ["pet", "voc"])
def test_torchvision_sets_that_are_not_there(tmp_path, name):
    with pytest.raises(Exception, match="download it once"):
        make(name, f"data.root={tmp_path}")


def test_bubil():
    source = real("bubil", "bubil")
    groups = {}
    for k in range(len(source)):
        groups.setdefault(source.describe(k).group, []).append(source.describe(k).id)
    assert [ids for ids in groups.values() if len(ids) > 1] == [
        ["d2_chian1_24", "d2_chian1_25"],
        ["d2_chian2_24", "d2_chian2_25"],
    ]
    record = source[0]
    assert record.mask_names == tuple(f"crowd{k}" for k in range(1, 8))
    intersection, union = (f(record.masks[0] == 1, record.gold == 1).sum() for f in (np.logical_and, np.logical_or))
    # The data set's own table says so, to four digits.
    assert round(intersection / union, 4) == float(record.meta["iou_gold_crowd1"])
    assert len(real("bubil_experts", "bubil")[0].mask_names) == 17


def test_camvid():
    source = real("camvid", "camvid")
    assert {source.describe(k).group for k in range(len(source))} == {"0001TP", "0006R0", "0016E5"}
    gold = source[0].gold
    assert set(np.unique(gold)) <= {*range(11), 255}
    assert (gold == 255).any()
    assert real("camvid", "camvid", "data.split=split").describe(0).split == "train"


def test_dsb2018():
    source = real("dsb2018", "dsb2018_fixes")
    check = check_source(source)
    assert not check.failed
    # Five images have a mask that the correction did not change; the index says 0 changed pixels for them.
    unchanged = sum(source[k].meta["binary_px_changed"] == "0" for k in range(len(source)))
    assert check.counts()[("info", "identical pair skipped")] == unchanged == 5
    assert check.pairs == len(source) - 5
    changed = (source[0].masks[0] != source[0].masks[1]).sum()
    assert changed == int(source[0].meta["binary_px_changed"])


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
    for name in ("crop", "crop_scaled"):
        config = composed(f"+transforms={name}", "transforms.size=64")
        view = instantiate(config.transforms).train(*coordinates(50, 90, 2), np.random.default_rng(0))
        assert view.valid.shape == (64, 64)


def test_crops_keep_the_resolution_and_reach_every_pixel():
    train = instantiate(composed("+transforms=crop", "transforms.size=32").transforms).train
    seen = np.zeros((50, 90), bool)
    for seed in range(60):
        view = train(*coordinates(50, 90, 2), np.random.default_rng(seed))
        x, y = view.masks.astype(int)
        assert view.valid.all()
        # Neighbours in the crop are neighbours in the image, whichever way it is turned: 32 rows and 32 columns.
        assert {abs(x[0, 0] - x[-1, -1]), abs(y[0, 0] - y[-1, -1])} == {31}
        assert len(np.unique(x)) == len(np.unique(y)) == 32
        seen[y, x] = True
    assert seen.mean() > 0.9


def test_images_smaller_than_the_crop_are_padded_and_the_padding_is_ignored():
    train = instantiate(composed("+transforms=crop", "transforms.size=64").transforms).train
    view = train(*coordinates(20, 30, 3), np.random.default_rng(1))
    assert view.valid.sum() == 20 * 30
    assert (view.masks[:, ~view.valid] == 255).all()
    x, y = view.masks[:2, view.valid].astype(int)
    assert len({*zip(x.tolist(), y.tolist(), strict=True)}) == 20 * 30


@pytest.mark.parametrize("name", TRANSFORMS)
def test_the_window_is_the_crop_and_otherwise_the_whole_image(name):
    config = composed(f"+transforms={name}", *(["transforms.size=96"] if name == "crop" else []))
    assert config.transforms.window == (96 if name == "crop" else None)


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

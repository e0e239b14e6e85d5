"""Every yaml of a stored data set, and the example sets where they are there."""

import os
from pathlib import Path

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from stored import CLASSES, draw_many, folder, pack

from segdpo.data.checking import check_source
from segdpo.data.formats.coco import CocoDataset, write_coco
from segdpo.data.formats.folder import FolderDataset
from segdpo.data.formats.pack import PackDataset

ROOT = Path(__file__).parents[2]
REAL = Path(os.environ.get("SEGDPO_DATA", ROOT / "../shared/data"))


def make(name, *options):
    with initialize_config_dir(str(ROOT / "conf"), version_base=None):
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

"""Data sets in which only some images have gold: each format keeps which, and says it without decoding."""

import json
import logging
import shutil
from functools import partial

import numpy as np
import pytest
from stored import CLASSES, STORED, draw, same
from toy_records import Listed, record

from segdpo.data import (
    CocoDataset,
    FolderDataset,
    Joined,
    PackDataset,
    Subset,
    annotate,
    info_of,
    needs_gold,
    reads_gold,
    with_gold,
    write_coco,
    write_folder,
    write_pack,
)
from segdpo.files import DataError
from segdpo.preferences import (
    agreement,
    boundary_iou,
    by_function,
    by_network,
    consensus,
    corrupt,
    dice,
    existing,
    gumbel,
    hd95,
    iou,
    mixture,
    surface_dice,
)
from segdpo.rl import Part, by_judge, by_model, weighted_sum
from segdpo.rl import iou as iou_reward

GOLD = (1, 4)


def records(count=6):
    rng = np.random.default_rng(3)
    found = [draw(rng, f"r{k}", **({} if k in GOLD else {"gold": None})) for k in range(count)]
    # Gold that is background everywhere is gold, too.
    found[4].gold[:] = 0
    return found


def as_folder(path, source, kind):
    write_folder(path / "folder", source, CLASSES, kind)
    return FolderDataset(path / "folder", channels=None)


def as_pack(path, source):
    write_pack(path / "pack", Listed(source, CLASSES))
    return PackDataset(path / "pack", channels=None)


def as_coco(path, source):
    write_coco(path / "coco" / "a.json", source, CLASSES)
    return CocoDataset(path / "coco" / "a.json", channels=None)


FORMATS = [partial(as_folder, kind="jsonl"), partial(as_folder, kind="csv"), as_pack, as_coco]


@pytest.mark.parametrize("write", FORMATS)
def test_a_round_trip_keeps_which_images_have_gold(tmp_path, write):
    source = write(tmp_path, records())
    assert [same(*pair) for pair in zip(source, records(), strict=True)] == [True] * 6
    assert [source.describe(k).gold for k in range(6)] == [k in GOLD for k in range(6)]
    assert with_gold(source, range(6)).tolist() == [1, 4]
    assert with_gold(Joined([Subset(source, [4, 0]), source]), np.array([0, 1, 2, 3], np.uint32)).tolist() == [0, 3]


def test_through_all_formats_and_back(tmp_path):
    found = records()
    for number, write in enumerate(FORMATS):
        found = list(write(tmp_path / str(number), found))
    assert [same(*pair) for pair in zip(found, records(), strict=True)] == [True] * 6


def test_a_folder_that_does_not_list_gold_has_what_lies_there(tmp_path):
    source = as_folder(tmp_path, records(), "jsonl")
    description, manifest = (tmp_path / "folder" / name for name in ("dataset.json", "manifest.jsonl"))
    description.write_text(json.dumps({"classes": CLASSES}))
    lines = [json.loads(line) for line in manifest.read_text().splitlines()]
    manifest.write_text("".join(json.dumps({k: v for k, v in one.items() if k != "gold"}) + "\n" for one in lines))
    (tmp_path / "folder" / "gold" / "r1.png").unlink()
    source = FolderDataset(tmp_path / "folder", channels=None)
    assert with_gold(source, range(6)).tolist() == [4]
    assert [one.gold is not None for one in source] == [False, False, False, False, True, False]


def test_a_pack_of_before_does_not_say_it_and_is_read(tmp_path):
    source = PackDataset(shutil.copytree(STORED / "first.pack", tmp_path / "p"))
    assert [source.describe(k).gold for k in range(3)] == [None] * 3
    assert [info_of(source, k, gold=True).gold for k in range(3)] == [True, False, False]


@pytest.mark.parametrize(("unannotated", "gold"), [(None, True), ("background", True), ("no_gold", False)])
def test_images_of_coco_without_annotations(tmp_path, caplog, unannotated, gold):
    as_coco(tmp_path, records())
    path = tmp_path / "coco" / "a.json"
    content = json.loads(path.read_text())
    del content["info"], content["candidates"]
    content["images"] = [{k: v for k, v in one.items() if k != "segdpo"} for one in content["images"]]
    path.write_text(json.dumps(content))
    with caplog.at_level(logging.WARNING):
        source = CocoDataset(path, unannotated=unannotated)
    # Only r1 has regions.
    assert [source.describe(k).gold for k in range(6)] == [k == 1 or gold for k in range(6)]
    assert [one.gold is not None for one in source] == [k == 1 or gold for k in range(6)]
    assert ("5 of 6 images have no annotation" in caplog.text) == (unannotated is None)


def test_another_value_of_unannotated(tmp_path):
    with pytest.raises(DataError, match="'background' or 'no_gold' but got 'none'"):
        CocoDataset(tmp_path, unannotated="none")


class Callable:
    needs_gold = True

    def __call__(self, record, masks, rng):
        return record.gold


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        *((judge, True) for judge in (iou, dice, boundary_iou, hd95, surface_dice)),
        *((judge, False) for judge in (agreement, consensus, by_network, by_function, None)),
        (partial(iou, background=True), True),
        (partial(gumbel, judge=partial(iou), temperature=0.1), True),
        (partial(gumbel, judge=partial(agreement), temperature=0.1), False),
        (partial(corrupt, count=2), True),
        (partial(corrupt, start="rater0"), False),
        (annotate, True),
        (partial(existing, start=""), False),
        (partial(mixture, sources={"a": partial(existing), "b": partial(corrupt)}, count=3), True),
        (partial(mixture, sources={"a": partial(existing)}, count=3), False),
        (partial(by_judge, judge=dice), True),
        (partial(by_judge, judge=agreement), False),
        (iou_reward, True),
        (partial(by_model, model=None), False),
        (
            partial(weighted_sum, parts={"a": Part(1.0, partial(by_model, model=None)), "b": Part(1.0, iou_reward)}),
            True,
        ),
        (Callable(), True),
        (partial(by_function, function=reads_gold(lambda image, mask: 0.0)), True),
    ],
)
def test_functions_say_whether_they_need_gold(function, expected):
    assert needs_gold(function) is expected


def test_a_source_that_describes_nothing_is_read():
    source = Listed([record("a"), record("b", gold=False)])
    assert with_gold(source, [0, 1]).tolist() == [0]
    assert with_gold(source, []).dtype == np.uint32

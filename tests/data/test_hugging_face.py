"""Data sets of Hugging Face: written, read again, read by `datasets`, and what others wrote."""

import json
import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from segdpo import cli
from segdpo.data import (
    HuggingFaceDataset,
    Pair,
    Record,
    Shapes,
    encode_image,
    encode_mask,
    find_source,
    info_of,
    open_source,
    write_datasets,
)
from segdpo.data.formats import parquet as parquet_files
from segdpo.files import DataError

CLASSES = ("background", "cell", "nucleus")


def image(seed=0, size=(5, 7)):
    return np.random.default_rng(seed).integers(0, 256, (*size, 3)).astype(np.uint8)


def mask(seed, size=(5, 7)):
    return np.random.default_rng(seed).choice(np.array([0, 1, 2, 255], np.uint8), size)


def records():
    masks = np.stack([mask(k) for k in range(4)])
    names = ("anna", "ben", "cleo", "dora")
    pairs = (Pair(2, 0, 0.5), Pair(2, 3))
    yield Record("a/1", image(1), masks, names, pairs, (2, 0, 3), mask(9), "patient 1", "train", {"site": "Ulm ü"})
    yield Record("a/2", image(2), masks[:2], names[:2], (), (), mask(8), "patient 2", "test")
    yield Record("b", image(3), masks[:0], (), group="patient 3", split="val")
    yield Record("c", image(4)[..., :1], masks[1:3], ("x", "y"), (Pair(0, 1),))


def same(one, other):
    texts = ("id", "mask_names", "pairs", "ranking", "group", "split", "meta")
    assert [getattr(one, name) for name in texts] == [getattr(other, name) for name in texts]
    for name in ("image", "masks"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), strict=True)
    assert (one.gold is None) == (other.gold is None)
    assert one.gold is None or np.array_equal(one.gold, other.gold)


@pytest.fixture
def written(tmp_path):
    write_datasets(tmp_path / "prefs", records(), CLASSES)
    return tmp_path / "prefs"


def test_what_is_written_comes_back(written, tmp_path):
    source = HuggingFaceDataset(written, channels=None)
    assert source.classes == CLASSES
    found = {record.id: record for record in map(source.__getitem__, range(len(source)))}
    assert list(found) == ["a/1", "c", "b", "a/2"]  # train, validation, test
    for record in records():
        same(found[record.id], record)
    infos = [info_of(source, k) for k in range(4)]
    assert [(info.pairs, info.ranking, info.gold) for info in infos] == [
        (2, 3, True), (1, 0, False), (0, 0, False), (0, 0, True),
    ]  # fmt: skip
    assert [info.split for info in infos] == ["train", "", "val", "test"]
    same(pickle.loads(pickle.dumps(source))[0], found["a/1"])
    with pytest.raises(DataError, match="Expected nothing there"):
        write_datasets(written, records(), CLASSES)


def test_the_command_packs_in_both_directions_and_keeps_image_files(tmp_path, capsys):
    write_datasets(tmp_path / "first", Shapes(count=40, size=32), ("background", "object"))
    assert cli.main(["pack", str(tmp_path / "first"), str(tmp_path / "second.pack")]) == 0
    assert cli.main(["pack", str(tmp_path / "second.pack"), str(tmp_path / "third"), "--to", "datasets"]) == 0
    assert (tmp_path / "first/train.parquet").read_bytes() == (tmp_path / "third/train.parquet").read_bytes()
    opened = find_source(tmp_path / "third")
    assert opened.options == {"data": "huggingface", "data.path": str(tmp_path / "third")}
    for number in (0, 35, 39):  # of both row groups
        same(opened.source[number], Shapes(count=40, size=32)[number])
    assert opened.source.image_file(35) == encode_image(Shapes(count=40, size=32)[35].image)


def test_datasets_sees_images(written):
    datasets = pytest.importorskip("datasets")
    datasets.disable_caching()
    loaded = datasets.load_dataset("parquet", data_dir=str(written), cache_dir=str(written.parent / "cache"))
    assert sorted(loaded) == ["test", "train", "validation"]
    rows = loaded["train"]
    for name in ("image", "chosen", "rejected", "gold"):
        assert isinstance(rows.features[name], datasets.Image)
    assert len(rows) == 3  # one row a pair
    first = next(records())
    np.testing.assert_array_equal(rows[1]["image"], first.image)
    np.testing.assert_array_equal(rows[1]["rejected"], first.masks[3])
    np.testing.assert_array_equal(rows[0]["others"][0], first.masks[1])
    assert rows[0]["weight"] == 0.5


def test_what_datasets_saved_is_read(written, tmp_path):
    datasets = pytest.importorskip("datasets")
    cache = str(tmp_path / "cache")
    loaded = datasets.load_dataset("parquet", data_dir=str(written), cache_dir=cache)
    loaded.save_to_disk(str(tmp_path / "disk"))
    loaded["train"].save_to_disk(str(tmp_path / "train only"))
    source = open_source(written, channels=None)
    with pytest.raises(DataError, match=r"data\.classes"):
        HuggingFaceDataset(tmp_path / "disk")
    disk = HuggingFaceDataset(tmp_path / "disk", CLASSES, channels=None)
    for number in range(4):
        same(disk[number], source[number])
    only = HuggingFaceDataset(tmp_path / "train only", CLASSES, channels=None)
    assert [only[number].id for number in range(len(only))] == ["a/1", "c"]


def picture(array):
    data = encode_mask(array) if array.ndim == 2 else encode_image(array).data
    return {"bytes": data, "path": None}


def parquet(path, rows):
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def test_trls_columns_alone_are_enough(tmp_path):
    rows = [{"image": picture(image(k)), "chosen": picture(mask(1)), "rejected": picture(mask(k))} for k in (2, 3)]
    source = HuggingFaceDataset(parquet(tmp_path / "pairs.parquet", rows), CLASSES)
    assert [source[k].id for k in (0, 1)] == ["pairs-000000", "pairs-000001"]
    np.testing.assert_array_equal(source[1].masks, [mask(1), mask(3)])
    assert source[1].pairs == (Pair(0, 1),)
    assert (source[1].gold, source[1].group, source[1].split) == (None, "", "")


def test_accepted_and_rejected_masks_of_an_image_are_its_pairs(tmp_path):
    rows = [
        {"picture": picture(image()), "name": "x", "mask": picture(mask(k)), "label": label}
        for k, label in enumerate([True, False, True])
    ]
    rows.append({"picture": picture(image(1)), "name": "y", "mask": picture(mask(1)), "label": True})
    path = parquet(tmp_path / "kto.parquet", rows)
    source = HuggingFaceDataset(path, CLASSES, columns={"image": "picture", "id": "name"})
    assert [info_of(source, k).pairs for k in (0, 1)] == [2, 0]
    assert source[0].pairs == (Pair(0, 1), Pair(2, 1))
    np.testing.assert_array_equal(source[0].masks, [mask(0), mask(1), mask(2)])
    assert source[1].mask_names == ("mask-0",)


def test_gold_masks_of_0_and_255_in_a_column_of_another_name(tmp_path):
    white = np.where(mask(0) == 1, 255, 0).astype(np.uint8)
    path = parquet(tmp_path / "x.parquet", [{"image": picture(image()), "annotation": picture(white)}])
    names = ["background", "cell"]
    source = HuggingFaceDataset(path, names, {"gold": "annotation"}, mask_format={"values": {255: 1}})
    np.testing.assert_array_equal(source[0].gold, white // 255)
    assert info_of(source, 0).gold is True


ROW = {"image": picture(image()), "id": "x", "chosen": picture(mask(1)), "rejected": picture(mask(2))}
WRONG = {
    "no image": ([{"id": "x"}], "column `image`"),
    "an image elsewhere": ([ROW | {"image": {"bytes": None, "path": "/etc/passwd"}}], "bytes of an image"),
    "numbers as an image": ([ROW | {"image": 3}], "bytes of an image"),
    "half a pair": ([ROW | {"rejected": None}, ROW], "`rejected` is empty"),
    "two images of an id": ([ROW, ROW | {"image": picture(image(5))}], "one image an id"),
    "an id that leaves the folder": ([ROW | {"id": "../x"}], r"\.\./x"),
    "an id that is a number": ([ROW | {"id": 3}], "Expected an id but got 3"),
    "a mask preferred to itself": ([ROW | {"rejected": ROW["chosen"]}], "two different masks"),
    "one name for two masks": ([ROW | {"chosen_name": "a", "rejected_name": "a"}], "one mask a name"),
    "a mask of another size": ([ROW | {"chosen": picture(mask(1, (3, 3)))}], "chosen|mask-0"),
    "a weight below 0": ([ROW | {"weight": -1.0}], "weight"),
    "a wrong label": ([{"image": ROW["image"], "mask": ROW["chosen"], "label": 7}], "label"),
    "a wrong split": ([ROW | {"split": "dev set"}], "dev set"),
    "names that do not fit": ([ROW | {"mask_names": ["a", "b", "c"]}], "mask_names"),
    "a ranking of others": ([ROW | {"ranking": ["nobody"]}], "nobody"),
    "meta that is no object": ([ROW | {"meta": "[1]"}], "meta"),
    "a mask that is no image": ([ROW | {"chosen": {"bytes": b"cut", "path": None}}], "mask-0"),
}


@pytest.mark.parametrize(("rows", "message"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_is_named(tmp_path, rows, message):
    path = parquet(tmp_path / "x.parquet", rows)
    with pytest.raises(DataError, match=rf"(?s)x\.parquet.*({message})|split.*{message}|{message}"):
        HuggingFaceDataset(path, CLASSES)[0]


def test_files_that_are_damaged_or_not_there(tmp_path, written, monkeypatch):
    (tmp_path / "cut.parquet").write_bytes((written / "train.parquet").read_bytes()[:-20])
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk/state.json").write_text("{}")
    for name, message in (("cut.parquet", "cannot be read"), ("disk", "found neither"), ("nowhere", "hf download")):
        with pytest.raises(DataError, match=message):
            HuggingFaceDataset(tmp_path / name, CLASSES)
    (tmp_path / "disk/data-00000-of-00001.arrow").write_bytes(b"\xff\xff\xff\xff" * 9)
    with pytest.raises(DataError, match="cannot be read"):
        HuggingFaceDataset(tmp_path / "disk", CLASSES)
    monkeypatch.setattr(parquet_files, "MAX_FILE_BYTES", 10)
    parquet_files._lengths.cache_clear()
    with pytest.raises(DataError, match="at most 10 bytes"):
        HuggingFaceDataset(written)
    with pytest.raises(DataError, match=r"columns of .* but got golden"):
        HuggingFaceDataset(written, columns={"golden": "gold"})


def test_classes_in_the_metadata_are_checked(tmp_path):
    table = pa.Table.from_pylist([ROW]).replace_schema_metadata({"segdpo": json.dumps({"classes": "abc"})})
    pq.write_table(table, tmp_path / "x.parquet")
    with pytest.raises(DataError, match=r"data\.classes"):
        HuggingFaceDataset(tmp_path / "x.parquet")

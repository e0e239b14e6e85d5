import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from image_bytes import png
from pycocotools import mask as rle
from pycocotools.coco import COCO
from stored import CLASSES, contents, draw_many, folder, same

from segdpo.data.formats.coco import CocoDataset, encode_coco_mask, write_coco
from segdpo.data.formats.folder import FolderDataset, write_folder
from segdpo.data.formats.pack import PackDataset
from segdpo.data.images import encode_image
from segdpo.data.mask_files.regions import decode_region
from segdpo.data.sources import write_pack
from segdpo.files import DataError

DATA = draw_many(6)
masks = hnp.arrays(
    np.uint8, hnp.array_shapes(min_dims=2, max_dims=2, max_side=40), elements=st.sampled_from([0, 1, 2, 255])
)


@given(masks)
def test_codes_are_what_pycocotools_reads(mask):
    regions = encode_coco_mask(mask, skip=0)
    assert [region["category_id"] for region in regions] == sorted(set(mask.ravel().tolist()) - {0})
    for region in regions:
        truth = mask == region["category_id"]
        assert np.array_equal(rle.decode(region["segmentation"]), truth)
        assert np.array_equal(decode_region(region["segmentation"], mask.shape, ""), truth)
        assert region["area"] == truth.sum()
        rows, columns = np.nonzero(truth)
        left, top = columns.min(), rows.min()
        assert region["bbox"] == [left, top, columns.max() - left + 1, rows.max() - top + 1]


@given(masks)
def test_codes_without_compression(mask):
    flat = (mask == 1).ravel(order="F").astype(int)
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flat]))).tolist()
    counts = np.diff([0, *edges, len(flat)]).tolist()
    region = decode_region({"size": list(mask.shape), "counts": counts}, mask.shape, "")
    assert np.array_equal(region, mask == 1)


@pytest.mark.parametrize(
    "segmentation",
    [
        {"size": [4, 4], "counts": "zzz"},
        {"size": [4, 4], "counts": "\x00"},
        {"size": [4, 4], "counts": "ä"},
        {"size": [4, 4], "counts": rle.encode(np.ones((9, 9), np.uint8, order="F"))["counts"].decode()},
        {"size": [4, 4], "counts": rle.encode(np.ones((3, 3), np.uint8, order="F"))["counts"].decode()},
        {"size": [4, 4], "counts": [3, 3]},
        {"size": [4, 4], "counts": [20, -4]},
        {"size": [4, 4]},
        [],
        [[1, 2, 3, 4]],
        [[1, 2, 3, 4, float("nan"), 1]],
        [["a"] * 6],
        "polygon",
        None,
    ],
)
def test_what_is_no_region_is_named(segmentation):
    with pytest.raises(DataError, match=r"^where: "):
        decode_region(segmentation, (4, 4), "where: ")


def test_a_region_of_another_size_is_named():
    with pytest.raises(DataError, match=r"4×5 .*\[5, 4\]") as caught:
        decode_region({"size": [5, 4], "counts": [20]}, (4, 5), "")
    assert caught.value.kind == "size"


def test_records_to_coco_to_records(tmp_path):
    write_coco(tmp_path / "d.json", DATA, CLASSES)
    source = CocoDataset(tmp_path / "d.json", channels=None)
    assert source.classes == CLASSES
    assert [same(*pair) for pair in zip(source, DATA, strict=True)] == [True] * 6
    assert source.describe(0).pairs == 2


def test_coco_to_folder_to_coco(tmp_path):
    write_coco(tmp_path / "one/d.json", FolderDataset(folder(tmp_path, DATA), channels=None), CLASSES)
    write_folder(tmp_path / "f", CocoDataset(tmp_path / "one/d.json"), CLASSES)
    write_coco(tmp_path / "two/d.json", FolderDataset(tmp_path / "f"), CLASSES)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_other_tools_read_gold_and_nothing_else(tmp_path):
    write_coco(tmp_path / "d.json", DATA, CLASSES)
    other = COCO(str(tmp_path / "d.json"))
    for number, record in enumerate(DATA, 1):
        painted = np.zeros(record.image.shape[:2], np.uint8)
        for region in other.loadAnns(other.getAnnIds(imgIds=number)):
            painted[other.annToMask(region) == 1] = region["category_id"]
            assert region["iscrowd"] == (region["category_id"] == 255)
        assert np.array_equal(painted, record.gold if record.gold is not None else np.zeros_like(painted))
    assert {cat["name"] for cat in other.loadCats(other.getCatIds())} == {"cell", "vessel", "ignore"}


def test_a_class_0_that_is_a_thing_is_written(tmp_path):
    write_coco(tmp_path / "d.json", DATA, ("sky", "road", "car"))
    values = json.loads((tmp_path / "d.json").read_text())
    assert 0 in {region["category_id"] for region in values["annotations"]}
    assert same(CocoDataset(tmp_path / "d.json", channels=None)[0], DATA[0])


def foreign(tmp_path, annotations, /, **changes):
    """A file as others write them: categories 7 dog and 3 cat, one image of 6 × 8 pixels."""
    (tmp_path / "images/sub").mkdir(parents=True)
    (tmp_path / "images/sub/a 1.png").write_bytes(encode_image(np.zeros((6, 8, 3), np.uint8)).data)
    values = {
        "images": [{"id": 40, "file_name": "sub/a 1.png", "height": 6, "width": 8}],
        "categories": [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}],
        "annotations": [{"id": k, "image_id": 40, "iscrowd": 0, **region} for k, region in enumerate(annotations)],
    }
    (tmp_path / "d.json").write_text(json.dumps({**values, **changes}))
    return tmp_path / "d.json"


SQUARE = {"category_id": 7, "segmentation": [[2, 1, 6, 1, 6, 5, 2, 5]]}
INSIDE = {"category_id": 3, "segmentation": [[3, 2, 5, 2, 5, 4, 3, 4]]}
CROWD = {"category_id": 3, "iscrowd": 1, "segmentation": {"size": [6, 8], "counts": [0, 6, 42]}}


def test_ordinary_coco_is_gold(tmp_path):
    source = CocoDataset(foreign(tmp_path, [INSIDE, SQUARE, CROWD]))
    assert source.classes == ("background", "cat", "dog")
    record = source[0]
    assert (record.id, record.mask_names, record.pairs) == ("sub/a 1", (), ())
    # The smaller cat lies on the dog, though the file lists it first; the crowd is the first column.
    assert record.gold.tolist() == [
        [255, 0, 0, 0, 0, 0, 0, 0],
        [255, 0, 2, 2, 2, 2, 0, 0],
        [255, 0, 2, 1, 1, 2, 0, 0],
        [255, 0, 2, 1, 1, 2, 0, 0],
        [255, 0, 2, 2, 2, 2, 0, 0],
        [255, 0, 0, 0, 0, 0, 0, 0],
    ]


def test_a_crowd_may_be_its_class(tmp_path):
    gold = CocoDataset(foreign(tmp_path, [CROWD]), crowd="class")[0].gold
    assert np.array_equal(gold[:, 0], [1] * 6)
    with pytest.raises(DataError, match="'ignore' or 'class'"):
        CocoDataset(tmp_path / "d.json", crowd="both")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"images": None}, "Expected COCO but got none"),
        ({"categories": []}, "2 to 255 different class names"),
        ({"images": [{"id": 1, "file_name": "../a.png", "height": 6, "width": 8}]}, "stays inside its folder"),
        ({"images": [{"id": 1, "file_name": "/a.png", "height": 6, "width": 8}]}, "stays inside its folder"),
        ({"images": [{"id": k, "file_name": "a.png"} for k in (1, 2)]}, "id once but got 'a' twice"),
        ({"images": [{"id": 1, "file_name": f"{k}.png"} for k in "ab"]}, "number once but got 1 twice"),
        ({"annotations": [{"id": 9, "image_id": 8, "category_id": 7}]}, "annotation 9: Expected a listed image"),
        ({"annotations": [{"id": 9, "image_id": 40, "category_id": 8}]}, "category 8"),
        ({"info": {"segdpo": {"version": 2, "classes": ["a", "b"]}}}, "Expected version 1 but got 2"),
    ],
)
def test_a_bad_file_is_named(tmp_path, changes, words):
    path = foreign(tmp_path, [], **changes)
    with pytest.raises(DataError) as caught:
        CocoDataset(path)
    assert str(path) in str(caught.value)
    assert words in str(caught.value)


def test_an_image_of_another_size_is_named(tmp_path):
    path = foreign(tmp_path, [], images=[{"id": 40, "file_name": "sub/a 1.png", "height": 8, "width": 6}])
    with pytest.raises(DataError, match=r"image 'sub/a 1': Expected \(8, 6\)"):
        CocoDataset(path)[0]


def test_nothing_is_overwritten(tmp_path):
    write_coco(tmp_path / "d.json", DATA, CLASSES)
    with pytest.raises(DataError, match="Expected nothing there"):
        write_coco(tmp_path / "d.json", DATA, CLASSES)
    with pytest.raises(DataError, match="another image"):
        write_coco(tmp_path / "e.json", draw_many(6, seed=1), CLASSES)


def test_deep_images_need_a_value_range_and_travel_with_8_bits(tmp_path):
    pixels = np.array([[0, 500, 1000], [2000, 250, 750]], np.uint16)
    (tmp_path / "images").mkdir()
    (tmp_path / "images/a.png").write_bytes(png(pixels))
    image = {"id": 1, "file_name": "a.png", "width": 3, "height": 2}
    values = {"images": [image], "annotations": [], "categories": [{"id": 1, "name": "cell"}]}
    (tmp_path / "x.json").write_text(json.dumps(values))
    with pytest.raises(DataError, match=r"a.png: .*uint16 from 0 to 2000.*value_range"):
        CocoDataset(tmp_path / "x.json")[0]
    source = CocoDataset(tmp_path / "x.json", channels=1, value_range=[0, 1000])
    assert source[0].image[..., 0].tolist() == [[0, 128, 255], [255, 64, 191]]  # 255 · .25 = 63.75, 255 · .75 = 191.25
    write_pack(tmp_path / "x.pack", source)
    assert np.array_equal(PackDataset(tmp_path / "x.pack", 1)[0].image, source[0].image)

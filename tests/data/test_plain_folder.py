import layouts
import numpy as np
import pytest
from PIL import Image as Pillow

from segdpo.data.formats import plain_folder
from segdpo.data.formats.plain_folder import PlainFolder
from segdpo.data.record import Pair
from segdpo.files import DataError

CLASSES = ("background", "cell")
rows = np.repeat(np.arange(5)[:, None], 4, axis=1)


def save(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Pillow.fromarray(pixels).save(path)


@pytest.fixture
def root(tmp_path):
    """Three images; masks by anna (0/255), ben (1 bit, missing for c); the two agree on p1_b."""
    for k, name in enumerate(("p1_a", "p1_b", "p2 c")):
        save(tmp_path / f"images/{name}.png", np.full((5, 4), 50 * k, np.uint8))
        save(tmp_path / f"masks_anna/{name}.png", np.uint8(255 * (rows > 2)))
        if k < 2:
            save(tmp_path / f"masks_ben/{name}.png", rows >= 2 + k)
        save(tmp_path / f"truth/{name}.png", np.uint8(rows > 1))
    (tmp_path / "index.csv").write_text("id,hospital,part\np1_a,Ulm,train\np2 c,Bonn,val\np1_b,Ulm,test\n")
    return tmp_path


def read(root, **options):
    masks = {"anna": "masks_anna", "ben": "masks_ben"}
    return PlainFolder(root, **{"classes": CLASSES, "masks": masks, "values": {255: 1}, **options})


def test_masks_gold_and_meta_in_the_order_of_the_index(root):
    source = read(root, gold="truth")
    assert [record.id for record in source] == ["p1_a", "p2 c", "p1_b"]
    first, second, _ = source
    assert (first.mask_names, second.mask_names) == (("anna", "ben"), ("anna",))
    assert np.array_equal(first.masks, [rows > 2, rows > 1])
    assert np.array_equal(first.gold, rows > 1)
    assert first.meta == {"hospital": "Ulm", "part": "train"}
    assert np.array_equal(second.image, np.full((5, 4, 3), 100))


def test_without_an_index_every_image_counts(root):
    assert [source.id for source in read(root, index=None)] == ["p1_a", "p1_b", "p2 c"]


def test_groups_and_splits(root):
    by_column = read(root, group="hospital", split="part")
    assert [(i.group, i.split) for i in map(by_column.describe, range(3))] == [
        ("Ulm", "train"),
        ("Bonn", "val"),
        ("Ulm", "test"),
    ]
    by_id = read(root, group_pattern="^(p1)_")
    assert [by_id.describe(k).group for k in range(3)] == ["p1", "p2 c", "p1"]
    assert [read(root).describe(k).group for k in range(3)] == ["", "", ""]


def test_pairs_of_identical_masks_are_skipped_and_named(root):
    source = read(root, pairs=[["ben", "anna"]])
    assert [record.pairs for record in source] == [(Pair(1, 0),), (), ()]
    assert [record.meta.get("identical pairs skipped") for record in source] == [None, None, "ben > anna"]
    assert source.describe(0).pairs is None


def test_a_value_may_mean_ignore(root):
    save(root / "truth/p1_a.png", np.uint8(rows))
    gold = read(root, classes=("a", "b", "c"), masks={}, gold="truth", values={3: 255, 4: 2})[0].gold
    assert gold[:, 0].tolist() == [0, 1, 2, 255, 2]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"masks": {"anna": "nowhere"}}, "nowhere: no such folder"),
        ({"gold": "nowhere"}, "nowhere: no such folder"),
        ({"images": "nowhere"}, "nowhere: no such folder"),
        ({"group": "patient"}, "Expected a column 'patient'"),
        ({"index": "other.csv"}, "other.csv: cannot be read"),
        ({"pairs": [["anna", "carl"]]}, "Expected pairs"),
        ({"pairs": [["anna", "anna"]]}, "Expected pairs"),
        ({"masks": {"a/b": "masks_anna"}}, "Expected a mask name"),
        ({"classes": ("one",)}, "2 to 255"),
    ],
)
def test_bad_options_are_named(root, options, words):
    with pytest.raises(DataError, match=words):
        read(root, **options)


@pytest.mark.parametrize(
    ("index", "words"),
    [
        ("id\np1_a\nd\n", "Expected an image for 'd'"),
        ("id\np1_a\np1_a\n", "line 3: Expected each id once"),
        ("id\n../p1_a\n", "line 2: Expected an id that stays inside"),
        ("name\np1_a\n", "Expected a column 'id'"),
        ("id,x\np1_a\n", "line 2: Expected 2 cells"),
    ],
)
def test_a_bad_index_is_named(root, index, words):
    (root / "index.csv").write_text(index)
    with pytest.raises(DataError, match=words):
        read(root)


def test_two_images_of_one_id(root):
    save(root / "images/p1_a.bmp", np.zeros((5, 4), np.uint8))
    with pytest.raises(DataError, match=r"p1_a\.png: .*p1_a\.bmp"):
        read(root)


def test_a_split_of_another_name_is_named(root):
    with pytest.raises(DataError, match="id 'p1_a': Expected split"):
        read(root, split="hospital").describe(0)


def test_an_image_whose_gold_mask_is_missing_has_none(root):
    (root / "truth/p1_a.png").unlink()
    source = read(root, gold="truth")
    assert [source.describe(k).gold for k in range(3)] == [False, True, True]
    assert (source[0].gold, source[1].gold.shape) == (None, (5, 4))


def test_all_faulty_masks_of_an_image_come_at_once(root):
    save(root / "masks_anna/p1_a.png", np.full((5, 4), 7, np.uint8))
    save(root / "masks_ben/p1_a.png", np.zeros((4, 4), np.uint8))
    with pytest.raises(DataError, match=r"masks_anna/p1_a\.png: .*masks_ben/p1_a\.png: "):
        read(root)[0]


def test_a_folder_without_images_is_named(tmp_path):
    # A folder that is called like an image is none.
    (tmp_path / "images/a.png").mkdir(parents=True)
    with pytest.raises(DataError, match=r"images: Expected images but found none"):
        PlainFolder(tmp_path, ("background", "cell"), index=None)


def test_one_file_with_the_masks_of_several_people_is_read_once(tmp_path, monkeypatch):
    layouts.label_studio_brush(tmp_path)
    read, opened = plain_folder.read_annotations, []
    monkeypatch.setattr(plain_folder, "read_annotations", lambda path: opened.append(path) or read(path))
    people = {f"p{number}": f"project-2.json#annotator {number}" for number in (7, 8)}
    source = PlainFolder(tmp_path, ("background", "cell"), people, index=None, mask_format={"kind": "label_studio"})
    assert source[0].mask_names == ("p7", "p8")
    assert opened == [tmp_path / "project-2.json"]

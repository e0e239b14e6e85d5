"""The bad input of the data sets, each with what the check says of it, word by word where it matters."""

import dataclasses

import numpy as np
import pytest
from PIL import Image as Pillow
from stored import folder, pack
from toy_records import Listed, record

from segdpo.data.checking import check_source
from segdpo.data.formats.folder import FolderDataset
from segdpo.data.formats.pack import PackDataset
from segdpo.data.record import Pair

CLASSES = tuple(f"class {k}" for k in range(11))


def found(source, **options):
    return [(f.level, f.kind, f.id) for f in check_source(source, **options).findings]


def sound(count=4):
    """Masks 0, 1 and 2 of toy records have 0, 1 and 2 rows set; mask 0 is empty, so it is left out here."""
    return [
        dataclasses.replace(
            whole := record(f"r {k}", value=10 * k, pairs=((1, 0),)), masks=whole.masks[1:], mask_names=("x", "y")
        )
        for k in range(count)
    ]


def stored_folder(tmp_path):
    return folder(tmp_path, sound(), CLASSES)


def test_nothing_is_wrong(tmp_path):
    for source in (Listed(sound()), FolderDataset(stored_folder(tmp_path)), PackDataset(pack(tmp_path, sound()))):
        check = check_source(source)
        assert (check.findings, check.failed) == ([], False)
        assert (check.records, check.masks, check.pairs) == (4, 8, 4)


def break_image(root):
    path = root / "images/r 1.png"
    path.write_bytes(path.read_bytes()[:-20])


def resize_mask(root):
    Pillow.fromarray(np.ones((4, 4), np.uint8)).save(root / "masks/x/r 1.png")


def colour_mask(root):
    Pillow.fromarray(np.full((8, 8, 3), (1, 2, 3), np.uint8)).save(root / "masks/x/r 1.png")


def add_class(root):
    Pillow.fromarray(np.full((8, 8), 12, np.uint8)).save(root / "masks/x/r 1.png")


def remove_mask(root):
    (root / "masks/x/r 1.png").unlink()


def empty_mask(root):
    Pillow.fromarray(np.zeros((8, 8), np.uint8)).save(root / "masks/x/r 1.png")


def ignore_mask(root):
    Pillow.fromarray(np.full((8, 8), 255, np.uint8)).save(root / "gold/r 1.png")


def black_and_white(root):
    Pillow.fromarray(np.uint8(255 * (np.arange(64) > 9).reshape(8, 8))).save(root / "gold/r 1.png")


def same_masks(root):
    (root / "masks/y/r 1.png").write_bytes((root / "masks/x/r 1.png").read_bytes())


def differ_where_ignored(root):
    mask = np.array(Pillow.open(root / "masks/x/r 1.png"))
    mask[0, 0] = 255
    Pillow.fromarray(mask).save(root / "masks/y/r 1.png")


def copy_image(root):
    (root / "images/r 2.png").write_bytes((root / "images/r 1.png").read_bytes())


BROKEN = {
    break_image: ("unreadable", "images/r 1.png: the PNG is cut short"),
    resize_mask: ("size", "masks/x/r 1.png: Expected a mask of the image's size 8×8 (height × width) but got 4×4"),
    colour_mask: (
        "mask format",
        "masks/x/r 1.png: Expected a mask of class ids (8-bit grey, palette or 1-bit) but got",
    ),
    add_class: ("class", "masks/x/r 1.png: Expected class ids below 11 or 255 (ignore) but got 12"),
    remove_mask: ("unreadable", "masks/x/r 1.png: cannot be read (No such file or directory)"),
    empty_mask: ("empty mask", "mask 'x' has class 0 alone"),
    ignore_mask: ("empty mask", "mask 'gold' is ignore (255) all over"),
    black_and_white: ("empty mask", "mask 'gold' has only 0 and 255 (ignore); if 255 is the object"),
    same_masks: ("pair without difference", "'y' is preferred to 'x' but they show the same"),
    differ_where_ignored: ("pair without difference", "'y' is preferred to 'x' but they show the same"),
    copy_image: ("duplicate image", "the same image as 'r 1'"),
}


@pytest.mark.parametrize("damage", BROKEN, ids=lambda damage: damage.__name__)
def test_what_is_wrong_is_found_and_the_rest_is_read(tmp_path, damage):
    root = stored_folder(tmp_path)
    damage(root)
    check = check_source(FolderDataset(root))
    kind, message = BROKEN[damage]
    (finding,) = check.findings
    assert (finding.level, finding.kind, finding.id) == ("error", kind, "r 2" if damage is copy_image else "r 1")
    assert message in finding.message
    assert check.failed
    assert check.records == 4


def test_an_image_without_preference_is_said_and_may_be_wrong():
    records = [*sound(2), dataclasses.replace(sound(3)[2], pairs=())]
    assert found(Listed(records)) == [("info", "no preference", "r 2")]
    assert not check_source(Listed(records)).failed
    assert found(Listed(records), require_pairs=True) == [("error", "no preference", "r 2")]


def test_a_ranking_is_a_preference_and_its_masks_differ():
    (ranked,) = sound(1)
    ranked = dataclasses.replace(ranked, pairs=(), ranking=(1, 0))
    assert found(Listed([ranked]), require_pairs=True) == []
    same = dataclasses.replace(ranked, masks=ranked.masks[[0, 0]])
    assert found(Listed([same])) == [("error", "pair without difference", "r 0")]


def test_one_image_in_two_splits():
    first, second = sound(2)
    first = dataclasses.replace(first, split="train")
    second = dataclasses.replace(second, split="test", image=first.image)
    assert found(Listed([first, second])) == [("error", "image in two splits", "r 1")]


def test_one_group_in_two_splits_is_said_once_a_split():
    splits = ("train", "train", "val", "val", "test")
    records = [dataclasses.replace(r, group="g", split=s) for r, s in zip(sound(5), splits, strict=True)]
    check = check_source(Listed(records))
    assert [f.kind for f in check.findings] == ["group in two splits"] * 3
    assert check.findings[0].message == "group 'g' is in train (r 0) and in val (r 2)"


def test_an_id_twice():
    first, second = sound(2)
    assert found(Listed([first, dataclasses.replace(second, id="r 0")])) == [("error", "id twice", "r 0")]


def test_a_record_of_the_users_own_source_is_checked_too():
    (good,) = sound(1)
    bad = [
        dataclasses.replace(good, pairs=(Pair(0, 0),)),
        dataclasses.replace(good, id="../r", image=good.image + 1),
        dataclasses.replace(good, id="b", masks=good.masks.astype(np.int64)),
        dataclasses.replace(good, id="c", mask_names=("x", "x")),
        dataclasses.replace(good, id="d", ranking=(0, 5)),
        dataclasses.replace(good, id="e", split="dev"),
        dataclasses.replace(good, id="f", pairs=(Pair(0, 1, float("nan")),)),
        dataclasses.replace(good, id="g", image=good.image[..., 0]),
        dataclasses.replace(good, id="h", meta={"x": 1}),
        dataclasses.replace(good, id="i", gold=good.gold.astype(np.int32)),
        dataclasses.replace(good, id="j", gold=good.gold[:4]),
    ]
    kinds = [kind for _, kind, _ in found(Listed(bad))]
    expected = [
        "preference",
        "id",
        "size",
        "id",
        "preference",
        "manifest",
        "preference",
        "size",
        "manifest",
        "size",
        "size",
    ]
    assert kinds == expected


def test_an_allowed_kind_is_information(tmp_path):
    root = stored_folder(tmp_path)
    empty_mask(root)
    check = check_source(FolderDataset(root), allow=["empty mask"])
    assert check.counts() == {("info", "empty mask"): 1}
    assert not check.failed


def test_counts_come_with_errors_first(tmp_path):
    root = stored_folder(tmp_path)
    break_image(root)
    resize_mask(root)
    remove = dataclasses.replace(sound(1)[0], pairs=())
    assert list(check_source(Listed([remove, dataclasses.replace(remove, id="q")])).counts().items()) == [
        (("error", "duplicate image"), 1),
        (("info", "no preference"), 2),
    ]


def test_every_record_is_shown_with_its_findings():
    seen = []
    first, second = sound(2)
    second = dataclasses.replace(second, masks=second.masks[[0, 0]])
    check_source(Listed([first, second]), on_record=lambda k, r, f: seen.append((k, r.id, [x.kind for x in f])))
    assert seen == [(0, "r 0", []), (1, "r 1", ["pair without difference"])]

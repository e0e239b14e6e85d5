import json
import pickle

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from image_bytes import png
from stored import CLASSES, STORED, contents, draw, draw_many, folder, same, stored_records

from segdpo.data.formats.folder import FolderDataset, write_folder
from segdpo.data.images import encode_mask
from segdpo.data.record import Pair, RecordInfo
from segdpo.files import DataError

DATA = draw_many(6)


@pytest.mark.parametrize("manifest", ["jsonl", "csv"])
def test_what_was_written_is_read(tmp_path, manifest):
    write_folder(tmp_path / "f", DATA, CLASSES, manifest)
    source = FolderDataset(tmp_path / "f", channels=None)
    assert source.classes == CLASSES
    assert [same(*pair) for pair in zip(source, DATA, strict=True)] == [True] * 6
    assert source.describe(3) == RecordInfo("r3", "", "", 0, 3, True)
    assert source.describe(0) == RecordInfo("with space", "patient 1", "train", 2, 0, True)


def test_the_files_are_where_a_person_looks(tmp_path):
    root = folder(tmp_path, DATA[:2])
    assert {"images/with space.png", "masks/rater 0/with space.png", "gold/ünï/cödé 漢字.png"} <= contents(root).keys()
    assert (root / "masks/rater 2/with space.png").read_bytes() == encode_mask(DATA[0].masks[2])


def test_grey_images_become_rgb_unless_asked_otherwise(tmp_path):
    root = folder(tmp_path, DATA[1:2])
    assert np.array_equal(FolderDataset(root)[0].image, np.repeat(DATA[1].image, 3, axis=2))
    assert np.array_equal(FolderDataset(root, channels=1)[0].image, DATA[1].image)


def test_a_folder_made_by_hand(tmp_path):
    root = folder(tmp_path, DATA[:1])
    (root / "dataset.json").write_text('{"classes": ["background", "cell", "vessel"]}')
    (root / "manifest.jsonl").write_text(
        '{"id": "with space", "pairs": [{"chosen": "rater 2", "rejected": "rater 0"}]}'
    )
    record = FolderDataset(root)[0]
    assert record.mask_names == ("rater 0", "rater 1", "rater 2")
    assert record.pairs == (Pair(2, 0),)
    assert np.array_equal(record.masks, DATA[0].masks)
    assert np.array_equal(record.gold, DATA[0].gold)


def test_numbers_of_pairs_without_opening_an_image(tmp_path):
    root = folder(tmp_path, DATA)
    for path in root.rglob("*.png"):
        path.unlink()
    source = FolderDataset(root)
    assert [source.describe(k).pairs for k in range(6)] == [2, 2, 0, 0, 0, 2]


def test_a_folder_of_the_first_release_is_read(tmp_path):
    source = FolderDataset(STORED / "folder", channels=None)
    assert source.classes == CLASSES
    assert [same(*pair) for pair in zip(source, stored_records(), strict=True)] == [True] * 3


def test_copies_keep_the_images_file(tmp_path):
    from PIL import Image as Pillow

    root = folder(tmp_path, DATA[:1])
    path = root / "images/with space.png"
    Pillow.fromarray(DATA[0].image).save(path, compress_level=9)
    mine = path.read_bytes()
    write_folder(tmp_path / "copy", FolderDataset(root), CLASSES)
    assert (tmp_path / "copy/images/with space.png").read_bytes() == mine


def test_nothing_is_overwritten_and_nothing_half_is_left(tmp_path):
    root = folder(tmp_path, DATA[:1], sealed=True)
    before = contents(root)
    with pytest.raises(DataError, match="Expected nothing there"):
        write_folder(root, DATA, CLASSES)
    assert contents(root) == before
    wrong = draw(np.random.default_rng(0), pairs=(Pair(0, 0),))
    with pytest.raises(DataError, match="two different masks"):
        write_folder(tmp_path / "half", [DATA[0], wrong], CLASSES)
    assert not (tmp_path / "half").exists()
    write_folder(tmp_path / "half", DATA, CLASSES)
    assert len(FolderDataset(tmp_path / "half")) == 6


def test_an_id_twice_is_not_written(tmp_path):
    with pytest.raises(DataError, match="twice"):
        write_folder(tmp_path / "f", [DATA[0], DATA[0]], CLASSES)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "Expected JSON but got"),
        ("[]", "Expected a JSON object but got list"),
        ('{"classes": ["a", "b"], "version": 2}', "Expected version 1 but got 2"),
        ('{"classes": ["a"]}', "2 to 255 different class names"),
        ('{"classes": ["a", "a"]}', "2 to 255 different class names"),
        ('{"classes": "ab"}', 'a list "classes"'),
        ('{"classes": ["a", "b"], "clases": 1}', "clases"),
    ],
)
def test_a_bad_description_is_named(tmp_path, text, words):
    root = folder(tmp_path, DATA[:1])
    (root / "dataset.json").write_text(text)
    with pytest.raises(DataError) as caught:
        FolderDataset(root)
    assert str(root / "dataset.json") in str(caught.value)
    assert words in str(caught.value)


def test_an_edited_manifest_needs_its_checksum_removed(tmp_path):
    root = folder(tmp_path, DATA[:2], sealed=True)
    manifest = root / "manifest.jsonl"
    manifest.write_text(manifest.read_text().replace("0.1", "0.9"))
    with pytest.raises(DataError, match='"checksum"') as caught:
        FolderDataset(root)
    assert caught.value.kind == "damaged"
    values = json.loads((root / "dataset.json").read_text())
    del values["checksum"]
    (root / "dataset.json").write_text(json.dumps(values))
    assert FolderDataset(root)[0].pairs[0].weight == 0.9


def test_one_manifest(tmp_path):
    root = folder(tmp_path, DATA[:1])
    (root / "manifest.csv").write_text("id\n")
    with pytest.raises(DataError, match="got both"):
        FolderDataset(root)
    (root / "manifest.csv").unlink()
    (root / "manifest.jsonl").unlink()
    with pytest.raises(DataError, match="got neither"):
        FolderDataset(root)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)
@given(st.data())
def test_a_damaged_folder_gives_an_error_or_the_right_record(tmp_path, data):
    root = tmp_path / "fuzzed"
    if not root.exists():
        write_folder(root, DATA, CLASSES)
    path = root / data.draw(st.sampled_from(["manifest.jsonl", "dataset.json", "images/r5.png", "gold/r5.png"]))
    whole = path.read_bytes()
    if data.draw(st.booleans()):
        position = data.draw(st.integers(0, 8 * len(whole) - 1))
        damaged = bytearray(whole)
        damaged[position // 8] ^= 1 << position % 8
    else:
        damaged = whole[: data.draw(st.integers(0, len(whole) - 1))]
    try:
        path.write_bytes(bytes(damaged))
        source = FolderDataset(root, channels=None)
        assert source.classes == CLASSES
        assert len(source) == 6
        assert all(same(source[k], DATA[k]) for k in range(6))
    except DataError:
        pass
    finally:
        path.write_bytes(whole)


def test_a_preference_for_a_mask_that_is_not_there(tmp_path):
    root = folder(tmp_path, DATA[:1])
    (root / "manifest.jsonl").write_text('{"id": "with space", "pairs": [{"chosen": "rater 2", "rejected": "eve"}]}')
    with pytest.raises(DataError, match=r"masks/eve/with space\.png") as caught:
        FolderDataset(root)
    assert caught.value.kind == "preference"


def test_an_error_survives_the_way_from_a_worker():
    error = pickle.loads(pickle.dumps(DataError("m.png: bad", "class")))
    assert (type(error), str(error), error.kind) == (DataError, "m.png: bad", "class")


def test_deep_images_need_a_value_range(tmp_path):
    records = draw_many(1)
    write_folder(tmp_path / "x", records, CLASSES)
    (path,) = (tmp_path / "x/images").iterdir()
    deep = records[0].image.astype(np.uint16) * 100
    path.write_bytes(png(deep))
    with pytest.raises(DataError, match=r"uint16 .*value_range"):
        FolderDataset(tmp_path / "x")[0]
    source = FolderDataset(tmp_path / "x", None, (0, 25_500))
    assert np.array_equal(source[0].image, records[0].image)
    write_folder(tmp_path / "y", source, CLASSES)
    assert np.array_equal(FolderDataset(tmp_path / "y", None)[0].image, records[0].image)

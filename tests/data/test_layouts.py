"""Folders as people have them: each is read as it should be, or one question is asked whose answer works."""

import re
import shlex

import layouts
import numpy as np
import pytest
from layouts import CLASSES, COLOURS, IDS, NUMBERS, OBJECT, THREE, black_and_white, images, save
from PIL import Image as Pillow
from stored import contents

import segdpo.files
from segdpo.data.checking import check_source
from segdpo.data.guessing.guess import guess, plain_folder
from segdpo.data.sources import find_source
from segdpo.files import DataError


@pytest.mark.parametrize("build", layouts.KNOWN, ids=lambda build: build.__name__)
def test_a_layout_gives_its_records(tmp_path, build):
    expected = build(tmp_path)
    before = contents(tmp_path)
    found = guess(tmp_path)
    assert found.line.startswith(f"plain: {len(expected.ids)} images in ")
    assert [words for words in expected.says if words not in found.line] == []
    source = plain_folder(tmp_path)
    assert source.classes == expected.classes
    assert [source.describe(k).id for k in range(len(source))] == list(expected.ids)
    assert (source.extra_files, source.other_files) == ((), ())
    for k, name in enumerate(expected.ids):
        compare(source[k], source.describe(k), expected, name)
    assert contents(tmp_path) == before


def compare(record, info, expected, name):
    np.testing.assert_array_equal(record.image, layouts.picture(name))
    assert (record.gold is not None) == info.gold == (name in expected.gold)
    if info.gold:
        np.testing.assert_array_equal(record.gold, expected.gold[name])
    masks = {who: of_all[name] for who, of_all in expected.masks.items() if name in of_all}
    assert sorted(record.mask_names) == sorted(masks)
    for who, mask in zip(record.mask_names, record.masks, strict=True):
        np.testing.assert_array_equal(mask, masks[who])
    assert info.split == record.split == expected.splits.get(name, "")
    assert info.group == record.group == expected.groups.get(name, "")


@pytest.mark.parametrize("build", layouts.KNOWN, ids=lambda build: build.__name__)
def test_nothing_is_guessed_once_all_options_are_set(tmp_path, build, monkeypatch):
    build(tmp_path)
    found = guess(tmp_path)
    monkeypatch.setattr("segdpo.data.guessing.guess.find_layout", None)
    again = guess(tmp_path, found.plain)
    assert (again.line, dict(again.options)) == ("", dict(found.options))


# Questions: what is built, the numbers and names that the message has, and the gold masks of the first answer.


def one_number(root):
    images(root, "images/*.png")
    for name in IDS:
        save(root / f"masks/{name}.png", OBJECT[name] * np.uint8(128))
    return OBJECT


def white_alone_and_one_alone(root):
    images(root, "images/*.png")
    for name in IDS:
        save(root / f"masks/{name}.png", OBJECT[name] * np.uint8(255 if name == "c3" else 1))
    return OBJECT | {"c3": OBJECT["c3"] * np.uint8(255)}


def gaps(root):
    images(root, "images/*.png")
    for name in IDS:
        save(root / f"masks/{name}.png", CLASSES[name] * np.uint8(100))
    return CLASSES


def one_number_and_white(root):
    images(root, "images/*.png")
    for name in IDS:
        save(root / f"masks/{name}.png", np.array([0, 127, 255], np.uint8)[CLASSES[name]])
    return CLASSES


def numbers_of_objects(root):
    images(root, "images/*.png")
    for name in IDS:
        save(root / f"masks/{name}.png", NUMBERS[name].astype(np.uint8))
    return {name: np.uint8(NUMBERS[name] > 0) for name in IDS}


def colours_without_names(root):
    images(root, "images/*.png")
    for name in IDS:
        save(root / f"masks/{name}.png", COLOURS[CLASSES[name]])
    # In the order of the colours: black, blue (class 2), red (class 1).
    return {name: np.array([0, 2, 1], np.uint8)[CLASSES[name]] for name in IDS}


def masks_beside_those_of_anna(root):
    images(root, "images/*.png")
    for name in IDS:
        save(root / f"masks/{name}.png", OBJECT[name])
        save(root / f"masks_anna/{name}.png", OBJECT[name])
    return OBJECT


def masks_and_labels(root):
    images(root, "images/*.png")
    for name in IDS:
        save(root / f"labels/{name}.png", OBJECT[name])
        save(root / f"masks/{name}.png", OBJECT[name])
    return OBJECT


def masks_beside_gold(root):
    masks_and_labels(root)
    (root / "labels").rename(root / "gold")
    return OBJECT


def field_of_view(root):
    """As the vessels of DRIVE: mask/ is the field of view, and the folder of the gold masks has an unknown name."""
    images(root, "images/*_training.tif")
    for name in IDS:
        save(root / f"1st_manual/{name}_manual1.gif", OBJECT[name] * np.uint8(255))
        save(root / f"mask/{name}_training_mask.gif", np.full((8, 12), 255, np.uint8))
    return OBJECT


def two_folders_of_images(root):
    images(root, "day1/*.png")
    images(root, "day2/x*.png")
    return {}


def png_beside_tif(root):
    images(root, "*.png")
    for name in IDS:
        save(root / f"{name}.tif", OBJECT[name])
    return {}


def black_masks(root):
    images(root, "images/*.png")
    for name in IDS:
        save(root / f"masks/{name}.png", OBJECT[name] * np.uint8(0))
    return {name: OBJECT[name] * np.uint8(0) for name in IDS}


def jpeg_masks(root):
    images(root, "images/*.png")
    for name in IDS:
        save(root / f"masks/{name}.jpg", OBJECT[name] * np.uint8(255), quality=95, subsampling=0)
    return OBJECT


def soft_gold(root):
    images(root, "images/*.png")
    for name in IDS:
        save(root / f"masks/{name}.npy", np.float32(0.1 + 0.7 * OBJECT[name]))
    return OBJECT


def sixteen_bit_images(root):
    layouts.deep_images(root)
    return OBJECT


def white_with_three_classes(root):
    black_and_white(root)
    (root / "labelmap.txt").write_text("background\ncell\nnucleus\n")
    return {name: OBJECT[name] for name in IDS[:3]}


def classes_without_background(root):
    images(root, "images/*.png")
    for name in IDS:
        save(root / f"masks/{name}.png", OBJECT[name])
    (root / "classes.txt").write_text("cell\nnucleus\n")
    return OBJECT


def two_lists_of_classes(root):
    images(root, "images/*.png")
    for name in IDS:
        save(root / f"masks/{name}.png", CLASSES[name])
    (root / "classes.txt").write_text("\n".join(THREE))
    (root / "labels.txt").write_text("background\nship\nharbour\n")
    return {}


def negative_numbers(root):
    images(root, "images/*.png")
    for name in IDS:
        save(root / f"masks/{name}.npy", np.int16(OBJECT[name]) - np.int16(layouts.rows == 7))
    return {name: np.where(layouts.rows == 7, np.where(OBJECT[name] > 0, 0, 255), OBJECT[name]) for name in IDS}


def other_palette(root):
    """The same colours under other indices in one of the masks."""
    images(root, "images/*.png")
    (root / "masks").mkdir()
    for name in IDS:
        order = [0, 2, 1] if name == "c3" else [0, 1, 2]
        mask = Pillow.fromarray(np.array(order, np.uint8)[CLASSES[name]], "L")
        mask.putpalette(COLOURS[order].tobytes())
        mask.save(root / f"masks/{name}.png")
    return {}


def black_last(root):
    images(root, "images/*.png")
    (root / "masks").mkdir()
    for name in IDS:
        mask = Pillow.fromarray(np.array([1, 0], np.uint8)[OBJECT[name]], "L")
        mask.putpalette(bytes([200, 30, 30, 0, 0, 0]))
        mask.save(root / f"masks/{name}.png")
    return {}


QUESTIONS = {
    one_number: ["masks: ", "128", "data.mask_format="],
    white_alone_and_one_alone: ["255", "c3.png", "data.mask_format="],
    gaps: ["100, 200", "data.mask_format="],
    one_number_and_white: ["0, 127, 255", "{0:0,127:1,255:2}", "{0:0,127:1,255:255}", "{0:0,127:255,255:1}"],
    numbers_of_objects: ["1 … 7", "data.mask_format={kind:instances}"],
    colours_without_names: ["3 colours", "[0,0,0]", "[30,30,200]", "[200,30,30]"],
    masks_beside_those_of_anna: ["masks (of 6 images)", "anna", "data.gold=masks", "data.gold=null"],
    masks_and_labels: ["labels (of 6 images)", "masks (of 6 images)", "data.gold="],
    masks_beside_gold: ["gold", "data.masks={masks:masks}", "data.masks={}"],
    field_of_view: ["1st_manual/*_manual1", "mask/*_training_mask", "data.gold="],
    two_folders_of_images: ["day1", "day2", "data.images=day1"],
    png_beside_tif: [".png", ".tif", "data.images=*.png", "data.gold=*.tif"],
    black_masks: ["all 6", "data.mask_format="],
    jpeg_masks: ["a1.jpg", "JPEG", "data.mask_format={kind:probabilities}"],
    soft_gold: ["probabilities", "data.mask_format={kind:probabilities}"],
    sixteen_bit_images: ["8 bits", "data.value_range=[3000,18000]"],
    white_with_three_classes: ["0 and 255", "background, cell, nucleus", "data.mask_format="],
    classes_without_background: ["'cell'", "classes.txt", "data.classes=[background,cell,nucleus]"],
    two_lists_of_classes: ["classes.txt: background, cell, nucleus", "labels.txt: background, ship, harbour"],
    negative_numbers: ["-1", "data.mask_format="],
    other_palette: ["palettes", "[30,30,200]", "{0:0,1:1,2:2}"],
    black_last: ["palettes", "[200,30,30]", "{0:0,1:1}"],
}


@pytest.mark.parametrize("build", QUESTIONS, ids=lambda build: build.__name__)
def test_a_question_names_the_option_that_answers_it(tmp_path, build):
    gold = build(tmp_path)
    before = contents(tmp_path)
    with pytest.raises(DataError) as raised:
        plain_folder(tmp_path)
    message = str(raised.value)
    assert [fact for fact in QUESTIONS[build] if fact not in message] == []
    assert contents(tmp_path) == before
    answer = options_in(message)[: 2 if build is png_beside_tif else 1]
    if "…" in "".join(answer):  # the user's own words are asked for
        return
    source = find_source(tmp_path, answer).source
    for k, name in enumerate(IDS):
        if name in gold:
            np.testing.assert_array_equal(source[k].gold, gold[name])


def test_many_objects_are_asked_for_in_a_short_question(tmp_path):
    """Fifty numbers would make an option of a line per number; their names are asked for instead."""
    images(tmp_path, "images/*.png")
    for k, name in enumerate(IDS):
        mask = np.zeros(CLASSES[name].shape, np.uint8)
        mask.flat[: 40 + k] = np.arange(1, 41 + k)
        save(tmp_path / f"masks/{name}.png", mask)
    with pytest.raises(DataError) as raised:
        plain_folder(tmp_path)
    message = str(raised.value)
    assert len(message.partition("Expected")[2]) < 300
    assert "data.classes" in message
    assert options_in(message) == ["data.mask_format={kind:instances}"]


def options_in(message):
    """The options that a message names, as a shell reads them."""
    words = re.findall(r"'data\.[^']+'|data\.\w+=[^ ,;]+", message)
    return [shlex.split(word)[0].rstrip(".") for word in words]


def test_answers_are_kept_and_the_rest_is_guessed(tmp_path):
    masks_beside_those_of_anna(tmp_path)
    source = plain_folder(tmp_path, gold=None)
    assert sorted(source[0].mask_names) == ["anna", "masks"]
    assert source[0].gold is None
    source = plain_folder(tmp_path, gold="masks", classes=["ground", "tree"])
    assert (source[0].mask_names, source.classes) == (("anna",), ("ground", "tree"))


def test_gold_of_no_image_of_one_and_of_all(tmp_path):
    for count in (0, 1, 6):
        root = tmp_path / str(count)
        images(root, "images/*.png")
        for name in IDS[:count]:
            save(root / f"masks/{name}.png", OBJECT[name])
        source = plain_folder(root)
        assert [source.describe(k).gold for k in range(6)] == [True] * count + [False] * (6 - count)
        assert ("no gold" if not count else f"gold of {count} in masks/") in guess(root).line


def test_a_number_that_no_sampled_mask_has_is_an_error_when_it_is_read(tmp_path, monkeypatch):
    """A sample of 4 of 6 masks does not show what the others hold: never a silent class, nor silent ignore."""
    monkeypatch.setattr("segdpo.data.guessing.guess.SAMPLE", 4)
    for number, white in ((1, 255), (255, 1)):
        root = tmp_path / str(number)
        images(root, "images/*.png")
        for name in IDS:
            mask = OBJECT[name] * np.uint8(white)
            if name == "c3":
                mask[0, 0] = number
            save(root / f"masks/{name}.png", mask)
        source = plain_folder(root)
        with pytest.raises(DataError, match=rf"c3\.png: .*1 pixels have {number}; ") as raised:
            source[2]
        assert raised.value.kind == "class"


# What is wrong in a folder is named by the check, and everything else is read.


def smaller(root):
    save(root / "masks/b2.png", np.zeros((4, 4), np.uint8))


def of_no_image(root):
    save(root / "masks/zz.png", OBJECT["a1"])


def no_picture(root):
    (root / "images/b2.png").write_text("this is no image")


def other_file(root):
    (root / "images/notes.md").write_text("taken on a Monday")


def unknown_colour(root):
    save(root / "masks/b2.png", np.array([[0, 0, 0], [9, 9, 200]], np.uint8)[OBJECT["b2"]])


def cut_short(root):
    path = root / "masks/b2.png"
    path.write_bytes(path.read_bytes()[:-20])


WRONG = {
    smaller: ("error", "size", "b2", ["masks/b2.png", "8×12", "4×4"]),
    of_no_image: ("error", "mask without image", "masks/zz.png", []),
    no_picture: ("error", "unreadable", "b2", ["images/b2.png"]),
    other_file: ("info", "other file", "images/notes.md", []),
    cut_short: ("error", "unreadable", "b2", ["masks/b2.png"]),
}


@pytest.mark.parametrize("spoil", WRONG, ids=lambda spoil: spoil.__name__)
def test_what_is_wrong_is_named(tmp_path, spoil):
    black_and_white(tmp_path)
    spoil(tmp_path)
    check = check_source(plain_folder(tmp_path), allow=["no preference"])
    (finding,) = [finding for finding in check.findings if finding.kind != "no preference"]
    level, kind, name, facts = WRONG[spoil]
    assert (finding.level, finding.kind) == (level, kind)
    assert name in finding.id
    assert [fact for fact in facts if fact not in finding.message] == []
    assert check.records == 6


def test_a_colour_that_no_class_has(tmp_path):
    layouts.cvat(tmp_path)
    unknown = np.array([[0, 0, 0], [9, 9, 200]], np.uint8)[OBJECT["a1"]]
    save(tmp_path / "SegmentationClass/c3.png", unknown)
    with pytest.raises(DataError, match=r"labelmap\.txt but .*c3\.png has \[9, 9, 200\]"):
        plain_folder(tmp_path)


def test_two_classes_of_one_name(tmp_path):
    layouts.cvat(tmp_path)
    (tmp_path / "labelmap.txt").write_text("background:0,0,0::\ncell:200,30,30::\ncell:30,30,200::\n")
    with pytest.raises(DataError, match=r"labelmap\.txt: .*'cell', 'cell'"):
        plain_folder(tmp_path)
    with pytest.raises(DataError, match=r"different class names .*'cell', 'cell'"):
        plain_folder(tmp_path, classes=["cell", "cell"])


def test_masks_whose_names_are_of_no_image(tmp_path):
    images(tmp_path, "images/*.png")
    save(tmp_path / "masks/other.png", OBJECT["a1"])
    with pytest.raises(DataError, match=r"masks: .*'other'.*'a1'.*data\.gold=masks/\*_END"):
        plain_folder(tmp_path)


def test_folders_of_masks_that_fit_no_image_are_said(tmp_path):
    black_and_white(tmp_path)
    save(tmp_path / "masks_anna/q1.png", OBJECT["a1"])
    assert guess(tmp_path).line.endswith("no file has the name of an image in masks_anna/")
    # They must not become images themselves.
    save(tmp_path / "two/train/a.png", OBJECT["a1"])
    save(tmp_path / "two/test/b.png", OBJECT["a1"])
    save(tmp_path / "two/train/masks/q.png", OBJECT["a1"])
    with pytest.raises(DataError, match=r"train/masks.*data\.(images|gold)="):
        guess(tmp_path / "two")


def test_masks_alone_no_images_and_no_folder(tmp_path):
    save(tmp_path / "masks/a.png", OBJECT["a1"])
    with pytest.raises(DataError, match=r"all 1 pictures are in folders of masks \(masks\).*data\.images=FOLDER"):
        plain_folder(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"Expected images \(\.png.*found none among 0 files"):
        plain_folder(tmp_path / "empty")
    with pytest.raises(DataError, match="nowhere: no such folder"):
        plain_folder(tmp_path / "nowhere")


def test_an_option_of_another_name(tmp_path):
    black_and_white(tmp_path)
    with pytest.raises(DataError, match=r"data=plain \(classes, .* but got golden"):
        find_source(tmp_path, ["golden=masks"])


def test_other_folders_of_pictures_are_no_masks(tmp_path):
    """Photographs under the images' names, such as small copies, have too many numbers to be masks."""
    black_and_white(tmp_path)
    noise = np.random.default_rng(0).integers(0, 256, (8, 12, 3), np.uint8)
    for name in IDS:
        save(tmp_path / f"thumbnails/{name}.png", noise)
    assert guess(tmp_path).options["masks"] == {}


def test_images_of_a_large_folder_are_not_opened(tmp_path, monkeypatch):
    """The folder is listed, four images and 50 masks are looked at, whatever their number."""
    count = 1600
    for folder, every in (("images", 1), ("masks", 100)):
        (tmp_path / folder).mkdir()
        save(tmp_path / folder / "00000.png", OBJECT["a1"])
        data = (tmp_path / folder / "00000.png").read_bytes()
        for k in range(0, count, every):
            (tmp_path / folder / f"{k:05d}.png").write_bytes(data)
    opened = []
    original = segdpo.files.open_file
    monkeypatch.setattr("segdpo.files.open_file", lambda path: opened.append(path) or original(path))
    source = plain_folder(tmp_path)
    infos = [source.describe(k) for k in range(count)]
    assert sum(info.gold for info in infos) == 16
    assert len(opened) <= 4 + 16


def test_links_to_folders_are_followed(tmp_path):
    black_and_white(tmp_path / "disk")
    (tmp_path / "mine").mkdir()
    for name in ("images", "masks"):
        (tmp_path / "mine" / name).symlink_to(tmp_path / "disk" / name)
    assert "gold of 3 in masks/" in guess(tmp_path / "mine").line


def test_upper_case_and_hidden_files(tmp_path):
    black_and_white(tmp_path)
    for path in list((tmp_path / "images").iterdir()):
        path.rename(path.with_suffix(".PNG"))
    (tmp_path / "images/.DS_Store").write_bytes(b"x")
    (tmp_path / "images/._a1.png").write_bytes(b"x")
    source = plain_folder(tmp_path)
    assert len(source) == 6
    assert source.other_files == ()


def test_white_may_have_any_index(tmp_path):
    images(tmp_path, "images/*.png")
    (tmp_path / "masks").mkdir()
    for k, name in enumerate(IDS):
        swapped = k % 2
        mask = Pillow.fromarray(OBJECT[name] ^ np.uint8(swapped), "L")
        mask.putpalette(bytes([255, 255, 255, 0, 0, 0] if swapped else [0, 0, 0, 255, 255, 255]))
        mask.save(tmp_path / f"masks/{name}.png")
    source = plain_folder(tmp_path)
    for k, name in enumerate(IDS):
        np.testing.assert_array_equal(source[k].gold, OBJECT[name])


def test_colours_that_are_transparent(tmp_path):
    images(tmp_path, "images/*.png")
    for name in IDS:
        pixels = np.zeros((8, 12, 4), np.uint8)
        pixels[OBJECT[name] > 0] = (255, 0, 0, 255)
        save(tmp_path / f"masks/{name}.png", pixels)
    source = plain_folder(tmp_path)
    np.testing.assert_array_equal(source[2].gold, OBJECT["c3"])
    assert Pillow.open(tmp_path / "masks/a1.png").mode == "RGBA"

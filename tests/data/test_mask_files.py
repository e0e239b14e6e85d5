"""Masks of every kind of file, against arrays worked out by hand."""

import io

import numpy as np
import pytest
from image_bytes import by_opencv, dumped, jpeg, npy, npz, png, tiff, tiff_by_hand
from PIL import Image as Pillow

from segdpo.data.mask_files.decode import MaskFormat, decode_levels, decode_mask, decode_objects
from segdpo.data.mask_files.facts import describe_mask
from segdpo.files import DataError

CLASSES = ("background", "cell", "vessel")
IDS = np.array([[0, 1, 2, 255], [2, 2, 0, 1], [0, 0, 1, 255]], np.uint8)
SIZE = IDS.shape
COLORS = {"background": [0, 0, 0], "cell": [250, 50, 83], "vessel": [50, 250, 83], "ignore": [224, 224, 192]}
RGB = np.array([*COLORS.values(), *[[9, 9, 9]] * 252], np.uint8)[np.where(IDS == 255, 3, IDS)]
BY_COLOR = MaskFormat("colors", colors=COLORS)


def decode(data, **options):
    return decode_mask(data, "m.png", MaskFormat(**options), SIZE, CLASSES)


def palette(ids, colours):
    image = Pillow.fromarray(ids, "P")
    image.putpalette([part for colour in colours for part in colour])
    return image


STORED = {
    "grey": png(IDS),
    "grey as RGB": png(np.stack([IDS] * 3, -1)),
    "grey as RGBA": png(np.dstack([IDS, IDS, IDS, np.full_like(IDS, 255)])),
    "16 bits": png(IDS.astype(np.uint16)),
    "TIFF": tiff(IDS),
    "TIFF of 16 bits": by_opencv(IDS.astype(np.uint16), ".tif", 5),
    "integers": npy(IDS.astype(np.int64)),
    "whole floats": npy(IDS.astype(np.float32)),
    "one plane": npy(IDS[None]),
    "one channel": npy(IDS[..., None]),
    "npz": npz(mask=IDS),
}


@pytest.mark.parametrize("kind", STORED)
def test_class_ids_are_the_stored_numbers(kind):
    assert np.array_equal(decode(STORED[kind]), IDS)


def test_numbers_are_mapped():
    assert np.array_equal(decode(png((IDS > 0) * np.uint8(255)), values={255: 1}), IDS > 0)
    table = {7: 0, 300: 1, -1: 2, 9000: 255}
    stored = np.vectorize({0: 7, 1: 300, 2: -1, 255: 9000}.get)(IDS)
    assert np.array_equal(decode(npy(stored), values=table), IDS)
    assert np.array_equal(decode(npy(IDS == 1)), IDS == 1)


def test_numbers_may_have_to_be_listed():
    listed = {"values": {0: 0, 1: 1, 2: 2, 255: 255}, "only_values": True}
    for data in (png(IDS), npy(IDS.astype(np.int32))):
        assert np.array_equal(decode(data, **listed), IDS)
    del listed["values"][255], listed["values"][2]
    with pytest.raises(DataError, match=r"^m.png: Expected 0, 1, .*5 pixels have 2, 255;"):
        decode(data, **listed)


def test_a_tiff_whose_white_is_zero_keeps_its_numbers():
    inside = IDS == 1
    tags = {256: 4, 257: 3, 259: 1, 262: 0, 277: 1, None: 273}
    for bits, stored in ((1, np.packbits(inside, 1)), (8, inside * np.uint8(255))):
        data = tiff_by_hand({**tags, 258: bits}, stored.tobytes())
        assert np.array_equal(decode(data, values={255: 1}), inside)
        assert describe_mask(data, "x").white_is_zero
        # Pillow shows them inverted.
        assert np.array_equal(np.array(Pillow.open(io.BytesIO(data))) > 0, ~inside)


def test_colours_become_classes():
    for data in (png(RGB), png(palette(np.where(IDS == 255, 3, IDS).astype(np.uint8), COLORS.values())), npy(RGB)):
        assert np.array_equal(decode_mask(data, "m.png", BY_COLOR, SIZE, CLASSES), IDS)
    assert np.array_equal(decode_mask(png(np.dstack([RGB, np.full(SIZE, 255, np.uint8)])), "m.png", BY_COLOR), IDS)
    # Where alpha tells them apart, it has to be given.
    opaque = {name: [*colour, 255] for name, colour in COLORS.items()}
    assert np.array_equal(decode_mask(png(RGB), "m.png", MaskFormat("colors", colors=opaque), SIZE, CLASSES), IDS)
    clear = np.dstack([RGB, np.where(IDS == 0, 0, 255).astype(np.uint8)])
    with pytest.raises(DataError, match=r"alpha"):
        decode_mask(png(clear), "m.png", BY_COLOR, SIZE, CLASSES)
    four = {name: [*colour, 0 if name == "background" else 255] for name, colour in COLORS.items()}
    assert np.array_equal(decode_mask(png(clear), "m.png", MaskFormat("colors", colors=four), SIZE, CLASSES), IDS)


def test_unknown_colours_are_counted():
    wrong = RGB.copy()
    wrong[0, 0], wrong[1, :2], wrong[2, 0] = [1, 2, 3], [3, 2, 1], [0, 0, 1]
    with pytest.raises(DataError, match=r"^m.png: .*4 pixels have 3 other colours, 2 of them \[3, 2, 1\]") as caught:
        decode_mask(png(wrong), "m.png", BY_COLOR, SIZE, CLASSES)
    assert caught.value.kind == "class"
    with pytest.raises(DataError, match="'tumour'"):
        decode_mask(png(RGB), "m.png", MaskFormat("colors", colors={"tumour": [0, 0, 0]}), SIZE, CLASSES)
    with pytest.raises(DataError, match="JPEG"):
        decode_mask(jpeg(RGB), "m.jpg", BY_COLOR, SIZE, CLASSES)


NUMBERS = np.array([[0, 7, 7, 0], [300, 300, 0, 9], [0, 0, 9, 65535]], np.uint16)


def test_numbers_of_objects_become_foreground_or_objects():
    numbered = MaskFormat("instances", values={65535: 255}, foreground=2)
    expected = np.where(NUMBERS > 0, 2, 0)
    expected[2, 3] = 255
    for data in (png(NUMBERS), tiff(NUMBERS), npy(NUMBERS.astype(np.int32))):
        assert np.array_equal(decode_mask(data, "x", numbered, SIZE, CLASSES), expected)
        found = dict(decode_objects(data, "x", numbered, SIZE, CLASSES))
        assert list(found) == [7, 9, 300]
        for number, mask in found.items():
            assert mask.dtype == np.uint8
            assert np.array_equal(mask, 2 * (number == NUMBERS))


def test_colours_number_objects():
    colours = np.stack([NUMBERS % 256, NUMBERS // 256, np.zeros_like(NUMBERS)], -1).astype(np.uint8)
    found = dict(decode_objects(png(colours), "x", MaskFormat("instances")))
    assert list(found) == [7, 9, 300, 65535]
    assert np.array_equal(found[300], NUMBERS == 300)
    assert np.array_equal(decode_mask(png(colours), "x", MaskFormat("instances")), NUMBERS > 0)


CHANCES = np.array([[0, 0.1, 0.2, 0.35], [0.4, 0.5, 0.6, 0.75], [0.8, 0.9, 1, 0.59]])


def test_probabilities_of_the_foreground():
    for data in (npy(CHANCES), npz(p=CHANCES.astype(np.float32)), npy(CHANCES.astype(np.float16)), npy(CHANCES[None])):
        assert np.array_equal(decode(data, kind="probabilities", foreground=2), 2 * (CHANCES >= 0.5))
        assert np.array_equal(decode(data, kind="probabilities", threshold=0.7), CHANCES >= 0.7)
    for most, dtype in ((255, np.uint8), (65535, np.uint16)):
        stored = np.rint(CHANCES * most).astype(dtype)
        assert np.array_equal(decode(png(stored), kind="probabilities"), stored / most >= 0.5)
    # JPEG errs by a few levels of 255, which no threshold in the middle notices.
    drawn = np.kron(IDS == 1, np.full((8, 8), 255)).astype(np.uint8)
    assert np.array_equal(decode_mask(jpeg(drawn), "x", MaskFormat("probabilities")), drawn > 0)


def test_levels_are_nested_candidates():
    found = decode_levels(npy(CHANCES), "x", MaskFormat("probabilities"), SIZE, CLASSES)
    assert found.names == ("level-0.2", "level-0.4", "level-0.6", "level-0.8")
    assert found.masks.dtype == np.uint8
    for mask, level in zip(found.masks, (0.2, 0.4, 0.6, 0.8), strict=True):
        # As the file's numbers in float32 have it.
        assert np.array_equal(mask, CHANCES.astype(np.float32) >= np.float32(level))
    found = decode_levels(npy(CHANCES), "x", MaskFormat("probabilities", levels=[0.05, 0.95]))
    assert found.masks.sum((1, 2)).tolist() == [11, 1]


def test_probabilities_of_several_classes():
    rng = np.random.default_rng(0)
    chances = rng.dirichlet([1, 1, 1], SIZE).astype(np.float32)  # [H, W, C]
    for data in (npy(chances), npy(np.moveaxis(chances, 2, 0)), npz(probabilities=np.moveaxis(chances, 2, 0)[:, None])):
        assert np.array_equal(decode(data, kind="probabilities"), chances.argmax(2))
        low, high = decode_levels(data, "x", MaskFormat("probabilities", levels=(0.3, 0.7)), SIZE, CLASSES).masks
        best = 1 + chances[..., 1:].argmax(2)
        assert np.array_equal(low, np.where(1 - chances[..., 0] >= 0.3, best, 0))
        assert np.array_equal(high, np.where(1 - chances[..., 0] >= 0.7, best, 0))
        assert (low[high > 0] == high[high > 0]).all()
    with pytest.raises(DataError, match=r"3 classes.*\[3, 4, 2\]"):
        decode(npy(chances[..., :2]), kind="probabilities")


@pytest.mark.parametrize(
    ("data", "options", "said"),
    [
        (png(IDS[:2]), {}, r"3×4 .*2×4"),
        (png(IDS + np.uint8(3)), {}, r"below 3 .*3, 4, 5"),
        (png(RGB), {}, r"class ids .*mode RGB .*colors"),
        (png(np.dstack([IDS] * 4)), {}, "mode RGBA"),  # alpha that is not opaque
        (png(NUMBERS), {}, r"uint16 with 300, 65535 \(2 such numbers\).*values.*instances"),
        (npy(-IDS.astype(np.int16)), {}, r"int16 with -255, -2, -1"),
        (npy(CHANCES), {}, r"float64 such as 0.1; set kind=probabilities"),
        (npy(np.full(SIZE, np.nan)), {}, "whole numbers"),
        (jpeg(IDS), {}, "JPEG"),
        (tiff(IDS, IDS), {}, "one slice a file"),
        (b"no image", {}, "cannot be decoded"),
        (npy(CHANCES * 100), {"kind": "probabilities"}, "0 to 100"),
        (npy(CHANCES - 0.5), {"kind": "probabilities"}, "-0.5 to 0.5.*sigmoid"),
        (npy(np.full(SIZE, np.nan)), {"kind": "probabilities"}, "nan to nan"),
        (png(RGB), {"kind": "probabilities"}, "grey probabilities .*RGB"),
        (npy(-IDS.astype(np.int16)), {"kind": "instances"}, "from 0 on .*-255"),
        (npy(CHANCES), {"kind": "instances"}, "whole numbers"),
        (npy(np.array([[{}]])), {}, "bytes for an array of object"),
        (npz(a=IDS, b=IDS), {}, "one array but got 2: a, b"),
    ],
)
def test_what_is_wrong_is_named(data, options, said):
    with pytest.raises(DataError, match=rf"^m.png: .*{said}"):
        decode(data, **options)


def test_a_bomb_in_an_npz_is_refused():
    # Where the archive's index says how large the array is.
    honest, size = npz(a=np.zeros((1000, 1000), np.uint8)), (1_000_128).to_bytes(4, "little")
    assert len(honest) < 2000
    with pytest.raises(DataError, match="its arrays take more than 715827880 bytes"):
        decode(honest.replace(size, (2**31).to_bytes(4, "little")))
    # No more is unpacked than promised.
    with pytest.raises(DataError, match="damaged"):
        decode(honest.replace(size, (256).to_bytes(4, "little")))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"kind": "colours"}, "ids, colors, .*'colours'"),
        ({"kind": "colors"}, "different colour"),
        ({"kind": "colors", "colors": {"a": [0, 0, 0], "b": [0, 0, 0]}}, "different colour"),
        ({"colors": {"a": [0, 0, 256]}}, "0 to 255"),
        ({"colors": {"a": [0, 0, 1], "b": [0, 0, 0, 1]}}, "red, green, blue"),
        ({"values": {1: 256}}, "0 to 255"),
        ({"levels": [0.5, 0.4]}, "ascending"),
        ({"levels": [0.5, 1.0]}, "between 0 and 1"),
        ({"threshold": 0.0}, "between 0 and 1"),
    ],
)
def test_formats_are_checked(options, said):
    with pytest.raises(DataError, match=said):
        MaskFormat(**options)


def test_only_files_with_objects_have_objects():
    with pytest.raises(DataError, match="kind=ids"):
        list(decode_objects(png(IDS), "x", MaskFormat()))


def test_facts_say_what_a_file_holds():
    facts = describe_mask(png(IDS), "x")
    assert (facts.mode, facts.dtype, facts.shape, facts.channels) == ("L", "uint8", (3, 4), 1)
    assert facts.values == {0: 4, 1: 3, 2: 3, 255: 2}
    assert (facts.low, facts.high, facts.colors, facts.lossy, facts.whole) == (0, 255, None, False, True)
    colours = {(0, 0, 0): 4, (250, 50, 83): 3, (50, 250, 83): 3, (224, 224, 192): 2}
    facts = describe_mask(png(RGB), "x")
    assert (facts.mode, facts.grey, facts.values, facts.colors) == ("RGB", False, None, colours)
    indices = np.where(IDS == 255, 3, IDS).astype(np.uint8)
    facts = describe_mask(png(palette(indices, COLORS.values())), "x")
    assert (facts.mode, facts.values, facts.colors) == ("P", {0: 4, 1: 3, 2: 3, 3: 2}, colours)
    facts = describe_mask(png(np.stack([IDS] * 3, -1)), "x")
    assert (facts.grey, facts.values) == (True, {0: 4, 1: 3, 2: 3, 255: 2})
    facts = describe_mask(png(IDS > 0), "x")
    assert (facts.mode, facts.values) == ("1", {0: 4, 1: 8})
    facts = describe_mask(png(NUMBERS), "x")
    assert (facts.mode, facts.dtype, facts.high, facts.values[300]) == ("uint16", "uint16", 65535, 2)
    facts = describe_mask(npy(CHANCES), "x")
    assert (facts.dtype, facts.low, facts.high, facts.whole) == ("float64", 0, 1, False)
    assert describe_mask(npy(IDS.astype(np.float32)), "x").whole
    assert describe_mask(npy(np.zeros((2, 3, 4), np.float32)), "x").shape == (2, 3, 4)
    assert describe_mask(jpeg(RGB), "x").lossy
    assert describe_mask(npy(RGB), "x").colors == colours
    assert describe_mask(png(np.random.default_rng(0).integers(0, 256, (30, 30, 3), np.uint8)), "x").colors is None
    many = describe_mask(png(np.arange(400, dtype=np.uint16)[None]), "x")
    assert (many.values, many.low, many.high) == (None, 0, 399)
    with pytest.raises(DataError, match=r"^x: "):
        describe_mask(b"", "x")


SQUARE = [[0, 0], [0.5, 0], [0.5, 0.5], [0, 0.5]]


def text(*lines):
    return "\n".join(" ".join(map(str, line)) for line in lines).encode()


def flat(points):
    return [part for point in points for part in point]


def test_yolo_polygons_are_drawn_in_the_image():
    read = MaskFormat("yolo")
    data = text([1, *flat(SQUARE)])
    mask = decode_mask(data, "a.txt", read, (4, 8), CLASSES)
    expected = np.zeros((4, 8), np.uint8)
    expected[:2, :4] = 2  # class 0 is what no polygon covers
    assert np.array_equal(mask, expected)
    # The smaller lies on top, in whatever order; of equally large ones the later.
    small = [1, *flat(np.multiply(SQUARE, 0.5))]
    for lines in (([0, *flat(SQUARE)], small), (small, [0, *flat(SQUARE)])):
        mask = decode_mask(text(*lines), "a.txt", read, (4, 8), CLASSES)
        assert mask[:2, :4].tolist() == [[2, 2, 1, 1], [1, 1, 1, 1]]
    assert decode_mask(text([0, *flat(SQUARE)], [1, *flat(SQUARE)]), "a.txt", read, (4, 8), CLASSES).max() == 2
    assert decode_mask(data, "a.txt", MaskFormat("yolo", values={1: 255}), (4, 8), CLASSES)[0, 0] == 255
    assert not decode_mask(b"\n", "a.txt", read, (4, 8), CLASSES).any()
    found = list(decode_objects(text(*lines), "a.txt", read, (4, 8), CLASSES))
    assert [(number, int(mask.max()), int((mask > 0).sum())) for number, mask in found] == [(1, 2, 2), (2, 1, 8)]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ([0, 0.5, 0.5, 0.2, 0.2], "4 numbers; boxes are no masks"),
        ([0, *flat(SQUARE), 1], "9 numbers"),
        ([0, 10, 10, 30, 10, 30, 30], "parts of the image"),
        ([0, "nan", 0, 1, 0, 1, 1], "parts of the image"),
        (["cell", *flat(SQUARE)], "'cell'"),
        ([2, *flat(SQUARE)], r"below 3 .*3"),
        ([-1, *flat(SQUARE)], "got -1"),
    ],
)
def test_wrong_lines_of_yolo_are_named(line, said):
    with pytest.raises(DataError, match=rf"^a.txt(, line 2)?: .*{said}"):
        decode_mask(text([0, *flat(SQUARE)], line), "a.txt", MaskFormat("yolo"), (8, 8), CLASSES)
    with pytest.raises(DataError, match="size of the image"):
        decode_mask(text(line), "a.txt", MaskFormat("yolo"))


# Down the columns: of 3×4 pixels, 2 free, 3 covered, 7 free.
COUNTS = {"size": [3, 4], "counts": [2, 3, 7]}
COVERED = np.array([0, 0, 1, 1, 1, *[0] * 7]).reshape(4, 3).T
# The same by COCO's compression: 5 bits a character after 48, "2", "3", and 7 less … from the fourth run on alone.
PACKED = {"size": [3, 4], "counts": "237"}


@pytest.mark.parametrize(
    ("value", "class_id"),
    [
        (COUNTS, 1),
        (PACKED, 1),
        ([COUNTS], 1),
        ({"segmentation": COUNTS, "category_id": 2}, 2),
        ([{"segmentation": PACKED, "category_id": 2, "area": 3}], 2),
        ({"image": {"width": 4}, "annotations": [{"segmentation": PACKED}]}, 1),
        ([{"segmentation": PACKED, "category_id": 7}], 2),
    ],
)
def test_codes_of_coco(value, class_id):
    read = MaskFormat("coco_rle", values={7: 2})
    assert np.array_equal(decode_mask(dumped(value), "a.json", read, SIZE, CLASSES), class_id * COVERED)


def test_polygons_of_coco():
    square = [0, 0, 2, 0, 2, 2, 0, 2]
    for value in ([square], {"segmentation": [square]}, [{"segmentation": [square]}]):
        mask = decode_mask(dumped(value), "a.json", MaskFormat("coco_rle"), SIZE, CLASSES)
        assert mask.tolist() == [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0]]
    assert not decode_mask(b"[]", "a.json", MaskFormat("coco_rle"), SIZE, CLASSES).any()


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"{", "JSON"),
        (b"\xff", "UTF-8"),
        (b"[" * 100_000, "JSON"),
        (b"7", "7"),
        (dumped({"size": [4, 3], "counts": [2, 3, 7]}), r"3×4 .*\[4, 3\]"),
        (dumped({"size": [3, 4], "counts": [2, 3, 6]}), "11 of 12"),
        (dumped({"size": [3, 4], "counts": "99"}), "of 12"),
        (dumped([{"segmentation": COUNTS, "category_id": "cell"}]), "'cell'"),
        (dumped([{"segmentation": COUNTS, "category_id": 300}]), "300"),
        (dumped([{}]), "got None"),
    ],
)
def test_wrong_codes_are_named(data, said):
    with pytest.raises(DataError, match=rf"^a.json.*{said}"):
        decode_mask(data, "a.json", MaskFormat("coco_rle"), SIZE, CLASSES)

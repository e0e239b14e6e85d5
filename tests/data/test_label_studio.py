"""JSON of Label Studio, whose brush strokes are encoded here by hand."""

from itertools import pairwise

import numpy as np
import pytest
from image_bytes import dumped

from segdpo.data.mask_files.decode import MaskFormat, decode_mask, decode_objects
from segdpo.data.mask_files.label_studio import decode_brush, label_studio_tasks
from segdpo.files import DataError

CLASSES = ("background", "cell", "vessel")
SIZE = (3, 5)
READ = MaskFormat("label_studio")
SIZES = (3, 4, 8, 16)


def decode(value):
    return decode_mask(dumped(value), "x.json", READ, SIZE, CLASSES)


def bits(value, length):
    return format(value, f"0{length}b")


def head(count, word=8):
    """How many words, how long each is, and the four sizes of runs."""
    return bits(count, 32) + bits(word - 1, 5) + "".join(bits(size - 1, 4) for size in SIZES)


def run(words, repeated, size):
    """A run with its length in the size number `size`."""
    length = bits(len(words) - 1, SIZES[size])
    body = words[:1] if repeated else words
    return f"{int(repeated)}{bits(size, 2)}{length}" + "".join(bits(word, 8) for word in body)


def packed(text):
    text += "0" * (-len(text) % 8)
    return [int(text[start : start + 8], 2) for start in range(0, len(text), 8)]


def stroke(mask, seed=0):
    """A brush stroke with runs of random lengths and kinds; its colour is there where it covers nothing, too."""
    rng = np.random.default_rng(seed)
    words = [part for inside in mask.ravel().tolist() for part in (255, 0, 77, 255 * inside)]
    text, start = head(len(words)), 0
    while start < len(words):
        same = next((k for k in range(start, len(words)) if words[k] != words[start]), len(words)) - start
        longest = same if (repeated := same > 1) else len(words) - start
        length = int(rng.integers(1, longest + 1))
        fitting = [k for k, size in enumerate(SIZES) if length <= 2**size]
        text += run(words[start : start + length], repeated, int(rng.choice(fitting)))
        start += length
    return packed(text)


def result(label=None, key="brushlabels", **value):
    labels = {} if label is None else {key: [label]}
    return {"original_width": 5, "original_height": 3, "image_rotation": 0, "value": {**value, **labels}}


def brush(mask, label="cell", **more):
    return {**result(label, format="rle", rle=stroke(mask)), **more}


LEFT = np.zeros(SIZE, bool)
LEFT[:, :2] = True


def test_a_stroke_by_hand():
    # 1×2 pixels of 4 words: one word alone, three times 0, then four words as they are. The alpha of the second is 200.
    text = head(8) + "0" + "00" + bits(0, 3) + bits(9, 8) + "1" + "01" + bits(2, 4) + bits(0, 8)
    text += "0" + "10" + bits(3, 8) + bits(1, 8) + bits(2, 8) + bits(3, 8) + bits(200, 8)
    assert decode_brush(packed(text), (1, 2), "").tolist() == [[False, True]]


@pytest.mark.parametrize("seed", range(8))
def test_strokes_return_whatever_their_runs(seed):
    mask = np.random.default_rng(seed).random((7, 9)) < 0.4
    assert np.array_equal(decode_brush(stroke(mask, seed), mask.shape, ""), mask)


def test_large_strokes_have_runs_of_every_size():
    mask = np.zeros((300, 200), bool)
    mask[50:250, 30:170] = True
    alpha = mask.ravel()
    words = np.zeros((60_000, 4), np.uint8)
    words[alpha] = 255
    edges = [0, *(np.flatnonzero(np.diff(alpha)) + 1).tolist(), 60_000]
    text = head(240_000)
    for start, end in pairwise(edges):
        text += run(words[start:end].ravel().tolist(), True, 3)
    assert np.array_equal(decode_brush(packed(text), mask.shape, ""), mask)


@pytest.mark.parametrize(
    ("rle", "said"),
    [
        ([], "ends after 0 bytes"),
        (stroke(LEFT)[:-3], "ends after"),
        (packed(head(60) + "0" + "11" + bits(59, 16)), "ends after"),
        (packed(head(59)), "59 words of 8 bits instead of 60"),
        (packed(head(60, word=16)), "60 words of 16 bits"),
        (packed(head(60) + "1" + "11" + bits(60, 16) + bits(0, 8)), "more than 60 words"),
        (packed(head(2**32 - 1)), "4294967295 words"),
        ([256], "256"),
        (10**15, "int"),
        ("abc", "str"),
        ([0.5], "float"),
    ],
)
def test_wrong_strokes_are_named(rle, said):
    with pytest.raises(DataError, match=rf"^here: .*{said}"):
        decode_brush(rle, SIZE, "here: ")


def test_results_become_a_mask():
    corners = [[40, 0], [100, 0], [100, 100], [40, 100]]  # percent: columns 2 to 4
    results = [
        brush(LEFT),
        result("vessel", "polygonlabels", points=corners, closed=True),
        result("ignore", "rectanglelabels", x=80, y=0, width=20, height=100 / 3, rotation=0),
    ]
    expected = [[1, 1, 2, 2, 255], [1, 1, 2, 2, 2], [1, 1, 2, 2, 2]]
    assert decode(results).tolist() == expected
    for value in (results, {"result": results}, {"data": {"image": "a.png"}, "annotations": [{"result": results}]}):
        assert decode(value).tolist() == expected
    objects = dict(decode_objects(dumped(results), "x.json", READ, SIZE, CLASSES))
    assert np.array_equal(objects[1], LEFT)
    assert list(objects) == [1, 2, 3]
    assert not decode([]).any()


def test_shape_and_label_may_be_two_results():
    shape = {**result(format="rle", rle=stroke(LEFT)), "id": "a", "type": "brush"}
    label = {**result("vessel", "labels", format="rle", rle=stroke(LEFT)), "id": "a", "type": "labels"}
    assert np.array_equal(decode([shape, label]), 2 * LEFT)
    del label["value"]["rle"]
    assert np.array_equal(decode([label, shape]), 2 * LEFT)
    # Without a label it is foreground; results that are no regions are left out.
    choice = {"value": {"choices": ["good"]}}
    assert np.array_equal(decode([{**shape, "id": "b"}, choice]), LEFT)


def test_tasks_name_their_image_and_annotators():
    tasks = [
        {"data": {"image": "/data/upload/3/1a2b-cells%201.png"}, "annotations": [{"result": [], "completed_by": 4}]},
        {"data": {"text": "word", "photo": "/data/local-files/?d=set/b.tif"}, "annotations": []},
        {
            "data": {"image": "https://host/c.jpg?token=1"},
            "annotations": [
                {"result": [brush(LEFT)], "completed_by": {"id": 7}},
                {"result": [], "was_cancelled": True},
                {"result": []},
            ],
            "predictions": [{"result": []}],
        },
    ]
    first, second, third = label_studio_tasks(dumped(tasks), "x.json")
    assert (first.image, list(first.annotations)) == ("1a2b-cells 1.png", ["annotator 4"])
    assert (second.image, second.annotations) == ("b.tif", {})
    assert third.image == "c.jpg"
    assert list(third.annotations) == ["annotator 7", "annotation 2", "prediction 1"]
    assert np.array_equal(decode(third.annotations["annotator 7"]), LEFT)
    twice = {"data": {"image": "a.png"}, "annotations": [{"result": [], "completed_by": 1}] * 2}
    assert list(label_studio_tasks(dumped(twice), "x.json")[0].annotations) == ["annotator 1, 1", "annotator 1, 2"]
    with pytest.raises(DataError, match=r"one annotation but got 3: annotator 7, annotation 2"):
        decode(tasks[2])


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ([brush(LEFT, "tumour")], "'tumour'"),
        ([brush(LEFT, original_width=6)], r"\(3, 5\) .*\(3, 6\)"),
        ([brush(LEFT, image_rotation=90)], "90"),
        ([result("cell", points=[[0, 0], [1, 1]])], "three points"),
        ([result("cell", points=[[0, 0], [1, 1], [0, "x"]])], "points"),
        ([result("cell", points=[[0, 0], [1e9, 1], [0, 1]])], "far outside"),
        ([result("cell", x=1, y=1, width=5, height=5, rotation=3)], "rotated"),
        ([7], "7"),
        ({"data": {}}, "task of Label Studio"),
        ({"data": {"image": "a.png"}, "annotations": [{}]}, "task of Label Studio"),
        (7, "task of Label Studio"),
    ],
)
def test_wrong_results_are_named(value, said):
    with pytest.raises(DataError, match=rf"^x.json: .*{said}"):
        decode(value)

"""Files that name classes, as tools write them."""

import numpy as np
import pytest

from segdpo.data.guessing.class_files import read_classes, voc_colors
from segdpo.files import DataError

CVAT = b"# label:color_rgb:parts:actions\nbackground:0,0,0::\nred cell:250,50,83:a,b:\nvessel:50,83,250::\n"
RED, BLUE = (250, 50, 83), (50, 83, 250)


@pytest.mark.parametrize(
    ("name", "text", "classes", "values", "colors"),
    [
        ("labelmap.txt", CVAT, ("background", "red cell", "vessel"), {0: 0, 1: 1, 2: 2}, {"red cell": RED}),
        (
            "label_colors.txt",
            b"64 128 64\tAnimal\n192 0 128\tArchway 2\n",
            ("background", "Animal", "Archway 2"),
            {0: 1, 1: 2},
            {"Archway 2": (192, 0, 128)},
        ),
        (
            "class_dict.csv",
            b"name,r,g,b\nred cell,250,50,83\nbackground,0,0,0\n",
            ("background", "red cell"),
            {0: 1, 1: 0},
            {"red cell": RED},
        ),
        ("classes.txt", b"red cell\r\nvessel\r\n\r\n", ("background", "red cell", "vessel"), {0: 1, 1: 2}, {}),
        ("classes.txt", b"\xef\xbb\xbf_background_\ncell 2\n", ("_background_", "cell 2"), {0: 0, 1: 1}, {}),
        ("classes.txt", b"0 background\n7: cell\n9,ignore\n", ("background", "cell"), {0: 0, 7: 1, 9: 255}, {}),
        ("classes.csv", b"id,name\n1,cell\n", ("background", "cell"), {1: 1}, {}),
        ("classes.csv", b"name,id\ncell,4\n", ("background", "cell"), {4: 1}, {}),
        ("classes.txt", b"4 cell 250 50 83\n", ("background", "cell"), {4: 1}, {"cell": RED}),
        ("data.yaml", b"path: x\nnames:\n  0: yes\n  1: cell\n", ("background", "yes", "cell"), {0: 1, 1: 2}, {}),
        ("data.yaml", b"nc: 2\nnames: [cell, 'no']\n", ("background", "cell", "no"), {0: 1, 1: 2}, {}),
        (
            "notes.json",
            b'{"categories": [{"id": 0, "name": "cell"}, {"id": 3, "name": "vessel"}]}',
            ("background", "cell", "vessel"),
            {0: 1, 3: 2},
            {},
        ),
        (
            "classes.json",
            b'[{"name": "cell", "color": [250, 50, 83]}, {"name": "vessel", "color": [50, 83, 250]}]',
            ("background", "cell", "vessel"),
            {0: 1, 1: 2},
            {"cell": RED, "vessel": BLUE},
        ),
        ("classes.json", b'["background", "cell"]', ("background", "cell"), {0: 0, 1: 1}, {}),
    ],
)  # fmt: skip
def test_classes_are_read(name, text, classes, values, colors):
    found = read_classes(text, f"folder/{name}")
    assert found.classes == classes
    assert found.values == values
    assert colors.items() <= found.colors.items()


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("classes.txt", b"", "class names"),
        ("classes.txt", b"cell\ncell\n", "once"),
        ("classes.txt", b"1 cell\n1 vessel\n", "number .*1 twice"),
        ("labelmap.txt", b"a:1,2,3::\nb:1,2,3::\n", r"colour .*\(1, 2, 3\) twice"),
        ("labelmap.txt", b"a:1,2,300::\n", "300"),
        ("classes.txt", b"\xff\xfe", "UTF-8"),
        ("classes.txt", b"a" * (2**20 + 1), "1048577"),
        ("data.yaml", b"nc: 2\n", "names"),
        ("data.yaml", b"names: [[a], b]\n", r"\['a'\]"),
        ("data.yaml", b"names: {x: a}\n", "'x'"),
        ("data.yaml", b"names: [a\n", "yaml"),
        ("data.yaml", b"a: !!python/object/apply:os.getcwd []\nnames: [a, a]\n", "once"),
        ("notes.json", b'{"categories": 3}', "list of classes"),
        ("notes.json", b'[{"id": 0}]', "list of classes"),
        ("notes.json", b'[{"id": true, "name": "a"}]', "True"),
    ],
)
def test_wrong_files_are_named(name, text, said):
    with pytest.raises(DataError, match=rf"^{name}: .*{said}"):
        read_classes(text, name)


def test_the_colours_of_voc():
    # The first colours of its 20 classes, and that of its border.
    known = [(0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0), (0, 0, 128), (128, 0, 128), (0, 128, 128)]
    colours = voc_colors(256)
    assert colours[:7] == tuple(known)
    assert (colours[7], colours[8], colours[20], colours[255]) == (
        (128, 128, 128), (64, 0, 0), (0, 64, 128), (224, 224, 192)
    )  # fmt: skip
    assert len(np.unique(colours, axis=0)) == 256

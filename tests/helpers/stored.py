"""Records for the stores, a comparison that looks at everything, and files to break."""

import dataclasses
import json
from pathlib import Path

import numpy as np

from segdpo.data.formats.folder import write_folder
from segdpo.data.formats.pack import PackWriter
from segdpo.data.record import Pair, Record

STORED = Path(__file__).parents[1] / "data" / "stored"
CLASSES = ("background", "cell", "vessel")


def draw(rng, name="a", masks=3, size=(9, 7), channels=3, **more):
    """Random pixels of all classes and ignore; masks that differ; two pairs if there are masks enough."""
    values = np.array([0, 1, 2, 255], np.uint8)
    stack = values[rng.integers(0, 4, (masks, *size))]
    given = {
        "pairs": (Pair(0, 1, 0.1), Pair(2, 1)) if masks > 2 else (),
        "gold": values[rng.integers(0, 4, size)],
        "group": "patient 1",
        "split": "train",
        "meta": {"süß": 'x, "y"\nz'},
    }
    names = tuple(f"rater {k}" for k in range(masks))
    image = rng.integers(0, 256, (*size, channels)).astype(np.uint8)
    return Record(name, image, stack, names, **{**given, **more})


def draw_many(count, seed=0):
    """A ranking, no gold, no masks, a grey image, odd ids, each somewhere among `count` records."""
    rng = np.random.default_rng(seed)
    odd = [
        {"name": "with space"},
        {"name": "ünï/cödé 漢字", "channels": 1},
        {"masks": 0, "gold": None},
        {"pairs": (), "ranking": (2, 0, 1), "split": "", "group": "", "meta": {}},
        {"pairs": (), "size": (3, 40)},
    ]
    return [
        draw(rng, **{"name": f"r{k}", **odd[k % len(odd)]} | ({"name": f"r{k}"} if k >= len(odd) else {}))
        for k in range(count)
    ]


def stored_records():
    """The records of stored/first.pack and stored/folder, which the first release wrote."""
    rng = np.random.default_rng(18)
    return [
        draw(rng, "a", size=(6, 5)),
        draw(rng, "deep/b", size=(4, 7), pairs=(), ranking=(2, 0, 1), gold=None, group="", split="val", meta={}),
        draw(rng, "grey", masks=0, size=(3, 3), channels=1, gold=None),
    ]


def same(one, other):
    """Whether two records are equal in every field, pixels by pixels."""
    for field in dataclasses.fields(Record):
        a, b = getattr(one, field.name), getattr(other, field.name)
        arrays = isinstance(a, np.ndarray) and isinstance(b, np.ndarray)
        if not (np.array_equal(a, b) and a.dtype == b.dtype if arrays else a == b):
            return False
    return True


def contents(root):
    """Every file below `root` and its bytes."""
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def folder(tmp_path, records, classes=CLASSES, name="folder", sealed=False):
    """A written folder; without its checksum unless `sealed`, so that a test may edit the manifest."""
    root = tmp_path / name
    write_folder(root, records, classes)
    if not sealed:
        (root / "dataset.json").write_text(json.dumps({"version": 1, "classes": classes}))
    return root


def pack(tmp_path, records, classes=CLASSES, name="p.pack", per_shard=2):
    """A finished pack."""
    with PackWriter(tmp_path / name, classes, per_shard) as writer:
        for record in records:
            writer.write(record)
    return tmp_path / name

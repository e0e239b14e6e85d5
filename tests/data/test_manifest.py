import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from segdpo.data.formats.manifest import Entry, NamedPair, format_csv, format_jsonl, parse_csv, parse_jsonl, parse_line
from segdpo.files import DataError

text = st.text(st.characters(exclude_categories=("Cc", "Cs"), exclude_characters="/\\|>"), min_size=1, max_size=8)
names = text.filter(lambda name: not name.startswith("."))


@st.composite
def entries(draw):
    masks = draw(st.lists(names, min_size=2, max_size=5, unique=True))
    two = st.permutations(masks).map(lambda order: order[:2])
    weights = st.floats(0, 1e6, allow_nan=False)
    return Entry(
        id=draw(st.lists(names, min_size=1, max_size=2).map("/".join)),
        suffix=draw(st.sampled_from([".png", ".JPG"])),
        masks=tuple(masks),
        gold=draw(st.sampled_from([None, True, False])),
        pairs=tuple(NamedPair(a, b, draw(weights)) for a, b in draw(st.lists(two, max_size=3))),
        ranking=tuple(draw(st.sampled_from([[], masks, masks[:2]]))),
        group=draw(st.sampled_from(["", "g, 1", '"'])),
        split=draw(st.sampled_from(["", "val"])),
        meta=draw(st.dictionaries(text, st.text(st.characters(exclude_categories=("Cs",)), min_size=1), max_size=2)),
    )


@given(st.lists(entries(), max_size=4, unique_by=lambda entry: entry.id))
def test_jsonl_and_csv_return_what_was_written(written):
    assert parse_jsonl(format_jsonl(written), "m") == written
    assert parse_csv(format_csv(written), "m") == written


def test_a_line_that_a_person_writes():
    entry = parse_line('{"id": "a 1", "pairs": [{"chosen": "anna", "rejected": "ben"}]}')
    assert entry == Entry("a 1", pairs=(NamedPair("anna", "ben", 1.0),))
    assert (entry.masks, entry.gold) == (None, None)


def test_a_table_that_a_person_writes():
    rows = "\ufeffid,chosen,rejected,weight,split,meta.hospital\r\na,x,y,,val,Ulm\r\nb,,,,,\r\na,x,z,0.5,val,Ulm\r\n"
    first, second = parse_csv(rows, "m.csv")
    assert first.pairs == (NamedPair("x", "y", 1.0), NamedPair("x", "z", 0.5))
    assert (first.split, first.meta) == ("val", {"hospital": "Ulm"})
    assert second == Entry("b")


BAD_LINES = {
    "not json": ("Expected one JSON object", "manifest"),
    "[1]": ("string 'id'", "manifest"),
    '{"id": 3}': ("string 'id'", "manifest"),
    '{"id": "a", "id": "b"}': ("a key comes twice", "manifest"),
    '{"id": "a", "pears": []}': ("got pears", "manifest"),
    '{"id": "a", "pairs": [{"chosen": "x"}]}': ("Expected a pair", "manifest"),
    '{"id": "a", "pairs": [{"chosen": "x", "rejected": "x"}]}': ("both are 'x'", "preference"),
    '{"id": "a", "pairs": [{"chosen": "x", "rejected": "y", "weight": NaN}]}': ("NaN is no number", "manifest"),
    '{"id": "a", "pairs": [{"chosen": "x", "rejected": "y", "weight": 1e999}]}': ("finite weight", "preference"),
    '{"id": "a", "pairs": [{"chosen": "x", "rejected": "y", "weight": -1}]}': ("finite weight", "preference"),
    '{"id": "a", "pairs": [{"chosen": "x", "rejected": "y", "weight": true}]}': ("Expected a pair", "manifest"),
    '{"id": "a", "masks": ["x"], "pairs": [{"chosen": "x", "rejected": "y"}]}': ("between ['x']", "preference"),
    '{"id": "a", "masks": ["x", "x"]}': ("'x' twice", "manifest"),
    '{"id": "a", "masks": "x"}': ("Expected a list", "manifest"),
    '{"id": "a", "masks": [["x"]]}': ("Expected strings", "manifest"),
    '{"id": "a", "masks": ["../x"]}': ("mask name", "id"),
    '{"id": "a", "ranking": ["x"]}': ("two or more", "preference"),
    '{"id": "a", "ranking": ["x", "y", "x"]}': ("'x' twice", "manifest"),
    '{"id": "a", "split": "training"}': ("split 'train', 'val'", "manifest"),
    '{"id": "a", "suffix": ".exe"}': ("Expected a suffix", "manifest"),
    '{"id": "a", "meta": {"x": 1}}': ("Expected strings", "manifest"),
    '{"id": "a", "group": null}': ("Expected strings", "manifest"),
}


@pytest.mark.parametrize("line", BAD_LINES)
def test_a_bad_line_is_named_by_its_number(line):
    words = BAD_LINES[line][0]
    with pytest.raises(DataError) as caught:
        parse_jsonl(f'{{"id": "fine"}}\n\n{line}\n', "some/manifest.jsonl")
    assert str(caught.value).startswith("some/manifest.jsonl, line 3: ")
    assert words in str(caught.value)


@pytest.mark.parametrize("line", BAD_LINES)
def test_a_bad_line_has_a_kind(line):
    with pytest.raises(DataError) as caught:
        parse_line(line)
    assert caught.value.kind == BAD_LINES[line][1]


@pytest.mark.parametrize(
    "name", ["", "../a", "a/../../b", "/etc/passwd", "a//b", "a\\b", "a\0b", "a\nb", ".", "a/", "\ud800"]
)
def test_an_id_stays_in_its_folder(name):
    with pytest.raises(DataError, match="stays inside its folder") as caught:
        parse_line(json.dumps({"id": name}), "m, line 1: ")
    assert caught.value.kind == "id"


def test_all_bad_lines_come_at_once_and_an_id_only_once():
    with pytest.raises(DataError) as caught:
        parse_jsonl('{"id": "a"}\nx\n{"id": "a"}\n', "m")
    first, second = str(caught.value).split("\n")
    assert first.startswith("m, line 2: Expected one JSON object")
    assert second == "m, line 3: id 'a' is also on line 1; keep one."
    with pytest.raises(DataError, match="… and 30 more lines"):
        parse_jsonl("x\n" * 50, "m")


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ("", "Expected comma-separated columns"),
        ("id;chosen\na;x\n", "Expected comma-separated columns"),
        ("id,chosn\na,x\n", "'chosn'"),
        ("id,id\na,a\n", "each once"),
        ("id,split\na\n", "line 2: Expected 2 cells"),
        ("id,split\na,val,x\n", "line 2: Expected 2 cells"),
        ("id,chosen,rejected\na,x,x\n", "line 2: id 'a': Expected chosen and rejected to differ"),
        ("id,chosen,rejected\na,x,\n", "mask name"),
        ("id,chosen,rejected,weight\na,x,y,heavy\n", "a number for weight but got 'heavy' on line 2"),
        ("id,split,chosen,rejected\na,val,x,y\na,test,x,z\n", "has a different split on line 3"),
        ("id,chosen,rejected\na,x,y\na,,\n", "has no pair on line 3"),
        ("id,gold\na,yes\n", "gold 1, 0 or nothing"),
        ('id,group\na,"x\n', "Expected CSV"),
        ("id\n../a\n", "stays inside its folder"),
    ],
)
def test_a_bad_table_is_named(table, words):
    with pytest.raises(DataError) as caught:
        parse_csv(table, "m.csv")
    assert str(caught.value).startswith("m.csv, line ")
    assert words in str(caught.value)

import shutil

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from segdpo.data.formats.arrow import PairTable
from segdpo.data.record import Pair
from segdpo.files import DataError

PAIRS = [[Pair(0, 1, 0.5)], [], [Pair(2, 0), Pair(1, 0, 3.0)], []]


def test_offsets_by_hand():
    table = PairTable.from_records(PAIRS)
    assert table.record.tolist() == [0, 2, 2]
    assert table.chosen.tolist() == [0, 2, 1]
    assert table.rejected.tolist() == [1, 0, 0]
    assert table.weight.tolist() == [0.5, 1.0, 3.0]
    assert table.offsets.tolist() == [0, 1, 1, 3, 3]
    assert [table.chosen[table.slice_of(k)].tolist() for k in range(4)] == [[0], [], [2, 1], []]
    kinds = [column.dtype for column in (table.record, table.chosen, table.rejected, table.weight, table.offsets)]
    assert kinds == [np.uint32, np.uint8, np.uint8, np.float32, np.int64]


@given(st.lists(st.lists(st.tuples(st.integers(0, 9), st.integers(10, 255), st.floats(0, 9, width=32)), max_size=3)))
def test_what_was_written_is_read(tmp_path_factory, pairs):
    path = tmp_path_factory.mktemp("t") / "pairs.arrow"
    PairTable.from_records([[Pair(*pair) for pair in group] for group in pairs]).write(path)
    table = PairTable.open(path, len(pairs))
    slices = [table.slice_of(k) for k in range(len(pairs))]
    columns = [table.chosen, table.rejected, table.weight]
    assert [list(zip(*(c[s].tolist() for c in columns), strict=True)) for s in slices] == pairs


def test_opened_columns_are_views_of_the_file(tmp_path):
    PairTable.from_records(PAIRS * 1000).write(tmp_path / "pairs.arrow")
    table = PairTable.open(tmp_path / "pairs.arrow", 4000)
    for column in (table.record, table.chosen, table.rejected, table.weight):
        assert not column.flags.owndata
        assert not column.flags.writeable


def test_others_can_read_the_file(tmp_path):
    PairTable.from_records(PAIRS).write(tmp_path / "pairs.arrow")
    with pa.memory_map(str(tmp_path / "pairs.arrow")) as source:
        assert pa.ipc.open_file(source).read_all().to_pydict() == {
            "record": [0, 2, 2],
            "chosen": [0, 2, 1],
            "rejected": [1, 0, 0],
            "weight": [0.5, 1.0, 3.0],
        }


def test_an_epoch_needs_no_list(tmp_path):
    PairTable.from_records(PAIRS).write(tmp_path / "pairs.arrow")
    table = PairTable.open(tmp_path / "pairs.arrow", 4)
    order = np.random.default_rng(0).permutation(len(table)).astype(np.uint32)
    assert sorted(zip(table.record[order].tolist(), table.chosen[order].tolist(), strict=True)) == [
        (0, 0),
        (2, 1),
        (2, 2),
    ]


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        (([1, 0], [0, 0], [1, 1], [1, 1]), "sorted by record"),
        (([0, 5], [0, 0], [1, 1], [1, 1]), "each below 2"),
        (([0, 1], [0, 3], [1, 3], [1, 1]), "pair 1 has both 3"),
    ],
)
def test_columns_that_are_no_table(columns, words):
    with pytest.raises(DataError, match=words):
        PairTable.from_columns([np.array(column) for column in columns], 2)


def test_a_file_of_more_records_is_named(tmp_path):
    PairTable.from_records(PAIRS).write(tmp_path / "pairs.arrow")
    with pytest.raises(DataError, match=r"pairs.arrow: Expected pairs sorted by record, each below 2"):
        PairTable.open(tmp_path / "pairs.arrow", 2)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=400, deadline=None)
@given(where=st.floats(0, 1, exclude_max=True), bit=st.integers(-1, 7))
def test_damage_gives_an_error_or_the_right_table(tmp_path, where, bit):
    path, whole = tmp_path / "pairs.arrow", tmp_path / "whole"
    if not whole.exists():
        PairTable.from_records(PAIRS).write(whole)
    shutil.copy(whole, path)
    data = bytearray(path.read_bytes())
    position = int(where * len(data))
    if bit < 0:
        del data[position:]
    else:
        data[position] ^= 1 << bit
    path.write_bytes(bytes(data))
    try:
        table = PairTable.open(path, 4)
    except DataError:
        return
    right = PairTable.from_records(PAIRS)
    for name in ("record", "chosen", "rejected", "weight", "offsets"):
        assert np.array_equal(getattr(table, name), getattr(right, name))

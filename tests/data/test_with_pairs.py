"""A table's pairs take the place of the records' own."""

import pytest
from toy_records import toys

from segdpo.data.datasets import PreferenceDataset
from segdpo.data.formats.arrow import PairTable
from segdpo.data.record import Pair
from segdpo.data.sources import WithPairs
from segdpo.data.transforms import Pipeline
from segdpo.files import DataError

PAIRS = [[Pair(1, 2), Pair(0, 1, 0.5)], [], [Pair(2, 0)]]


def test_items_have_the_tables_pairs(tmp_path):
    PairTable.from_records(PAIRS).write(tmp_path / "pairs.arrow")
    source = WithPairs(toys(3, ranking=(0, 1, 2)), PairTable.open(tmp_path / "pairs.arrow", 3))
    assert [list(source[i].pairs) for i in range(3)] == PAIRS
    assert [(source.describe(i).pairs, source.describe(i).id) for i in range(3)] == [
        (2, "toy0"),
        (0, "toy1"),
        (1, "toy2"),
    ]
    data = PreferenceDataset(source, Pipeline())
    assert data.indices.tolist() == [0, 2]
    assert data[0].numbers[data[0].pairs].tolist() == [[1, 2], [0, 1]]
    assert data[0].weight.tolist() == [1.0, 0.5]


def test_a_table_of_other_records_is_refused():
    with pytest.raises(DataError, match="table of 4 records but got one of 3"):
        WithPairs(toys(4), PairTable.from_records(PAIRS))

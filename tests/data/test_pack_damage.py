import json
import shutil
import struct

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from stored import CLASSES, contents, draw_many, pack, same

from segdpo.data.formats.pack import PackDataset, PackWriter
from segdpo.files import DataError

DATA = draw_many(5)


def read_all(path):
    """Everything a pack says; a DataError is fine, any other error or a wrong value is not."""
    try:
        source = PackDataset(path, channels=None)
        assert (source.classes, len(source)) == (CLASSES, 5)
        described = [source.describe(k) for k in range(5)]
        assert [(one.id, one.pairs) for one in described] == [(record.id, len(record.pairs)) for record in DATA]
    except DataError:
        return
    for k in range(5):
        try:
            assert same(source[k], DATA[k])
        except DataError:
            continue


def resume(path):
    """Continue the pack: a DataError (None), or the same bytes as without damage."""
    try:
        with PackWriter(path, CLASSES) as writer:
            for record in DATA:
                if record.id not in writer.done_ids:
                    writer.write(record)
    except DataError:
        return None
    return contents(path)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return pack(tmp_path_factory.mktemp("whole"), DATA)


FILES = ["pack.json", "records.arrow", "shard-00000.bin", "shard-00002.bin"]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=400, deadline=None)
@given(name=st.sampled_from(FILES), where=st.floats(0, 1, exclude_max=True), bit=st.integers(-1, 7))
def test_a_flipped_bit_or_a_cut_gives_an_error_or_the_right_record(tmp_path, whole, name, where, bit):
    path = tmp_path / "damaged"
    shutil.rmtree(path, ignore_errors=True)
    shutil.copytree(whole, path)
    data = bytearray((path / name).read_bytes())
    position = int(where * len(data))
    if bit < 0:
        del data[position:]
    else:
        data[position] ^= 1 << bit
    (path / name).write_bytes(bytes(data))
    read_all(path)
    if name.startswith("shard"):
        after = resume(path)
        if after is not None:
            read_all(path)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(tmp_path, whole, name):
    path = shutil.copytree(whole, tmp_path / "p")
    (path / name).unlink()
    with pytest.raises(DataError) as caught:
        [PackDataset(path)[k] for k in range(5)]
    assert "not finished" in str(caught.value) if name == "records.arrow" else name in str(caught.value)


def test_a_pack_cut_in_half_is_named(tmp_path, whole):
    path = shutil.copytree(whole, tmp_path / "p")
    shard = path / "shard-00000.bin"
    shard.write_bytes(shard.read_bytes()[: shard.stat().st_size // 2])
    with pytest.raises(DataError, match=r"shard-00000\.bin: .*cut short") as caught:
        [PackDataset(path)[k] for k in range(2)]
    assert caught.value.kind == "damaged"
    assert same(PackDataset(path, channels=None)[2], DATA[2])
    with pytest.raises(DataError, match=r"shard-00000\.bin: .*cut short"):
        PackWriter(path, CLASSES)


def test_the_fix_that_the_error_names_works(tmp_path, whole):
    path = shutil.copytree(whole, tmp_path / "p")
    for name in ("shard-00002.bin", "records.arrow"):
        (path / name).unlink()
    assert resume(path) == contents(whole)


def test_another_version_is_named(tmp_path, whole):
    path = shutil.copytree(whole, tmp_path / "p")
    description = path / "pack.json"
    description.write_text(json.dumps({**json.loads(description.read_text()), "version": 2}))
    with pytest.raises(DataError, match=r"pack\.json: .*version 1 .*2") as caught:
        PackDataset(path)
    assert caught.value.kind == "version"


def test_a_shard_of_another_version_is_named(tmp_path, whole):
    path = shutil.copytree(whole, tmp_path / "p")
    shard = path / "shard-00001.bin"
    data = shard.read_bytes()
    shard.write_bytes(data[:8] + struct.pack("<I", 7) + data[12:])
    with pytest.raises(DataError, match=r"shard-00001\.bin: .*version 1 .*7") as caught:
        PackDataset(path)[2]
    assert caught.value.kind == "version"


def test_shards_in_each_others_place_are_noticed(tmp_path, whole):
    path = shutil.copytree(whole, tmp_path / "p")
    first, second = (path / f"shard-0000{k}.bin" for k in (0, 1))
    one, other = first.read_bytes(), second.read_bytes()
    first.write_bytes(other)
    second.write_bytes(one)
    for k in range(4):
        with pytest.raises(DataError, match=r"damaged|cut short"):
            PackDataset(path)[k]


def test_a_missing_shard_among_others_is_not_written_over(tmp_path, whole):
    path = shutil.copytree(whole, tmp_path / "p")
    (path / "shard-00000.bin").unlink()
    with pytest.raises(DataError, match=r"shard-00000\.bin"):
        PackWriter(path, CLASSES)

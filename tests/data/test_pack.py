import io
import os
import pickle
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis.extra import numpy as hnp
from PIL import Image as Pillow
from stored import CLASSES, STORED, contents, draw, draw_many, folder, pack, same, stored_records

from segdpo.data.formats.folder import FolderDataset, write_folder
from segdpo.data.formats.pack import PackDataset, PackWriter
from segdpo.data.formats.pack_records import decode_pixels, encode_pixels
from segdpo.data.images import ImageFile, encode_image
from segdpo.data.record import Pair, RecordInfo
from segdpo.data.sources import write_pack
from segdpo.files import DataError

DATA = draw_many(7)


def test_what_was_packed_is_read(tmp_path):
    source = PackDataset(pack(tmp_path, DATA), channels=None)
    assert source.classes == CLASSES
    assert [same(*pair) for pair in zip(source, DATA, strict=True)] == [True] * 7
    assert same(source[-1], DATA[-1])
    assert source.describe(3) == RecordInfo("r3", "", "", 0, 3, True)
    assert source.describe(0) == RecordInfo("with space", "patient 1", "train", 2, 0, True)
    assert np.array_equal(PackDataset(tmp_path / "p.pack")[1].image, np.repeat(DATA[1].image, 3, axis=2))
    assert source[0].masks.flags.writeable


def test_reading_a_pack_imports_no_pandas(tmp_path):
    """pyarrow imports pandas where it is installed, for `to_numpy` among others; that takes a quarter of a second."""
    pytest.importorskip("pandas")
    code = (
        "import sys; from segdpo.data import PackDataset; source = PackDataset(sys.argv[1]); "
        "print(len(source), source[3].id, source.describe(3).id, 'pandas' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code, pack(tmp_path, DATA)], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["7", "r3", "r3", "False"]


def test_a_pack_of_the_first_release_is_read_and_continued(tmp_path):
    path = shutil.copytree(STORED / "first.pack", tmp_path / "p")
    records = stored_records()
    source = PackDataset(path, channels=None)
    assert source.classes == CLASSES
    assert [same(*pair) for pair in zip(source, records, strict=True)] == [True] * 3
    assert source.image_file(0) == encode_image(records[0].image)
    assert [source.describe(k).pairs for k in range(3)] == [2, 0, 0]
    with PackWriter(path, CLASSES) as writer:
        assert writer.done_ids == {"a", "deep/b", "grey"}
        writer.write(DATA[0])
    assert [same(*pair) for pair in zip(PackDataset(path, None), [*records, DATA[0]], strict=True)] == [True] * 4
    # Its table of all pairs would not know of the new record.
    assert sorted(contents(path)) == ["pack.json", "records.arrow", "shard-00000.bin", "shard-00001.bin"]


def test_folder_to_pack_to_folder_is_byte_identical(tmp_path):
    root = folder(tmp_path, DATA, sealed=True)
    # An image file that our own writer would not make.
    Pillow.fromarray(DATA[0].image).save(root / "images/with space.png", compress_level=9)
    write_pack(tmp_path / "p", FolderDataset(root))
    write_folder(tmp_path / "again", PackDataset(tmp_path / "p"), CLASSES)
    assert contents(tmp_path / "again") == contents(root)


@pytest.mark.parametrize("images", ["files", "pixels"])
def test_pack_to_folder_to_pack_is_byte_identical(tmp_path, images):
    path = tmp_path / "p"
    write_pack(path, FolderDataset(folder(tmp_path, DATA), channels=None), records_per_shard=2, images=images)
    write_folder(tmp_path / "f", PackDataset(path), CLASSES)
    source = FolderDataset(tmp_path / "f", channels=None)
    write_pack(tmp_path / "again", source, records_per_shard=2, images=images)
    assert contents(tmp_path / "again") == contents(path)


@pytest.mark.parametrize("stops", [[3], [1, 2, 5], [4, 4], [7], [2, 6, 7]])
@pytest.mark.parametrize("finishing", [False, True])
def test_a_continued_pack_ends_with_the_same_bytes(tmp_path, stops, finishing):
    whole = contents(pack(tmp_path, DATA, name="whole"))
    for stop in [*stops, 7]:
        writer = PackWriter(tmp_path / "p", CLASSES, 2)
        for record in DATA[:stop]:
            if record.id not in writer.done_ids:
                writer.write(record)
        if finishing or stop == 7:
            writer.finish()
        else:
            writer.close()
            done = PackWriter(tmp_path / "p", CLASSES)
            assert done.done_ids == {record.id for record in DATA[: stop - stop % 2]}
            done.close()
    assert contents(tmp_path / "p") == whole


def save_bmp(image):
    buffer = io.BytesIO()
    Pillow.fromarray(image).save(buffer, "bmp")
    return buffer.getvalue()


SLOW_WRITER = """
import sys
from stored import CLASSES, draw_many
from segdpo.data.formats.pack import PackWriter
writer = PackWriter(sys.argv[1], CLASSES, 4)
for record in draw_many(400):
    if record.id not in writer.done_ids:
        writer.write(record)
        print(record.id, flush=True)
sys.stdin.read()  # so that it is never finished before it is killed
"""


@pytest.mark.parametrize("killed_after", [[30], [3, 90]])
def test_killed_at_any_moment_nothing_is_lost_or_doubled(tmp_path, killed_after):
    whole = contents(pack(tmp_path, draw_many(400), name="whole", per_shard=4))
    helpers = str(Path(__file__).parents[1] / "helpers")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([helpers, os.environ.get("PYTHONPATH", "")])}
    for lines in killed_after:
        command = [sys.executable, "-c", SLOW_WRITER, str(tmp_path / "p")]
        process = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        for _ in range(lines):
            process.stdout.readline()
        process.send_signal(signal.SIGKILL)
        process.communicate()
        with pytest.raises(DataError, match="not finished"):
            PackDataset(tmp_path / "p")
    with PackWriter(tmp_path / "p", CLASSES, 4) as writer:
        assert writer.done_ids
        for record in draw_many(400):
            if record.id not in writer.done_ids:
                writer.write(record)
    assert contents(tmp_path / "p") == whole


def test_what_a_killed_process_left_half_written_goes(tmp_path):
    path = pack(tmp_path, DATA)
    whole = contents(path)
    (left := path / ".shard-00004.bin.7-00c0ffee.tmp").write_bytes(b"half")
    os.utime(left, (0, 0))
    PackWriter(path, CLASSES).finish()
    assert contents(path) == whole


def test_more_records_join_a_finished_pack(tmp_path):
    path = pack(tmp_path, DATA[:5])
    reader = PackDataset(path, channels=None)
    with PackWriter(path, CLASSES) as writer:
        for record in DATA[5:]:
            writer.write(record)
    assert contents(path) == contents(pack(tmp_path, DATA, name="whole"))
    # A reader that was opened before still reads the records of then.
    assert [same(*pair) for pair in zip(reader, DATA[:5], strict=True)] == [True] * 5


@pytest.mark.parametrize("images", ["files", "pixels"])
def test_images_as_files_or_as_pixels(tmp_path, images):
    grey, colour = DATA[1], DATA[0]
    file = ImageFile(".bmp", save_bmp(colour.image))
    with PackWriter(tmp_path / "p", CLASSES, images=images) as writer:
        writer.write(colour, file)
        writer.write(grey)
    source = PackDataset(tmp_path / "p", channels=None)
    assert same(source[0], colour)
    assert same(source[1], grey)
    assert source.image_file(0) == (file if images == "files" else encode_image(colour.image))
    assert source.image_file(1) == encode_image(grey.image)
    assert np.array_equal(PackDataset(tmp_path / "p")[1].image, np.repeat(grey.image, 3, axis=2))
    assert PackDataset(tmp_path / "p", channels=1)[0].image.shape == (9, 7, 1)
    with pytest.raises(DataError, match="images='"):
        PackWriter(tmp_path / "p", CLASSES, images={"files": "pixels", "pixels": "files"}[images])


def test_images_of_many_channels_are_pixels(tmp_path):
    record = draw(np.random.default_rng(0), channels=7)
    path = pack(tmp_path, [record])
    assert same(PackDataset(path, channels=None)[0], record)
    with pytest.raises(DataError, match=r"'a': .* 7; .*channels=None"):
        PackDataset(path)[0]


@given(hnp.arrays(np.uint8, hnp.array_shapes(min_dims=3, max_dims=3, max_side=12)))
def test_pixels_return(image):
    assert np.array_equal(decode_pixels(encode_pixels(image), image.shape, ""), image)


def test_one_writer_at_a_time(tmp_path):
    writer = PackWriter(tmp_path / "p", CLASSES)
    with pytest.raises(DataError, match="another process"):
        PackWriter(tmp_path / "p", CLASSES)
    writer.close()
    PackWriter(tmp_path / "p", CLASSES).close()


def test_an_error_leaves_the_pack_unfinished(tmp_path):
    def fail():
        with PackWriter(tmp_path / "p", CLASSES, 1) as writer:
            writer.write(DATA[0])
            writer.write(DATA[0])

    with pytest.raises(DataError, match="'with space'"):
        fail()
    with pytest.raises(DataError, match="not finished"):
        PackDataset(tmp_path / "p")


@pytest.mark.parametrize(
    ("classes", "per_shard", "words"),
    [(("a", "b"), None, "classes=\\('a', 'b'\\)"), (CLASSES, 3, "records_per_shard=3")],
)
def test_another_data_set_does_not_join(tmp_path, classes, per_shard, words):
    path = pack(tmp_path, DATA)
    with pytest.raises(DataError, match=words):
        PackWriter(path, classes, per_shard)


def test_a_pack_of_other_records_is_not_continued(tmp_path):
    path = pack(tmp_path, DATA)
    before = contents(path)
    with pytest.raises(DataError, match="'r"):
        write_pack(path, FolderDataset(folder(tmp_path, DATA[:2])))
    assert contents(path) == before


def test_a_folder_of_something_else_stays(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(DataError, match=r"thesis\.tex"):
        PackWriter(tmp_path, CLASSES)


def test_numpy_numbers_are_numbers(tmp_path):
    record = draw(np.random.default_rng(0), pairs=(Pair(np.int64(0), np.uint8(1), np.float32(0.5)),))
    assert PackDataset(pack(tmp_path, [record]))[0].pairs == (Pair(0, 1, 0.5),)


def test_an_empty_pack_is_a_pack(tmp_path):
    source = PackDataset(pack(tmp_path, []))
    assert len(source) == 0
    with pytest.raises(IndexError):
        source[0]


def test_workers_get_a_pack_by_pickle(tmp_path):
    source = pickle.loads(pickle.dumps(PackDataset(pack(tmp_path, DATA), channels=None)))
    assert same(source[6], DATA[6])

"""Files made to do harm: each ends in a DataError, writes nothing outside its folder and takes little memory."""

import json
import os
import struct
import subprocess
import sys
import textwrap
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from stored import CLASSES, contents, draw_many, folder, pack

from segdpo.data.formats.coco import CocoDataset
from segdpo.data.formats.folder import FolderDataset, write_folder
from segdpo.data.formats.pack import PackDataset, PackWriter
from segdpo.data.formats.pack_files import (
    END,
    HEAD,
    MAGIC,
    RECORDS,
    SCHEMA,
    TAIL,
    VERSION,
    RecordTable,
    write_shard,
    write_table,
)
from segdpo.data.formats.pack_records import LENGTH, compress, decompress, encode_record, frame_size
from segdpo.data.images import ImageFile, decode_image, encode_image
from segdpo.data.mask_files.regions import decode_region
from segdpo.files import DataError
from segdpo.preferences.journal import Journal

RECORD = draw_many(1)[0]
STORED = Path(__file__).parent / "stored"
ROOM = 2**30  # how many bytes a hostile file may make a process ask for


def bounded(code, *arguments):
    """Run code once for each `path` of the arguments, with ROOM bytes beside the imports; return its output."""
    start = f"""
        import os, resource, sys
        from pathlib import Path
        import segdpo.data
        from segdpo.data.formats.pack_files import open_table, read_index
        from segdpo.data.mask_files.regions import decode_region
        from segdpo.files import DataError
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        room = pages * resource.getpagesize() + {ROOM}
        resource.setrlimit(resource.RLIMIT_AS, (room, room))

        def read(path):
            pack = path.endswith(".pack")
            source = (segdpo.data.PackDataset if pack else segdpo.data.FolderDataset)(path)
            source[0]
    """
    guarded = f"""
        for path in sys.argv[1:] or [""]:
            try:
                {code}
            except DataError as error:
                print("DataError:", error)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(start) + textwrap.dedent(guarded), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, f"exit status {done.returncode}\n{done.stderr[-2000:]}"
    return done.stdout


def body_of(header, file, frame):
    """A record's bytes from parts that need not fit together."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return LENGTH.pack(len(text)) + text + file + frame


def forged(tmp_path, frame=None, index=None, **changes):
    """A pack of one record with a header that its writer never writes; all checksums are right."""
    file = encode_image(RECORD.image)
    body, header = encode_record(RECORD, file)
    whole = body[LENGTH.size + LENGTH.unpack_from(body)[0] :]
    header = {key: value for key, value in {**header, **changes}.items() if value is not ...}
    path = pack(tmp_path, [], name="forged.pack", per_shard=64)
    body = body_of(header, whole[: len(file.data)], whole[len(file.data) :] if frame is None else frame)
    sound = {**json.loads(json.dumps(encode_record(RECORD, file)[1])), **(index or {})}
    put(path, body, sound)
    return path


def put(path, body, header):
    """Make `body` the only record of a pack, all checksums right."""
    rows = RecordTable()
    rows.add(0, write_shard(path / "shard-00000.bin", [(body, header)]))
    rows.write(path)


def test_a_suffix_that_leaves_the_folder_writes_nothing(tmp_path):
    path = forged(tmp_path, suffix="/../../../x.png")
    before = set(contents(tmp_path))
    with pytest.raises(DataError, match=r"shard-00000.bin.*/\.\./\.\./\.\./x\.png"):
        write_folder(tmp_path / "a/b/c/d/e", PackDataset(path), CLASSES)
    assert set(contents(tmp_path)) == before


def test_a_polygon_far_outside_of_its_image_is_refused():
    said = bounded("decode_region([[0, 0, 5e7, 0, 5e7, 5e7, 0, 5e7]], (8, 8), 'where: ')")
    assert said.startswith("DataError: where: ")
    assert "50000000" in said or "5e+07" in said


def test_a_polygon_of_many_long_edges_is_refused():
    said = bounded("decode_region([[0, 0, 10000, 10000] * 50000], (10000, 10000), 'where: ')")
    assert said.startswith("DataError: where: ")


def test_a_code_of_one_endless_number_is_refused():
    # Read bit by bit into one number, ten million continued digits take hours.
    said = bounded("decode_region({'size': [8, 8], 'counts': 'o' * 10_000_000}, (8, 8), 'where: ')")
    assert said.startswith("DataError: where: ")


def zeros(size):
    """A zstd frame of zeros that says how long they are: blocks of one repeated byte, 128 KiB each."""
    head = b"\x28\xb5\x2f\xfd" + bytes([0b11000000, 7 << 3]) + size.to_bytes(8, "little")
    more, last = ((2**17 << 3 | 2 | end).to_bytes(3, "little") + b"\0" for end in (0, 1))
    return head + more * (size // 2**17 - 1) + last


def test_a_frame_of_repeated_blocks_is_zstd():
    assert decompress(zeros(2**20), 2**20, "").tobytes() == bytes(2**20)
    for size in (2**20 - 1, 2**20 + 1, 0):
        with pytest.raises(DataError, match=f"x: Expected a frame of {size} bytes"):
            decompress(zeros(2**20), size, "x")


@pytest.mark.parametrize("size", [0, 1, 255, 256, 257, 65791, 65792, 10**6])
def test_the_size_of_a_frame_is_in_its_header(size):
    frame = compress(bytes(size))
    assert frame_size(frame) == size
    assert decompress(frame, size, "").tobytes() == bytes(size)
    assert frame_size(zeros(3 * 2**30)) == 3 * 2**30
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(b"of unknown length")
    assert frame_size(sink.getvalue().to_pybytes()) == frame_size(frame[:4]) == frame_size(b"no frame") == -1


@pytest.fixture(scope="module")
def bomb():
    frame = zeros(3 * 2**30)
    assert len(frame) < 300_000
    return frame


def test_masks_that_expand_to_gigabytes_are_refused(tmp_path, bomb):
    path = forged(tmp_path, frame=bomb)
    assert bounded("read(path)", path).startswith(f"DataError: {path}")


def test_masks_as_large_as_the_header_says_are_refused_too(tmp_path, bomb):
    path = forged(tmp_path, frame=bomb, shape=[32768, 32768, 3], gold=False)
    assert bounded("read(path)", path).startswith(f"DataError: {path}")


def test_pixels_that_expand_to_gigabytes_are_refused(tmp_path, bomb):
    path = pack(tmp_path, [])
    header = {**encode_record(RECORD, None)[1], "image_bytes": len(bomb)}
    put(path, body_of(header, bomb, b""), header)
    assert bounded("read(path)", path).startswith(f"DataError: {path}")


@pytest.mark.parametrize("name", ["damaged_schema_1", "damaged_schema_2"])
def test_a_damaged_schema_does_not_crash_pyarrow(name):
    path = STORED / f"{name}.arrow"
    assert bounded("open_table(Path(path))", path).startswith(f"DataError: {path}")


def test_an_index_that_expands_to_gigabytes_is_refused(tmp_path, bomb):
    path = tmp_path / "shard-00000.bin"
    tail = TAIL.pack(HEAD.size, len(bomb), zlib.crc32(bomb), END)
    path.write_bytes(HEAD.pack(MAGIC, VERSION) + bomb + tail)
    assert bounded("read_index(Path(path))", path).startswith(f"DataError: {path}")


def test_a_table_that_expands_to_gigabytes_is_refused(tmp_path):
    path = pack(tmp_path, [])
    count = 60_000_000
    columns = [pa.array([""]).take(pa.array(np.zeros(count, np.int8))) if pa.types.is_string(field.type) else
               pa.array(np.zeros(count, field.type.to_pandas_dtype())) for field in SCHEMA]  # fmt: skip
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with pa.ipc.new_file(str(path / RECORDS), SCHEMA, options=options) as writer:
        writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=SCHEMA))
    assert (path / RECORDS).stat().st_size < 2_000_000
    assert bounded("read(path)", path).startswith(f"DataError: {path / RECORDS}")


def png(width, height):
    """A PNG of zeros, one bit a pixel."""

    def chunk(kind, data):  # fmt: skip
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([1, 0, 0, 0, 0])
    packer = zlib.compressobj(9)
    rows = b"".join(packer.compress(bytes(width // 8 + 1)) for _ in range(height)) + packer.flush()
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def test_an_image_of_too_many_pixels_is_refused(tmp_path):
    root = folder(tmp_path, [RECORD])
    image = root / f"images/{RECORD.id}.png"
    image.write_bytes(png(40_000, 40_000))
    said = bounded("read(path)", root)
    assert said.startswith(f"DataError: {image}")


def test_tiles_larger_than_any_image_are_refused():
    # One tile is decoded as a whole, though the image is 64 × 64.
    tags = [
        (256, 64),
        (257, 64),
        (258, 8),
        (259, 8),
        (262, 1),
        (277, 1),
        (322, 60_000),
        (323, 60_000),
        (324, 8),
        (325, 9),
    ]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    tiff = b"II*\0" + struct.pack("<I", 18) + bytes(10) + struct.pack("<H", len(tags)) + entries + bytes(4)
    with pytest.raises(DataError, match=r"^x.tif: .*3600000000"):
        decode_image(tiff, "x.tif")


MAKE = {"fifo": os.mkfifo, "zero": lambda path: path.symlink_to("/dev/zero"), "directory": os.mkdir}


@pytest.mark.parametrize("kind", MAKE)
def test_what_is_no_regular_file_is_refused(tmp_path, kind):
    paths = []
    for name in (f"images/{RECORD.id}.png", f"gold/{RECORD.id}.png", "manifest.jsonl", "dataset.json"):
        paths.append(folder(tmp_path, [RECORD], name=f"folder {len(paths)}") / name)
    for name in ("pack.json", "records.arrow", "shard-00000.bin"):
        paths.append(pack(tmp_path, [RECORD], name=f"{len(paths)}.pack") / name)
    for path in paths:
        path.unlink()
        MAKE[kind](path)
    roots = [path.parents[len(path.relative_to(tmp_path).parts) - 2] for path in paths]
    said = bounded("read(path)", *roots).splitlines()
    for path, line in zip(paths, said, strict=True):
        assert line.startswith("DataError: ")
        assert str(path) in line


def test_a_link_to_a_regular_file_is_read(tmp_path):
    root = folder(tmp_path, [RECORD])
    image = root / f"images/{RECORD.id}.png"
    image.rename(tmp_path / "elsewhere.png")
    image.symlink_to(tmp_path / "elsewhere.png")
    assert np.array_equal(FolderDataset(root)[0].image, RECORD.image)


def test_postscript_is_no_image(tmp_path):
    # Pillow hands such files to Ghostscript, a program of its own.
    root = folder(tmp_path, [RECORD])
    image = root / f"images/{RECORD.id}.png"
    image.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n%%EOF\n")
    with pytest.raises(DataError, match="cannot be decoded"):
        FolderDataset(root)[0]


HEADERS = [
    {"id": "../a"}, {"id": 5}, {"id": ...}, {"id": "a\ud800"},
    {"suffix": "/x.png"}, {"suffix": ".exe"}, {"suffix": None}, {"suffix": ...},
    {"image_bytes": -1}, {"image_bytes": 10**9}, {"image_bytes": "5"}, {"image_bytes": True}, {"image_bytes": ...},
    {"shape": [9, 7]}, {"shape": [0, 7, 3]}, {"shape": [9, 7, 3.0]}, {"shape": "973"}, {"shape": [-9, -7, 3]},
    {"shape": [2**40, 2**40, 3]}, {"shape": None},
    {"masks": ["a", "a", "b"]}, {"masks": ["../a", "b", "c"]}, {"masks": [1, 2, 3]},
    {"masks": "abc"}, {"masks": {}}, {"masks": [["a"], "b", "c"]},
    {"gold": 1}, {"gold": None},
    {"pairs": [[0, 3, 1.0]]}, {"pairs": [[-1, 1, 1.0]]}, {"pairs": [[1, 1, 1.0]]}, {"pairs": [[0, 1, float("nan")]]},
    {"pairs": [[0, 1, -1.0]]}, {"pairs": [[0, 1, float("inf")]]}, {"pairs": [[0, 1]]}, {"pairs": [[0, 1, "1"]]},
    {"pairs": [0]}, {"pairs": 7}, {"pairs": [[0.0, 1, 1.0]]}, {"pairs": [[0, True, 1.0]]}, {"pairs": [[0, 1, 10**400]]},
    {"ranking": [0]}, {"ranking": [0, 0]}, {"ranking": [0, 9]}, {"ranking": ["a", "b"]}, {"ranking": 3},
    {"ranking": [[0], [1]]},
    {"group": 1}, {"group": "\ud800"}, {"split": "x"}, {"split": []}, {"meta": []}, {"meta": {"a": 1}},
    {"meta": {"a": "\udfff"}}, {"meta": ...},
]  # fmt: skip


@pytest.mark.parametrize("changes", HEADERS, ids=lambda changes: "{}={!r}".format(*next(iter(changes.items()))))
def test_a_header_outside_of_its_grammar_is_refused(tmp_path, changes):
    path = forged(tmp_path, **changes)
    with pytest.raises(DataError, match=r"shard-00000\.bin") as caught:
        PackDataset(path)[0]
    assert caught.value.kind
    with pytest.raises(DataError, match=r"shard-00000\.bin"):
        PackDataset(path).image_file(0)


@pytest.mark.parametrize(
    "changes", [{"shape": [7, 9, 3]}, {"masks": ["a", "b"], "pairs": []}, {"gold": False}], ids=str
)
def test_a_header_that_does_not_fit_its_pixels_is_refused(tmp_path, changes):
    with pytest.raises(DataError, match=r"shard-00000\.bin"):
        PackDataset(forged(tmp_path, **changes))[0]


@pytest.mark.parametrize("header", [b"", b"[]", b"{", b"\xff", b"[" * 100_000, b"7", b'{"id": "a"}'])
def test_a_header_that_is_no_object_is_refused(tmp_path, header):
    path = pack(tmp_path, [])
    put(path, body_of(header, b"", b""), encode_record(RECORD, None)[1])
    with pytest.raises(DataError, match=r"shard-00000\.bin"):
        PackDataset(path)[0]


def test_a_record_shorter_than_its_header_is_refused(tmp_path):
    path = pack(tmp_path, [])
    for body in (b"", b"\x05", LENGTH.pack(2**32 - 1) + b"{}"):
        put(path, body, encode_record(RECORD, None)[1])
        with pytest.raises(DataError, match=r"shard-00000\.bin"):
            PackDataset(path)[0]


@pytest.mark.parametrize(
    "changes",
    [{"offset": 2**63}, {"offset": 0}, {"offset": 2**64 - 1}, {"length": 2**32 - 1}, {"shard": 9}, {"id": "../a"},
     {"split": "x"}, {"id": None}, {"shard": None}, {"crc": None}],
    ids=str,
)  # fmt: skip
def test_an_index_that_leads_nowhere_is_refused(tmp_path, changes):
    path = pack(tmp_path, [RECORD])
    row = pa.ipc.open_file(str(path / RECORDS)).get_batch(0).to_pylist()[0]
    write_table(path / RECORDS, pa.Table.from_pylist([{**row, **changes}], SCHEMA))
    with pytest.raises(DataError, match=r"records.arrow|shard-0000"):
        [(source[0], source.describe(0)) for source in (PackDataset(path),)]


@pytest.mark.parametrize(
    "values",
    [{"classes": 5}, {"classes": [[1], [2]]}, {"classes": ["a", "\ud800"]}, {"classes": None}, {}, {"images": []},
     {"records_per_shard": "9"}, {"records_per_shard": 1.5}, {"records_per_shard": True}, {"extra": 1}],
    ids=str,
)  # fmt: skip
def test_a_description_outside_of_its_grammar_is_refused(tmp_path, values):
    path = pack(tmp_path, [RECORD])
    sound = {"classes": list(CLASSES), "records_per_shard": 2, "images": "files"}
    forged = {**sound, **values} if values else {}
    sum_ = f"{zlib.crc32(json.dumps(forged, sort_keys=True).encode()):08x}"
    (path / "pack.json").write_text(json.dumps({"version": 1, **forged, "checksum": sum_}))
    with pytest.raises(DataError, match=r"pack\.json"):
        PackDataset(path)


def test_a_record_whose_file_has_a_strange_suffix_is_not_packed(tmp_path):
    with PackWriter(tmp_path / "p", CLASSES) as writer:
        with pytest.raises(DataError, match=r"/\.\./x\.png"):
            writer.write(RECORD, ImageFile("/../x.png", encode_image(RECORD.image).data))
        writer.write(RECORD, None)


@pytest.mark.parametrize("form", ["folder", "coco"])
def test_a_link_in_the_target_leads_nowhere(tmp_path, form):
    from segdpo.data.formats.coco import write_coco
    from segdpo.files import path_inside

    (tmp_path / "outside").mkdir()
    (tmp_path / "out/images").mkdir(parents=True)
    (tmp_path / "out/images/sub").symlink_to(tmp_path / "outside")
    if form == "coco":
        with pytest.raises(DataError, match="outside"):
            write_coco(tmp_path / "out/d.json", [replace(RECORD, id="sub/a")], CLASSES)
    for name in ("images/sub/a", "../x", "/x", "images/../../x", "."):
        with pytest.raises(DataError, match="out"):
            path_inside(tmp_path / "out", name)
    assert path_inside(tmp_path / "out", "images", "a b.png") == tmp_path / "out/images/a b.png"
    assert not list((tmp_path / "outside").iterdir())


LINES = [
    '"ranking": null', '"ranking": 3', '"gold": 1', '"gold": []', '"masks": {}', '"group": "\\ud800"', '"meta": null',
    '"pairs": [{"chosen": "a", "rejected": "b", "weight": 1' + "0" * 400 + "}]", '"split": []', '"suffix": ["x"]',
    '"suffix": "/../../x.png"', '"meta": {"a": "\\udfff"}', '"pairs": [{"chosen": [], "rejected": "b"}]',
]  # fmt: skip


@pytest.mark.parametrize("keys", LINES, ids=lambda keys: keys[:60])
def test_a_line_outside_of_its_grammar_is_refused(tmp_path, keys):
    root = folder(tmp_path, [RECORD])
    (root / "manifest.jsonl").write_text(f'{{"id": "a", {keys}}}\n')
    with pytest.raises(DataError, match=r"manifest\.jsonl, line 1: "):
        FolderDataset(root)


def test_names_longer_than_the_file_system_allows_are_missing_files(tmp_path):
    root = folder(tmp_path, [RECORD])
    (root / "manifest.jsonl").write_text('{"id": "' + "a" * 300 + '"}\n')
    with pytest.raises(DataError, match=r"aaa\.png"):
        FolderDataset(root)[0]


REGIONS = [{"size": 5, "counts": [63]}, {"size": [9, 7], "counts": [1e999, 1]}, {"size": [9, 7], "counts": {"a": 1}},
           [[1e999] * 6], [[-8, 0, 1, 1, 2, 2]], [[0, 0, 15, 1, 2, 2]], 7, None, [7], [{}]]  # fmt: skip


@pytest.mark.parametrize("region", REGIONS, ids=str)
def test_a_region_that_is_none_is_refused(region):
    with pytest.raises(DataError, match=r"^where: "):
        decode_region(region, (9, 7), "where: ")


def test_a_polygon_may_leave_its_image_a_little():
    whole = decode_region([[-1, -1, 8, -1, 8, 10, -1, 10]], (9, 7), "")
    assert whole.all()


@pytest.mark.parametrize(
    "image",
    [{"id": 1}, {"id": 1, "file_name": ""}, {"id": [], "file_name": "a.png"}, {"id": 1, "file_name": 7}, 5,
     {"id": 1, "file_name": "a.png", "height": "9", "width": 7}, {"id": 1, "file_name": "a.png", "height": 9},
     {"id": 1, "file_name": "a.png", "height": 1e999, "width": 7}, {"id": 1, "file_name": "a.exe"}],
    ids=str,
)  # fmt: skip
def test_an_image_of_coco_outside_of_its_grammar_is_refused(tmp_path, image):
    path = tmp_path / "d.json"
    path.write_text(json.dumps({"images": [image], "categories": [{"id": 1, "name": "cat"}]}))
    with pytest.raises(DataError, match=r"d\.json"):
        CocoDataset(path)


@pytest.mark.parametrize(
    "header", [{"suffix": "/../x.png"}, {"id": "../a"}, {"pairs": 5}, {"masks": ["a"] * 3}], ids=str
)
def test_a_header_of_the_index_is_checked_before_a_pack_is_resumed(tmp_path, header):
    path = pack(tmp_path, [])
    body, sound = encode_record(RECORD, None)
    write_shard(path / "shard-00000.bin", [(body, {**sound, **header})])
    with pytest.raises(DataError, match=r"shard-00000\.bin, record 0"):
        PackWriter(path, CLASSES)


@pytest.mark.parametrize(
    "line",
    ["7", "[]", '{"id": "a"}', '{"id": [], "reason": "", "detail": "", "masks": 0, "pairs": 0, "diversity": {}}',
     '{"id": "a", "reason": "", "detail": "", "masks": "0", "pairs": 0, "diversity": {}}',
     '{"id": "a", "reason": "", "detail": "", "masks": 0, "pairs": 0, "diversity": {"s": {"masks": "1"}}}',
     '{"id": "a", "reason": "", "detail": "", "masks": 0, "pairs": 0, "diversity": []}', "[" * 100_000],
    ids=lambda line: line[:80],
)  # fmt: skip
def test_a_journal_outside_of_its_grammar_is_refused(tmp_path, line):
    path = tmp_path / "j.jsonl"
    path.write_text('{"settings": {}, "selected": [0], "finished": false}\n' + line + "\n")
    with pytest.raises(DataError, match=r"j\.jsonl"):
        Journal(path, {})


@pytest.mark.parametrize("selected", ["[-1]", '["a"]', "5", "[1e3]"])
def test_a_selection_of_a_journal_is_numbers(tmp_path, selected):
    path = tmp_path / "j.jsonl"
    path.write_text(f'{{"settings": {{}}, "selected": {selected}, "finished": false}}\n')
    with pytest.raises(DataError, match=r"j\.jsonl"):
        Journal(path, {})

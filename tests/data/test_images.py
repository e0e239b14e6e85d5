import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from image_bytes import DEFLATE, LZW, by_opencv, npy, npz, png, tiff, tiff_by_hand
from PIL import Image as Pillow

from segdpo.data.images import decode_image, eight_bit_file, encode_image, encode_mask, value_range_of
from segdpo.data.mask_files.decode import decode_mask
from segdpo.files import DataError

GREY = np.arange(60, dtype=np.uint8).reshape(6, 10)
RGB = np.random.default_rng(0).integers(0, 256, (6, 10, 3)).astype(np.uint8)


def save(pixels, mode=None, form="png", **options):
    buffer = io.BytesIO()
    image = pixels if isinstance(pixels, Pillow.Image) else Pillow.fromarray(pixels)
    (image.convert(mode) if mode else image).save(buffer, form, **options)
    return buffer.getvalue()


def png_chunks(*chunks):
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


def test_images_are_rgb_unless_asked_otherwise():
    assert np.array_equal(decode_image(save(RGB), "x"), RGB)
    assert np.array_equal(decode_image(save(GREY), "x"), np.stack([GREY] * 3, -1))
    assert np.array_equal(decode_image(save(GREY), "x", None), GREY[..., None])
    assert decode_image(save(RGB), "x", 1).shape == (6, 10, 1)
    assert decode_image(save(RGB, "RGBA"), "x", None).shape == (6, 10, 4)
    assert np.array_equal(decode_image(save(RGB, "RGBA"), "x"), RGB)
    assert np.array_equal(decode_image(save(RGB, form="bmp"), "x"), RGB)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_written_images_return(channels):
    image = np.random.default_rng(1).integers(0, 256, (5, 4, channels)).astype(np.uint8)
    file = encode_image(image)
    assert file.suffix == ".png"
    assert np.array_equal(decode_image(file.data, "x", None), image)


def test_two_channels_have_no_file():
    with pytest.raises(DataError, match=r"1, 3 or 4 .*2"):
        encode_image(np.zeros((2, 2, 2), np.uint8))


def test_masks_are_ids_however_they_are_stored():
    ids = np.arange(60, dtype=np.uint8).reshape(6, 10) % 4
    assert np.array_equal(decode_mask(encode_mask(GREY), "x"), GREY)
    palette = Pillow.fromarray(ids, "P")
    palette.putpalette([200, 0, 0, 0, 200, 0, 0, 0, 200, 9, 9, 9])
    assert np.array_equal(decode_mask(save(palette), "x"), ids)
    # One bit: white is class 1, though readers show it as 255.
    assert np.array_equal(decode_mask(save(Pillow.fromarray(ids > 1)), "x"), ids > 1)


@pytest.mark.parametrize("depth", [2, 4])
def test_grey_of_few_bits_is_not_stretched(depth):
    # Written by hand, since Pillow writes no such files: one row of four pixels 0, 1, 2, 3.
    row = {2: bytes([0, 0b00011011]), 4: bytes([0, 0x01, 0x23])}[depth]
    header = struct.pack(">IIBBBBB", 4, 1, depth, 0, 0, 0, 0)
    data = png_chunks((b"IHDR", header), (b"IDAT", zlib.compress(row)), (b"IEND", b""))
    assert decode_mask(data, "x").tolist() == [[0, 1, 2, 3]]


def test_colours_and_losses_are_no_ids():
    with pytest.raises(DataError, match=r"^m.png: .*class ids.* RGB") as caught:
        decode_mask(save(RGB), "m.png")
    assert caught.value.kind == "mask format"
    with pytest.raises(DataError, match="JPEG"):
        decode_mask(save(GREY, form="jpeg"), "m.jpg")


@pytest.mark.parametrize("data", [b"", b"no image", b"\x89PNG\r\n\x1a\n", save(RGB, form="jpeg")[:200]])
def test_what_is_no_image_is_named(data):
    with pytest.raises(DataError, match=r"^x.png: ") as raised:
        decode_image(data, "x.png")
    assert " object at 0x" not in str(raised.value)


@given(st.data())
def test_a_damaged_png_is_an_error(data):
    whole = save(RGB)
    position = data.draw(st.integers(0, 8 * len(whole) - 1))
    flipped = bytearray(whole)
    flipped[position // 8] ^= 1 << position % 8
    for damaged in (bytes(flipped), whole[: data.draw(st.integers(0, len(whole) - 1))]):
        with pytest.raises(DataError):
            decode_image(damaged, "x")
        with pytest.raises(DataError):
            decode_mask(damaged, "x")


WIDE = (np.arange(60).reshape(6, 10) * 1000 + 7).astype(np.uint16)
LOW, HIGH = 1000, 41_000
# round(255 (x − low) / (high − low)), clipped, by hand for some and in float64 for all.
STRETCHED = np.clip(np.rint(255 * (WIDE.astype(np.float64) - LOW) / (HIGH - LOW)), 0, 255).astype(np.uint8)
FLOATS = (WIDE / 8).astype(np.float32)
COLOURS = np.stack([WIDE, WIDE[::-1], WIDE // 2], -1)
DEEP = {
    "16-bit PNG": png(WIDE),
    "16-bit TIFF": tiff(WIDE),
    "16-bit TIFF, LZW": by_opencv(WIDE, ".tif", LZW),  # OpenCV writes LZW with a predictor
    "16-bit TIFF, deflate": by_opencv(WIDE, ".tif", DEFLATE),
    "32-bit TIFF": by_opencv(WIDE.astype(np.int32), ".tif"),
    "array": npy(WIDE),
    "array in the order of Fortran": npy(np.asfortranarray(WIDE.astype(np.int64))),
}


@pytest.mark.parametrize("kind", DEEP)
def test_deep_images_are_stretched_by_the_value_range(kind):
    assert STRETCHED[0, :4].tolist() == [0, 0, 6, 13]  # 7, 1007, 2007 and 3007: 255 · 2007 / 40000 is 12.8
    assert STRETCHED[4, 1:3].tolist() == [255, 255]
    assert np.array_equal(decode_image(DEEP[kind], "x", None, (LOW, HIGH))[..., 0], STRETCHED)
    assert np.array_equal(decode_image(DEEP[kind], "x", 3, (LOW, HIGH)), np.stack([STRETCHED] * 3, -1))


@pytest.mark.parametrize(
    "data", [by_opencv(FLOATS, ".tif"), by_opencv(FLOATS.astype(np.float64), ".tif", LZW), npy(FLOATS)]
)
def test_float_images_are_stretched(data):
    assert np.array_equal(decode_image(data, "x", 1, (LOW / 8, HIGH / 8))[..., 0], STRETCHED)


@pytest.mark.parametrize(
    "data", [png(COLOURS), by_opencv(COLOURS, ".tif", LZW), npy(COLOURS), npy(np.moveaxis(COLOURS, 2, 0))]
)
def test_deep_colours_keep_their_order(data):
    whole = (0, 65_535)
    expected = np.rint(COLOURS / 257).astype(np.uint8)
    assert np.array_equal(decode_image(data, "x", 3, whole), expected)
    # Pillow keeps the high byte alone, without a word.
    assert not np.array_equal(expected, COLOURS >> 8)


def test_signed_numbers_may_be_negative():
    data = by_opencv(np.array([[-1000, 0, 1000]], np.int16), ".tif")
    assert decode_image(data, "x", 1, (-1000, 1000)).ravel().tolist() == [0, 128, 255]  # 127.5 is rounded to even
    # 8 bits with a sign are more than a reader of 8 bits understands.
    assert decode_image(by_opencv(np.array([[-128, 127]], np.int8), ".tif"), "x", 1, (-128, 127)).ravel().tolist() == [
        0,
        255,
    ]


def test_without_a_value_range_the_error_names_it_and_what_was_found():
    for data, kind in ((png(WIDE), "uint16 from 7 to 59007"), (npy(FLOATS), "float32 from 0.875 to 7375.88")):
        with pytest.raises(DataError, match=rf"^x.png: .*{kind}.*value_range"):
            decode_image(data, "x.png")
    for wrong in ((5, 5), (5, 1), (0, float("inf")), (1,), 7):
        with pytest.raises(DataError, match="value_range"):
            decode_image(png(WIDE), "x", 3, wrong)
    with pytest.raises(DataError, match="2 are NaN"):
        decode_image(npy(np.array([[1, np.nan, np.inf]])), "x", 3, (0, 1))


def test_images_of_8_bits_ignore_the_value_range():
    assert np.array_equal(decode_image(save(RGB), "x", 3, (100, 200)), RGB)
    assert np.array_equal(decode_image(npy(RGB), "x"), RGB)
    assert np.array_equal(decode_image(npy(GREY > 30), "x", 1)[..., 0], (GREY > 30) * np.uint8(255))


def test_volumes_and_many_channels_are_refused():
    with pytest.raises(DataError, match="one slice a file"):
        decode_image(tiff(GREY, GREY), "x")
    with pytest.raises(DataError, match="one slice a file"):
        decode_image(tiff(WIDE, WIDE, WIDE), "x", 3, (0, 1))
    # A smaller second page is a preview.
    assert np.array_equal(decode_image(tiff(GREY, GREY[:2]), "x", 1)[..., 0], GREY)
    # ImageJ describes slices that follow the one page.
    with pytest.raises(DataError, match="one slice a file"):
        decode_image(tiff(GREY, description="ImageJ=1.53t\nimages=5\nslices=5\n"), "x")
    assert decode_image(tiff(GREY, description="ImageJ=1.53t\nimages=1\n"), "x").shape == (6, 10, 3)
    for shape in ((6, 10, 5), (2, 6, 10), (2, 3, 4, 5), (6,)):
        with pytest.raises(DataError, match=r"1, 3 or 4 channels"):
            decode_image(npy(np.zeros(shape, np.uint8)), "x")
    for data in (npy(np.zeros((0, 3), np.uint8)), npy(np.array([["a"]])), npz(a=GREY, b=GREY)):
        with pytest.raises(DataError, match=r"^x: Expected"):
            decode_image(data, "x")


def change_tag(data, tag, value):
    """Set the value of a short tag in a small TIFF of little-endian numbers."""
    position = data.index(tag.to_bytes(2, "little") + b"\x03\0\1\0\0\0", int.from_bytes(data[4:8], "little"))
    return data[: position + 8] + value.to_bytes(2, "little") + data[position + 10 :]


def test_tiffs_whose_numbers_mean_something_else_are_refused():
    data = by_opencv(COLOURS, ".tif")
    assert decode_image(data, "x", 3, (0, 65_535)).shape == (6, 10, 3)
    for tag, value, said in ((284, 2, "planar configuration 2"), (262, 8, "photometric 8"), (277, 2, "1, 3 or 4 .*2")):
        with pytest.raises(DataError, match=said):
            decode_image(change_tag(data, tag, value), "x", 3, (0, 65_535))
    with pytest.raises(DataError, match="sample format 3"):
        decode_image(change_tag(by_opencv(WIDE, ".tif"), 339, 3), "x", 3, (0, 65_535))


def test_tiles_and_strips_are_counted():
    tags = {256: 40, 257: 20, 258: 16, 259: 1, 262: 1, 277: 1}
    pixels = (np.arange(800).reshape(20, 40) * 80).astype(np.uint16)
    wide = np.pad(pixels, ((0, 12), (0, 8)))
    tiles = [wide[y : y + 16, x : x + 16].tobytes() for y in (0, 16) for x in (0, 16, 32)]
    strips = [pixels[y : y + 8].tobytes() for y in (0, 8, 16)]
    kinds = (({**tags, 322: 16, 323: 16, None: 324}, tiles), ({**tags, 278: 8, None: 273}, strips))
    for more, parts in kinds:
        image = decode_image(tiff_by_hand({**more}, *parts), "x", 1, (0, 255))
        assert np.array_equal(image[..., 0], pixels.clip(0, 255))
        with pytest.raises(DataError, match=rf"Expected {len(parts)} parts .* got {len(parts) - 1}"):
            decode_image(tiff_by_hand({**more}, *parts[:-1]), "x", 1, (0, 255))
    with pytest.raises(DataError, match=r"tiles of 429\d+"):
        decode_image(tiff_by_hand({**kinds[0][0], 322: 65_520, 323: 65_520}, *tiles), "x", 1, (0, 255))
    del more[257]
    with pytest.raises(DataError, match="cannot be decoded"):
        decode_image(tiff_by_hand({**more}, *strips), "x", 1, (0, 255))


@pytest.mark.parametrize("kind", DEEP)
def test_what_is_cut_short_is_an_error(kind):
    data = DEEP[kind]
    for length in (0, 9, 25, len(data) // 2, len(data) - 1):
        with pytest.raises(DataError, match=r"^x: "):
            decode_image(data[:length], "x", 3, (LOW, HIGH))


def test_large_headers_are_refused_before_anything_is_decoded():
    tiny = by_opencv(WIDE, ".tif")
    # OpenCV alone takes what follows in the file for further columns, and repeats rows.
    for tag in (256, 257):
        for size in (0, 11, 65_535):
            with pytest.raises(DataError, match="cannot be decoded"):
                decode_image(change_tag(tiny, tag, size), "x", 3, (0, 1))
    with pytest.raises(DataError, match="at most 178956970 pixels but got 4294836225"):
        decode_image(change_tag(change_tag(tiny, 256, 65_535), 257, 65_535), "x", 3, (0, 1))
    for depth in (8, 16):
        data = png_chunks((b"IHDR", struct.pack(">IIBBBBB", 65_536, 65_536, depth, 0, 0, 0, 0)), (b"IEND", b""))
        with pytest.raises(DataError, match="178956970"):
            decode_image(data, "x", 3, (0, 1))
    with pytest.raises(DataError, match="it begins with b'IEND'"):
        decode_image(png_chunks((b"IEND", b"")), "x")
    head = npy(np.zeros((6, 10), np.uint16))
    with pytest.raises(DataError, match=r"bytes for an array of uint16 \(60000, 60000\)"):
        decode_image(head.replace(b"(6, 10), }" + b" " * 10, b"(60000, 60000), }" + b" " * 3), "x", 3, (0, 1))


def test_a_value_range_is_proposed_from_a_sample(tmp_path):
    rng = np.random.default_rng(0)
    for k in range(5):
        (tmp_path / f"{k}.png").write_bytes(png(rng.integers(100, 1100, (50, 40)).astype(np.uint16)))
    paths = sorted(tmp_path.iterdir())
    low, high = value_range_of(paths)
    assert (low, high) == (low // 1, high // 1)
    assert 100 < low < 112
    assert 1088 < high < 1100
    # Of two images: the first and the last.
    (tmp_path / "2.png").write_bytes(png(np.full((50, 40), 9000, np.uint16)))
    assert value_range_of(paths, sample=2)[1] < 1100
    assert value_range_of(paths)[1] == 9000
    (tmp_path / "8.png").write_bytes(save(GREY))
    assert value_range_of([tmp_path / "8.png"]) is None
    assert value_range_of([tmp_path / "8.png", paths[2]]) == (9000, 9001)
    assert value_range_of([]) is None


def test_files_that_travel_have_8_bits(tmp_path):
    (tmp_path / "a.jpg").write_bytes(save(RGB, form="jpeg"))
    (tmp_path / "b.tif").write_bytes(tiff(WIDE))
    assert eight_bit_file(tmp_path / "a.jpg", None).data == (tmp_path / "a.jpg").read_bytes()
    file = eight_bit_file(tmp_path / "b.tif", (LOW, HIGH))
    assert file.suffix == ".png"
    assert np.array_equal(decode_image(file.data, "x", 1)[..., 0], STRETCHED)
    with pytest.raises(DataError, match="value_range"):
        eight_bit_file(tmp_path / "b.tif", None)

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image as Pillow

from segdpo.data.images import decode_image, encode_image, encode_mask
from segdpo.data.mask_files import decode_mask
from segdpo.files import DataError

GREY = np.arange(60, dtype=np.uint8).reshape(6, 10)
RGB = np.random.default_rng(0).integers(0, 256, (6, 10, 3)).astype(np.uint8)


def save(pixels, mode=None, form="png", **options):
    buffer = io.BytesIO()
    image = pixels if isinstance(pixels, Pillow.Image) else Pillow.fromarray(pixels)
    (image.convert(mode) if mode else image).save(buffer, form, **options)
    return buffer.getvalue()


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
    import struct
    import zlib

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    row = {2: bytes([0, 0b00011011]), 4: bytes([0, 0x01, 0x23])}[depth]
    header = struct.pack(">IIBBBBB", 4, 1, depth, 0, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(row)) + chunk(b"IEND", b"")
    assert decode_mask(png, "x").tolist() == [[0, 1, 2, 3]]


def test_colours_and_losses_are_no_ids():
    with pytest.raises(DataError, match=r"^m.png: .*class ids.* RGB") as caught:
        decode_mask(save(RGB), "m.png")
    assert caught.value.kind == "mask format"
    with pytest.raises(DataError, match="JPEG"):
        decode_mask(save(GREY, form="jpeg"), "m.jpg")
    with pytest.raises(DataError, match="8 bits"):
        decode_image(save(GREY.astype(np.uint16)), "x")


@pytest.mark.parametrize("data", [b"", b"no image", b"\x89PNG\r\n\x1a\n", save(RGB, form="jpeg")[:200]])
def test_what_is_no_image_is_named(data):
    with pytest.raises(DataError, match=r"^x.png: "):
        decode_image(data, "x.png")


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

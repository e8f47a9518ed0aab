"""decode_image on every kind of file against hand-made arrays; damaged and oversized ones are refused by name."""

from __future__ import annotations

import struct
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from sctune.data.decode import CorruptImageError, Decoding, decode_image
from sctune.errors import DataError

GREY = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4
RGB = np.stack([GREY, GREY[::-1], GREY.T], axis=-1)


def encoded(image: Image.Image, kind: str = "PNG", **options: int) -> bytes:
    stream = BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def npy(array: NDArray[np.generic]) -> bytes:
    stream = BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def grey(values: NDArray[np.generic]) -> NDArray[np.uint8]:
    return np.stack([values] * 3, axis=-1).astype(np.uint8)


def test_grey_rgb_and_their_relatives() -> None:
    alpha = Image.fromarray(np.dstack([RGB, np.full_like(GREY, 255)]))
    palette = Image.fromarray(RGB).quantize(64)
    cases = {
        "grey": (encoded(Image.fromarray(GREY)), grey(GREY)),
        "rgb": (encoded(Image.fromarray(RGB)), RGB),
        "bmp": (encoded(Image.fromarray(RGB), "BMP"), RGB),
        "tif": (encoded(Image.fromarray(RGB), "TIFF"), RGB),
        "alpha": (encoded(alpha), RGB),
        "palette": (encoded(palette), np.asarray(palette.convert("RGB"))),
        "bilevel": (encoded(Image.fromarray(GREY > 99)), grey((GREY > 99) * 255)),
    }
    for name, (content, expected) in cases.items():
        np.testing.assert_array_equal(decode_image(content, Decoding(8)), expected, err_msg=name)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled_by_257(kind: str) -> None:
    deep = GREY.astype(np.uint16) * 257 + 100
    np.testing.assert_array_equal(decode_image(encoded(Image.fromarray(deep), kind), Decoding(8)), grey(GREY))
    white = np.full((4, 4), 65535, np.uint16)
    assert decode_image(encoded(Image.fromarray(white), kind), Decoding(4)).min() == 255


def test_arrays() -> None:
    six = np.concatenate([RGB, RGB[::-1]], axis=-1)
    cases = {
        "uint8 grey": (GREY, grey(GREY)),
        "one band": (GREY[..., None], grey(GREY)),
        "six float bands": (six.astype(np.float64), RGB),
        "uint16": (GREY.astype(np.uint16) * 257, grey(GREY)),
        "int64": (RGB.astype(np.int64), RGB),
        "bool": (GREY > 99, grey((GREY > 99) * 255)),
        "float zeros and ones": ((GREY > 99).astype(np.float32), grey(GREY > 99)),
        "fortran order": (np.asfortranarray(RGB), RGB),
    }
    for name, (array, expected) in cases.items():
        np.testing.assert_array_equal(decode_image(npy(array), Decoding(8)), expected, err_msg=name)


@pytest.mark.parametrize(
    ("array", "says"),
    [
        (GREY / 255.0, "multiply by 255"),
        (GREY.astype(np.float32) + 100, "from 100 to 352"),
        (GREY.astype(np.int32) - 1, "from -1"),
        (np.full((4, 4), np.nan), "finite numbers are needed"),
        (np.zeros((4, 4, 2)), r"shape \[4, 4, 2\]"),
        (np.zeros((2, 4, 4, 3)), "shape"),
        (np.zeros((0, 4)), "shape"),
        (np.array([["a", "b"]]), "numbers are needed"),
        (np.zeros((2, 2), complex), "numbers are needed"),
    ],
)
def test_arrays_of_other_ranges_and_shapes_are_refused(array: NDArray[np.generic], says: str) -> None:
    with pytest.raises(CorruptImageError, match=says):
        decode_image(npy(array), Decoding(8))


def test_pickled_arrays_are_never_loaded() -> None:
    stream = BytesIO()
    np.save(stream, np.array([[{}]], dtype=object), allow_pickle=True)
    with pytest.raises(CorruptImageError, match="numbers are needed"):
        decode_image(stream.getvalue(), Decoding(8))


def test_file_and_bytes_give_the_same(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (37, 53, 3), dtype=np.uint8)
    for name, content in {
        "a.jpg": encoded(Image.fromarray(pixels), "JPEG", quality=80),
        "b.PNG": encoded(Image.fromarray(pixels)),
        "c.npy": npy(pixels),
        "wrong-ending.bmp": npy(pixels),
    }.items():
        (tmp_path / name).write_bytes(content)
        for resize in ("stretch", "crop", "pad"):
            from_file = decode_image(tmp_path / name, Decoding(24, resize))
            np.testing.assert_array_equal(from_file, decode_image(content, Decoding(24, resize)))
            assert from_file.shape == (24, 24, 3) and from_file.dtype == np.uint8 and from_file.flags.writeable


def test_resize_modes() -> None:
    wide = np.zeros((10, 30), np.uint8)
    wide[:, :10], wide[:, 10:20], wide[:, 20:] = 50, 100, 200
    content = encoded(Image.fromarray(wide))
    assert (decode_image(content, Decoding(10, "crop")) == 100).all()
    padded = decode_image(content, Decoding(30, "pad"))[..., 0]
    np.testing.assert_array_equal(padded[10:20], wide)
    assert not padded[:10].any() and not padded[20:].any()
    stretched = decode_image(content, Decoding(10, "stretch"))[..., 0]
    assert (stretched[:, [0, 4, 9]] == [50, 100, 200]).all()
    expected = np.asarray(Image.fromarray(wide).resize((10, 10), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(stretched, expected)
    tall = decode_image(encoded(Image.fromarray(wide.T)), Decoding(10, "crop"))
    assert (tall == 100).all()


def test_grey_resized_alone_equals_three_equal_bands() -> None:
    rng = np.random.default_rng(1)
    one = rng.integers(0, 256, (41, 29), dtype=np.uint8)
    three = decode_image(encoded(Image.fromarray(grey(one))), Decoding(17))
    np.testing.assert_array_equal(decode_image(encoded(Image.fromarray(one)), Decoding(17)), three)


def test_damaged_files_are_named(tmp_path: Path) -> None:
    good = encoded(Image.fromarray(RGB))
    for name, content in {
        "cut.png": good[: len(good) // 2],
        "text.png": b"no image",
        "empty.jpg": b"",
        "cut.npy": npy(GREY)[:-1],
        "head.npy": npy(GREY)[:20],
    }.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(CorruptImageError, match=name) as caught:
            decode_image(tmp_path / name, Decoding(8))
        assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match="cannot read") as missing:
        decode_image(tmp_path / "gone.png", Decoding(8))
    assert not isinstance(missing.value, CorruptImageError)


@pytest.mark.parametrize("side", [9000, 40000])
def test_oversized_images_are_refused_before_they_are_unfolded(side: int) -> None:
    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n"
    for name, body in ((b"IHDR", header), (b"IDAT", zlib.compress(b"\0")), (b"IEND", b"")):
        png += struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
    with pytest.raises(CorruptImageError, match="64 million"):
        decode_image(png, Decoding(8))


def test_an_array_that_claims_too_much_is_refused() -> None:
    stream = BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "|u1", "fortran_order": False, "shape": (10**6, 10**6)})
    with pytest.raises(CorruptImageError, match="64 million"):
        decode_image(stream.getvalue(), Decoding(8))
    stream = BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "<f8", "fortran_order": False, "shape": (8000, 8000, 999)})
    with pytest.raises(CorruptImageError, match="cut off"):
        decode_image(stream.getvalue(), Decoding(8))

"""What a file holds is what is decoded: depth, orientation, layout, pages, transparency, in every container."""

from __future__ import annotations

import struct
import zlib
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image

from sctune.config import TrialConfig
from sctune.data.decode import CorruptImageError, Decoding, decode, decode_image, image_size, open_image
from sctune.data.depth import find_range
from sctune.errors import ConfigError, DataError

SCENE = (np.arange(48 * 64, dtype=np.uint32).reshape(48, 64) * 7919 % 4000 + 40).astype(np.uint16)
"""12-bit values of a camera, 40 to 4039."""
LEVELS = (SCENE.astype(np.uint32) * 255 // 4095).astype(np.uint8)
COLOURS = np.stack([SCENE, SCENE[::-1], SCENE[:, ::-1]], axis=-1)
DATA = TrialConfig().data


def saved(array: NDArray[Any] | Image.Image, kind: str, **options: Any) -> bytes:
    stream = BytesIO()
    image = array if isinstance(array, Image.Image) else Image.fromarray(array)
    image.save(stream, kind, **options)
    return stream.getvalue()


def npy(array: NDArray[Any]) -> bytes:
    stream = BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def tiff(array: NDArray[Any], **options: Any) -> bytes:
    stream = BytesIO()
    tifffile.imwrite(stream, array, **options)
    return stream.getvalue()


def wide_png(array: NDArray[np.uint16]) -> bytes:
    """[H, W, C] of 16 bits, C = 2 and 4 with transparency; written by hand, since Pillow writes none."""
    height, width, bands = array.shape

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    kind = {2: 4, 3: 2, 4: 6}[bands]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in array)
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def whole(content: bytes, value_range: str = "bits:12", **options: Any) -> NDArray[np.uint8]:
    """In its own size: 64 px wide, padded to a square above and below."""
    pixels = decode_image(content, Decoding(64, "pad", value_range, **options))
    assert not pixels[:8].any() and not pixels[56:].any()
    return pixels[8:56]


GREY_FILES = {
    "png": saved(SCENE, "PNG"),
    "tiff": saved(SCENE, "TIFF"),
    "tiff, 32 bits": saved(SCENE.astype(np.int32), "TIFF"),
    "tiff, floating point": saved(SCENE.astype(np.float32), "TIFF"),
    "npy": npy(SCENE),
    "npy, big endian": npy(SCENE.astype(">u2")),
    "npy, 64 bits": npy(SCENE.astype(np.int64)),
    "npy, one band first": npy(SCENE[None]),
    "npy, one band last": npy(SCENE[..., None]),
    "png, grey with alpha": wide_png(np.stack([SCENE, np.full_like(SCENE, 65535)], axis=-1)),
}
COLOUR_FILES = {
    "png": wide_png(COLOURS),
    "png, opaque alpha": wide_png(np.dstack([COLOURS, np.full_like(SCENE, 65535)])),
    "tiff": tiff(COLOURS, photometric="rgb"),
    "tiff, lzw": tiff(COLOURS, photometric="rgb", compression="lzw"),
    "tiff, planes": tiff(np.moveaxis(COLOURS, -1, 0), photometric="rgb", planarconfig="separate"),
    "npy, bands last": npy(COLOURS),
    "npy, bands first": npy(np.moveaxis(COLOURS, -1, 0)),
}


@pytest.mark.parametrize("name", GREY_FILES)
def test_twelve_bits_keep_their_grey_levels_in_every_container(name: str) -> None:
    np.testing.assert_array_equal(whole(GREY_FILES[name]), np.stack([LEVELS] * 3, axis=-1))


@pytest.mark.parametrize("name", COLOUR_FILES)
def test_colours_of_more_than_8_bits_are_not_cut(name: str) -> None:
    expected = (COLOURS.astype(np.uint32) * 255 // 4095).astype(np.uint8)
    np.testing.assert_array_equal(whole(COLOUR_FILES[name]), expected)


def test_eight_bits_stay_what_they_are_whatever_the_range() -> None:
    for content in (saved(LEVELS, "PNG"), npy(LEVELS), saved(LEVELS, "TIFF")):
        for value_range in ("bits:12", "bits:8", "container", "0,1"):
            np.testing.assert_array_equal(whole(content, value_range)[..., 0], LEVELS)


def test_eight_bit_values_in_wider_containers_are_kept() -> None:
    for content in (saved(LEVELS.astype(np.uint16), "PNG"), saved(LEVELS.astype(np.int32), "TIFF")):
        np.testing.assert_array_equal(whole(content, "bits:8")[..., 0], LEVELS)


def test_floating_point_is_scaled_by_the_ends_and_a_hair_more_is_white() -> None:
    unit = (LEVELS / np.float32(255)).astype(np.float32)
    unit[3, 5] = 1.0002
    expected = LEVELS.copy()
    expected[3, 5] = 255
    np.testing.assert_array_equal(whole(saved(unit, "TIFF"), "0,1")[..., 0], expected)
    volts = unit * 5 - 2
    np.testing.assert_array_equal(whole(npy(volts), "-2,3")[..., 0], expected)


UNIT = np.stack([LEVELS, LEVELS[::-1], LEVELS[:, ::-1]], axis=-1) / 255
FLOAT_FILES = {
    "32 bits": tiff(UNIT.astype("f4"), photometric="rgb"),
    "64 bits": tiff(UNIT, photometric="rgb"),
    "16 bits": tiff(UNIT.astype("f2"), photometric="rgb"),
    "planes": tiff(np.moveaxis(UNIT, -1, 0).astype("f4"), photometric="rgb", planarconfig="separate"),
    "tiles, deflated": tiff(UNIT.astype("f4"), photometric="rgb", tile=(16, 16), compression="zlib", predictor=True),
    "big endian": tiff(UNIT.astype("f4"), photometric="rgb", byteorder=">"),
    "BigTIFF": tiff(UNIT.astype("f4"), photometric="rgb", bigtiff=True),
    "opaque alpha": tiff(
        np.dstack([UNIT, np.ones((48, 64))]).astype("f4"), photometric="rgb", extrasamples=["unassalpha"]
    ),
}


@pytest.mark.parametrize("name", FLOAT_FILES)
def test_colours_in_floating_point_are_read_as_one_channel_is(name: str, tmp_path: Path) -> None:
    content = FLOAT_FILES[name]
    np.testing.assert_array_equal(whole(content, "0,1"), np.rint(UNIT * 255))
    with pytest.raises(CorruptImageError, match=r"say so with data\.range=0,1"):
        decode(content, Decoding(64))
    (tmp_path / "a.tif").write_bytes(content)
    assert image_size(tmp_path / "a.tif") == (64, 48)
    assert find_range([(tmp_path, ["a.tif"])], DATA).range == "0,1"


def test_other_numbers_in_a_tiff_are_read_or_refused() -> None:
    for kind in ("f2", "f8", "u8", "i8"):
        np.testing.assert_array_equal(whole(tiff(LEVELS.astype(kind)), "bits:8")[..., 0], LEVELS)
    dim = (LEVELS // 2).astype("i1")
    np.testing.assert_array_equal(whole(tiff(dim), "bits:8")[..., 0], dim)
    with pytest.raises(CorruptImageError, match="values from -59 to 65"):
        decode(tiff(dim - np.int8(60)), Decoding(8, range="bits:8"))


def test_transparent_colours_in_floating_point_are_refused() -> None:
    clear = np.dstack([UNIT, UNIT[..., 0]]).astype("f4")
    content = tiff(clear, photometric="rgb", extrasamples=["unassalpha"])
    with pytest.raises(CorruptImageError, match="transparent pixels"):
        decode(content, Decoding(8, range="0,1"))
    np.testing.assert_array_equal(whole(content, "0,1", alpha="drop"), np.rint(UNIT * 255))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (tiff(np.dstack([COLOURS, SCENE]), photometric="separated"), "colours of the kind SEPARATED"),
        (tiff(COLOURS, photometric="cielab"), "colours of the kind CIELAB"),
        (tiff(SCENE, photometric="cfa"), "colours of the kind CFA"),
        (tiff(UNIT, photometric="minisblack", planarconfig="contig"), "3 samples a pixel, .* 2 are no colours"),
        (tiff(SCENE.astype("c8")), "samples of type complex64"),
        (FLOAT_FILES["32 bits"][:-9], "cannot be decoded: failed to read"),
        (tiff(UNIT * 1.5, photometric="rgb"), "values from 0.0.* to 1.4.*, and data.range=0,1"),
        (tiff(UNIT * np.inf, photometric="rgb"), "finite numbers"),
    ],
)
def test_what_a_tiff_may_not_hold_is_refused(content: bytes, says: str) -> None:
    with np.errstate(all="ignore"), pytest.raises(CorruptImageError, match=says):
        decode(content, Decoding(64, range="0,1"))


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_damaged_count_costs_neither_time_nor_memory() -> None:
    content = bytearray(FLOAT_FILES["32 bits"])
    with tifffile.TiffFile(BytesIO(content)) as file:
        for tag in file.pages[0].tags:
            damaged = bytearray(content)
            struct.pack_into("<I", damaged, tag.offset + 4, 2**30)
            with pytest.raises(CorruptImageError, match="cut off or damaged"):
                decode(bytes(damaged), Decoding(8, range="0,1"))
    tiles = tiff(UNIT.astype("f4"), photometric="rgb", tile=(16, 16))
    with tifffile.TiffFile(BytesIO(tiles)) as file:
        wide = bytearray(tiles)
        for name in ("TileWidth", "TileLength"):
            tag = file.pages[0].tags[name]
            struct.pack_into("<HII", wide, tag.offset + 2, 4, 1, 16_000)
    with pytest.raises(CorruptImageError, match="16000 x 16000 pixels; at most 64 million"):
        decode(bytes(wide), Decoding(8, range="0,1"))
    # eight bytes of a number take twice the memory of four
    with pytest.raises(CorruptImageError, match="64 x 48, 3 x float64 each, pixels; at most 4000"):
        decode(FLOAT_FILES["64 bits"], Decoding(8, range="0,1", pixel_limit=4000))
    assert decode(FLOAT_FILES["32 bits"], Decoding(8, range="0,1", pixel_limit=4000)).width == 64


@pytest.mark.parametrize(
    ("content", "value_range", "says"),
    [
        (npy(SCENE), "bits:10", "values from 4. to 4039, and data.range=bits:10 reads 0 to 1023"),
        (npy(SCENE), "bits:8", "reads 0 to 255"),
        (saved((LEVELS / np.float32(255)).astype(np.float32), "TIFF"), "bits:8", "data.range=0,1"),
        (saved((LEVELS / np.float32(255)).astype(np.float32), "TIFF"), "container", "data.range=0,1"),
        (npy(SCENE.astype(np.int32) - 1000), "bits:12", "values from -9"),
        (npy(SCENE / 1000.0), "0,1", "another depth, exposure or unit"),
        (npy(np.full((8, 9), np.inf)), "0,1", "finite numbers"),
    ],
)
def test_what_the_range_does_not_hold_is_refused_and_never_cut(content: bytes, value_range: str, says: str) -> None:
    with pytest.raises(CorruptImageError, match=says):
        decode(content, Decoding(64, range=value_range))


def test_a_few_hot_pixels_are_white_and_told() -> None:
    hot = SCENE.copy()
    hot[0, :3] = 65535
    found = decode(npy(hot), Decoding(64, "pad", "bits:12"))
    assert (found.pixels[8, :3] == 255).all()
    assert found.notes == ("3 hot pixels of up to 65535 count as 4095",)
    hot[0, :5] = 65535
    with pytest.raises(CorruptImageError, match="65535"):
        decode(npy(hot), Decoding(64, "pad", "bits:12"))


def test_a_range_far_too_wide_and_a_constant_image_are_told() -> None:
    (note,) = decode(npy(LEVELS.astype(np.uint16)), Decoding(64, range="bits:12")).notes
    assert note.startswith("nearly black: values up to ") and "4095" in note
    assert decode(saved(np.full((9, 8), 77, np.uint8), "PNG"), Decoding(8)).notes == ("constant: every pixel is 77",)


@pytest.mark.parametrize("text", ["12", "bits:0", "bits:33", "bits:x", "1,0", "0,nan", "0,1,2", "", "Auto"])
def test_a_range_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"data\.range=.*write auto, container, bits:N"):
        TrialConfig().override({"data.range": text})


def found(folder: Path, files: dict[str, bytes]) -> str:
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return find_range([(folder, list(files))], DATA).range


def test_auto_finds_the_depth_that_the_normals_use(tmp_path: Path) -> None:
    hot = SCENE.copy()
    hot[0, :3] = 65535
    unit = (SCENE / np.float32(4039)).astype(np.float32)
    cases: dict[str, tuple[dict[str, bytes], str]] = {
        "8 bits": ({"a.png": saved(LEVELS, "PNG"), "b.jpg": saved(LEVELS, "JPEG")}, "bits:8"),
        "8 in 16": ({"a.png": saved(LEVELS.astype(np.uint16), "PNG")}, "bits:8"),
        "8 in 32": ({"a.tif": saved(LEVELS.astype(np.int32), "TIFF")}, "bits:8"),
        "10": ({"a.png": saved(SCENE // 4, "PNG")}, "bits:10"),
        "12, hot pixels": ({"a.png": saved(hot, "PNG"), "b.png": saved(LEVELS, "PNG")}, "bits:12"),
        "12, colours": ({"a.png": wide_png(COLOURS), "b.tif": tiff(COLOURS, photometric="rgb")}, "bits:12"),
        "one of many": ({"a.npy": npy(SCENE // 16), "b.npy": npy(SCENE * 4)}, "bits:14"),
        "16": ({"a.tif": saved(SCENE * 16, "TIFF")}, "bits:16"),
        "floating point": ({"a.tif": saved(unit, "TIFF")}, "0,1"),
        "a hair over 1": ({"a.tif": saved(unit * np.float32(1.0002), "TIFF")}, "0,1"),
        "means of 8 bits": ({"a.npy": npy(LEVELS + 0.25)}, "bits:8"),
    }
    for name, (files, expected) in cases.items():
        assert found(tmp_path / name.replace(" ", "-"), files) == expected, name


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({"a.npy": npy(SCENE / 1000.0)}, r"in a unit of their own; .*--set data.range=0.04,4.03"),
        ({"a.npy": npy(SCENE.astype(np.int32) - 100)}, r"values from -60 to 39\d\d; .*--set data.range=-60"),
        ({"a.npy": npy(SCENE.astype(np.int64) * 100)}, "--set data.range="),
        ({"a.npy": npy(SCENE / 4095.0), "b.npy": npy(SCENE)}, "some normal images hold values up to 1, others up to"),
    ],
)
def test_auto_asks_where_the_values_do_not_say_it(tmp_path: Path, files: dict[str, bytes], says: str) -> None:
    with pytest.raises(DataError, match=says):
        found(tmp_path, files)


def test_normals_of_two_depths_are_told(tmp_path: Path) -> None:
    for name, array in {"a.npy": SCENE, "b.npy": SCENE, "dark.npy": SCENE // 16}.items():
        (tmp_path / name).write_bytes(npy(array))
    (line,) = find_range([(tmp_path, ["a.npy", "b.npy", "dark.npy"])], DATA).warnings
    assert "1 of 3 training normals" in line and "dark.npy" in line


UPRIGHT = np.zeros((48, 64), np.uint8)
UPRIGHT[:24, :32], UPRIGHT[:24, 32:], UPRIGHT[24:, :32] = 240, 160, 80
STORED = {
    1: UPRIGHT,
    2: UPRIGHT[:, ::-1],
    3: UPRIGHT[::-1, ::-1],
    4: UPRIGHT[::-1],
    5: UPRIGHT.T,
    6: np.rot90(UPRIGHT),
    7: np.rot90(UPRIGHT, 2).T,
    8: np.rot90(UPRIGHT, -1),
}
"""How a picture lies in a file whose EXIF orientation turns it upright (EXIF 2.32, 4.6.4)."""


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP", "TIFF, 16 bits", "PNG, 16-bit colours"])
def test_every_orientation_is_turned_upright(kind: str, orientation: int, tmp_path: Path) -> None:
    stored = np.ascontiguousarray(STORED[orientation])
    exif = Image.Exif()
    exif[274] = orientation
    if kind == "TIFF, 16 bits":
        content = saved(stored.astype(np.uint16) * 257, "TIFF", exif=exif)
    elif kind == "PNG, 16-bit colours":
        plain = wide_png(np.stack([stored.astype(np.uint16) * 257] * 3, axis=-1))
        body = exif.tobytes().removeprefix(b"Exif\0\0")
        chunk = struct.pack(">I", len(body)) + b"eXIf" + body + struct.pack(">I", zlib.crc32(b"eXIf" + body))
        content = plain[:33] + chunk + plain[33:]
    else:
        options = {"lossless": True} if kind == "WEBP" else {"quality": 95} if kind == "JPEG" else {}
        content = saved(stored, kind, exif=exif, **options)
    difference = whole(content, "container")[..., 0].astype(int) - UPRIGHT
    assert np.abs(difference).max() <= (12 if kind == "JPEG" else 0)
    (tmp_path / "picture").write_bytes(content)
    assert image_size(tmp_path / "picture") == (64, 48)
    assert open_image(content).size == (64, 48)
    assert (decode(content, Decoding(8)).width, decode(content, Decoding(8)).height) == (64, 48)


def test_white_is_zero_at_every_depth() -> None:
    wide = LEVELS.astype(np.uint16) * 257
    eight, sixteen = tiff(LEVELS, photometric="miniswhite"), tiff(wide, photometric="miniswhite")
    np.testing.assert_array_equal(whole(eight)[..., 0], 255 - LEVELS)
    np.testing.assert_array_equal(whole(sixteen, "bits:16")[..., 0], 255 - LEVELS)
    twelve = tiff(SCENE, photometric="miniswhite")
    np.testing.assert_array_equal(whole(twelve, "bits:12")[..., 0], 255 - LEVELS)


def pages(*arrays: NDArray[Any], kind: str = "TIFF") -> bytes:
    first, *others = (Image.fromarray(array) for array in arrays)
    return saved(first, kind, save_all=True, append_images=others, **({"lossless": True} if kind == "WEBP" else {}))


@pytest.mark.parametrize("kind", ["TIFF", "WEBP", "PNG"])
def test_pages_and_frames_are_named_and_chosen(kind: str) -> None:
    first, second = np.stack([LEVELS] * 3, axis=-1), np.stack([LEVELS[::-1]] * 3, axis=-1)
    content = pages(first, second, kind=kind)
    with pytest.raises(CorruptImageError, match=r"2 pages or frames; name .* --set data.page=1"):
        decode(content, Decoding(8))
    np.testing.assert_array_equal(whole(content, page=1), first)
    np.testing.assert_array_equal(whole(content, page=2), second)
    with pytest.raises(CorruptImageError, match=r"data.page=3, and it has 2 page"):
        decode(content, Decoding(8, page=3))
    np.testing.assert_array_equal(whole(saved(first, kind, lossless=True), page=1), first)


def test_pages_of_wide_colours_and_thumbnails_that_are_no_pages() -> None:
    stream = BytesIO()
    with tifffile.TiffWriter(stream) as writer:
        writer.write(COLOURS, photometric="rgb", subfiletype=0)
        writer.write(COLOURS[::4, ::4], photometric="rgb", subfiletype=1)
    assert whole(stream.getvalue()).shape == (48, 64, 3)
    two = BytesIO()
    with tifffile.TiffWriter(two) as writer:
        writer.write(COLOURS, photometric="rgb")
        writer.write(COLOURS[::-1], photometric="rgb")
    with pytest.raises(CorruptImageError, match="2 pages"):
        decode(two.getvalue(), Decoding(8, range="bits:12"))
    np.testing.assert_array_equal(whole(two.getvalue(), page=2), whole(two.getvalue(), page=1)[::-1])


def test_transparency_is_refused_or_laid_on_what_was_asked_for() -> None:
    rgba = np.dstack([np.full((48, 64, 3), 200, np.uint8), np.full((48, 64), 255, np.uint8)])
    rgba[:, 32:, 3] = 0
    palette = Image.fromarray(rgba[..., :3]).quantize(4)
    files = {
        "rgba": saved(rgba, "PNG"),
        "webp": saved(rgba, "WEBP", lossless=True, exact=True),
        "wide": wide_png(rgba.astype(np.uint16) * 257),
        "grey with alpha": saved(Image.fromarray(rgba).convert("LA"), "PNG"),
    }
    for name, content in files.items():
        with pytest.raises(CorruptImageError, match=r"transparent pixels.*data.alpha=black"):
            decode(content, Decoding(8, range="bits:16"))
        for alpha, behind in (("black", 0), ("white", 255), ("drop", 200)):
            pixels = whole(content, "bits:16", alpha=alpha)
            assert (pixels[:, :32] == 200).all() and (pixels[:, 32:] == behind).all(), (name, alpha)
    clear = saved(palette, "PNG", transparency=0)
    with pytest.raises(CorruptImageError, match="transparent"):
        decode(clear, Decoding(8))


def test_the_pixel_limit_is_a_setting() -> None:
    content = saved(np.zeros((30, 40), np.uint8), "PNG")
    with pytest.raises(CorruptImageError, match=r"40 x 30 pixels; at most 1199 are read.*data.pixel_limit"):
        decode(content, Decoding(8, pixel_limit=1199))
    assert decode(content, Decoding(8, pixel_limit=1200)).width == 40


def test_large_jpegs_are_decoded_smaller_and_look_the_same() -> None:
    ramp = np.add.outer(np.sin(np.arange(1024) / 60), np.cos(np.arange(1280) / 70))
    content = saved(((ramp + 2) * 60).astype(np.uint8), "JPEG", quality=90)
    small, full = decode(content, Decoding(64)), decode(content, Decoding(64, reduce=False))
    assert (small.width, small.height) == (full.width, full.height) == (1280, 1024)
    difference = np.abs(small.pixels.astype(int) - full.pixels)
    assert 0 < difference.max() <= 4 and difference.mean() < 1
    # one that is not large is decoded whole
    little = saved(((ramp[:200, :250] + 2) * 60).astype(np.uint8), "JPEG", quality=90)
    np.testing.assert_array_equal(decode_image(little, Decoding(64)), decode_image(little, Decoding(64, reduce=False)))


def test_crop_says_what_share_it_keeps() -> None:
    content = saved(LEVELS, "PNG")
    assert decode(content, Decoding(16, "crop")).notes == ("resize=crop keeps 75% of the picture",)
    assert decode(content, Decoding(16)).notes == ()


def test_bands_that_cannot_be_told_from_pixels_are_refused() -> None:
    for shape in ((3, 9, 3), (2, 9, 9), (9, 9, 2), (9, 2, 9)):
        with pytest.raises(CorruptImageError, match=r"an array of shape \["):
            decode(npy(np.zeros(shape, np.uint8)), Decoding(8))

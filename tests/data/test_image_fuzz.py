"""Damaged images, hostile folders and CSV files, damaged cache entries: one line, or what was meant."""

from __future__ import annotations

import os
import random
import struct
import zlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from sctune.data.catalog import open_dataset
from sctune.data.decode import CorruptImageError, Decoding, decode_image, npy_shape
from sctune.data.images import ImageCache
from sctune.errors import DataError

PIXELS = np.random.default_rng(0).integers(0, 255, (40, 50, 3), dtype=np.uint8)


def encoded(kind: str, **options: str) -> bytes:
    stream = BytesIO()
    if kind == "NPY":
        np.save(stream, PIXELS)
    else:
        Image.fromarray(PIXELS).save(stream, kind, **options)
    return stream.getvalue()


FILES = {kind: encoded(kind) for kind in ("PNG", "JPEG", "BMP", "TIFF", "NPY")}
FILES["LZW"] = encoded("TIFF", compression="tiff_lzw")
with BytesIO() as _stream:
    tifffile.imwrite(_stream, PIXELS.astype(np.float32), photometric="rgb", compression="zlib")
    FILES["FLOAT"] = _stream.getvalue()


def check_damage(kind: str, seeds: range) -> None:
    content = FILES[kind]
    refused = 0
    for seed in seeds:
        rng = random.Random(seed)
        damaged = bytearray(content)
        if seed % 3 == 0:
            del damaged[rng.randrange(len(content)) :]
        for _ in range(rng.randint(0, 6)):
            # every second one in the header, where most decoders believe what they read
            end = min(len(damaged), 200) if seed % 2 else len(damaged)
            if end:
                damaged[rng.randrange(end)] ^= 1 << rng.randrange(8)
        try:
            pixels = decode_image(bytes(damaged), Decoding(16))
        except CorruptImageError as problem:
            refused += 1
            assert len(str(problem).splitlines()) == 1
        else:
            assert (pixels.shape, pixels.dtype) == ((16, 16, 3), np.uint8)
    assert refused > len(seeds) / 10


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", FILES)
def test_a_damaged_image_is_an_image_or_refused(kind: str) -> None:
    check_damage(kind, range(150))


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", FILES)
def test_many_damaged_images_are_images_or_refused(kind: str) -> None:
    start = random.SystemRandom().randrange(10**9)
    print("seeds from", start)
    check_damage(kind, range(start, start + 5000))


def npy(header: str, body: bytes = bytes(400)) -> bytes:
    padded = header.encode() + b" " * (63 - (10 + len(header)) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(padded)) + padded + body


def array_of(descr: str, shape: str) -> bytes:
    return npy(f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}}}")


def png(width: int, height: int, extra: bytes = b"") -> bytes:
    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    text = chunk(b"zTXt", b"k\0\0" + extra) if extra else b""
    return b"\x89PNG\r\n\x1a\n" + head + text + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


def pickled() -> bytes:
    class Runs:
        def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
            return os.system, ("touch pwned",)

    stream = BytesIO()
    np.save(stream, np.array([[Runs()]], dtype=object), allow_pickle=True)
    return stream.getvalue()


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(pwned) (w) file closefile showpage\n"
HOSTILE = {
    "nothing": b"",
    "an array of objects": pickled(),
    "a giant array": array_of("'|u1'", "(1000000000, 1000000000)"),
    "negative sides": array_of("'|u1'", "(-5, -5)"),
    "sides that are no numbers": array_of("'|u1'", "(True, True)"),
    "arrays in an array": array_of("('|u1', (1000, 1000))", "(2, 2)"),
    "fields": array_of("[('a', '|u1')]", "(2, 2)"),
    "words": array_of("'<U5'", "(2, 2)"),
    "complex numbers": array_of("'<c16'", "(2, 2)"),
    "a header that runs": array_of("__import__('os').system('touch pwned')", "(2, 2)"),
    "a header that is endless": npy("(" * 3000),
    "a header of 2 GB": b"\x93NUMPY\x02\x00\xff\xff\xff\x7f{}",
    "another version": b"\x93NUMPY\x09\x00" + bytes(100),
    "a bomb": png(60_000, 60_000),
    "a bomb of text": png(5, 5, zlib.compress(bytes(20_000_000), 9)),
    "a line of 60 million pixels": png(60_000_000, 1),
    "a program": EPS,
}


@pytest.mark.parametrize("case", HOSTILE, ids=lambda case: case.replace(" ", "-"))
def test_a_hostile_image_is_refused_and_nothing_runs(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    # what an EPS file would be given to, where it is installed
    ghostscript = tmp_path / "gs"
    ghostscript.write_text("#!/bin/sh\ntouch pwned\n")
    ghostscript.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    file = tmp_path / "image.png"
    file.write_bytes(HOSTILE[case])
    for read in (lambda: decode_image(file, Decoding(16)), lambda: decode_image(HOSTILE[case], Decoding(16))):
        with pytest.raises(CorruptImageError) as caught:
            read()
        assert len(str(caught.value).splitlines()) == 1
    if HOSTILE[case].startswith(b"\x93"):
        try:
            npy_shape(file)
        except CorruptImageError as problem:
            assert len(str(problem).splitlines()) == 1
    assert not (tmp_path / "pwned").exists()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "data"
    for kind in ("train/good", "test/good", "test/bad"):
        (root / kind).mkdir(parents=True)
        (root / kind / "a.png").write_bytes(FILES["PNG"])
    return root


def names_of(root: Path) -> list[str]:
    return [file.path for file in open_dataset(str(root)).files]


ODD: dict[str, tuple[Callable[[Path], object], str | None]] = {
    "two lines": (lambda root: (root / "train/good/a\nb.png").write_bytes(FILES["PNG"]), "without control characters"),
    "bytes": (lambda root: Path(os.fsdecode(os.fsencode(root / "train/good") + b"/\xff.png")).touch(), "must be UTF-8"),
    "a type in bytes": (lambda root: os.mkdir(os.fsencode(root / "test") + b"/\xff"), "must be UTF-8"),
    "a pipe": (lambda root: os.mkfifo(root / "train/good/x.png"), "is no regular file"),
    "a device": (lambda root: (root / "train/good/x.png").symlink_to("/dev/zero"), "is no regular file"),
    "a link to itself": (lambda root: (root / "train/good/x.png").symlink_to("x.png"), None),
    "a link to nowhere": (lambda root: (root / "train/good/x.png").symlink_to("/nowhere.png"), None),
    "a loop of folders": (lambda root: (root / "train/good/up").symlink_to(root), None),
    "a folder of an image's name": (lambda root: (root / "train/good/x.png").mkdir(), None),
    "a long name": (lambda root: (root / "train/good" / ("x" * 251 + ".png")).write_bytes(FILES["PNG"]), None),
    "quotes": (lambda root: (root / "train/good/'\"\\;$(touch x).png").write_bytes(FILES["PNG"]), None),
}


@pytest.mark.parametrize("case", ODD, ids=lambda case: case.replace(" ", "-"))
def test_odd_names_and_files(case: str, folder: Path, tmp_path: Path) -> None:
    make, message = ODD[case]
    make(folder)
    if message is not None:
        with pytest.raises(DataError, match=message) as caught:
            names_of(folder)
        assert len(str(caught.value).encode().splitlines()) == 1
        return
    names = names_of(folder)
    assert "train/good/a.png" in names
    try:
        cached = ImageCache(tmp_path / "cache").array(folder, names, Decoding(16))
    except DataError as problem:
        assert "link" in case
        assert str(folder / "train/good/x.png") in str(problem)
    else:
        assert len(cached.index) == len(names)


TABLES = {
    "a zero byte": b"path,label\na\0.png,0\n",
    "not UTF-8": b"path,label\n\xff.png,0",
    "UTF-16 that is cut": "path,label\na.png,0".encode("utf-16")[:-1],
    "UTF-16 without its mark": "path,label\na.png,0".encode("utf-16-le"),
    "an open quote": b'path,label\n"a.png,0\nb.png,1\n',
    "a huge cell": b'path,label\n"' + b"x" * 200_000 + b'",0',
    "a huge name": b"path,label\n" + b"y" * 300 + b".png,0\n",
    "nothing": b"",
    "empty lines": b"\n\n\n",
    "another separator": b"path|label\na.png|0\n",
    "a file outside": b"path,label\n../../etc/passwd.png,0",
    "an absolute path": b"path,label\n/etc/passwd,0",
    "a mask outside": b"path,label,mask\na.png,1,../x.png\n",
    "a label that is none": b"path,label\na.png,nan\n",
    "a label of two lines": b'path,label\na.png,"0\n1"\n',
    "the same twice": b"path,label\na.png,0\na.png,1\n",
    "only anomalies": b"path,label\na.png,1\n",
}


@pytest.mark.parametrize("case", TABLES, ids=lambda case: case.replace(" ", "-"))
def test_a_table_that_cannot_be_is_refused(case: str, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(FILES["PNG"])
    table = tmp_path / "table.csv"
    table.write_bytes(TABLES[case])
    with pytest.raises(DataError) as caught:
        open_dataset(str(table))
    assert len(str(caught.value).splitlines()) == 1
    assert "table" in str(caught.value) or str(tmp_path) in str(caught.value)


def flipped(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 4
    path.write_bytes(bytes(content))


CACHED: dict[str, Callable[[Path], object]] = {
    "a pixel": lambda entry: flipped(entry / "images.npy", -100),
    "the header": lambda entry: flipped(entry / "images.npy", 30),
    "the end cut off": lambda entry: os.truncate(entry / "images.npy", 1000),
    "no array": lambda entry: (entry / "images.npy").unlink(),
    "an array of objects": lambda entry: (entry / "images.npy").write_bytes(pickled()),
    "half a note": lambda entry: (entry / "meta.json").write_text('{"images": 3'),
    "a note in a list": lambda entry: (entry / "meta.json").write_text("[1]"),
    "a number that is none": lambda entry: (entry / "meta.json").write_text('{"images": NaN, "size": 16}'),
    "a deep note": lambda entry: (entry / "meta.json").write_text("[" * 100_000),
    "bytes": lambda entry: (entry / "meta.json").write_bytes(b"\xff"),
}


@pytest.mark.parametrize("case", CACHED, ids=lambda case: case.replace(" ", "-"))
def test_a_damaged_cache_entry_is_noticed_and_built_again(case: str, folder: Path, tmp_path: Path) -> None:
    cache = ImageCache(tmp_path / "cache")
    names = names_of(folder)
    good = np.array(cache.array(folder, names, Decoding(16)).array)
    (entry,) = [path.parent for path in cache.folder.glob("*/meta.json")]
    CACHED[case](entry)
    assert len(cache.entries()) == (0 if case == "no array" else 1)
    np.testing.assert_array_equal(cache.array(folder, names, Decoding(16)).array, good)
    assert [found.images for found in cache.entries()] == [len(names)]

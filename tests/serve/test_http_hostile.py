"""Uploads that mean harm: each is refused with 4xx, the server lives on, and its memory stays within bounds."""

from __future__ import annotations

import base64
import json
import socket
import struct
import threading
import zlib
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.models import noise_png, write_small_model
from tests.serve.http_server import Answer, HttpServer, form_body

GOOD = noise_png(1)
MIB = 2**20
GROWTH = 2000 * MIB
"""What all of this module may add to the server's memory: two images that are unfolded at a time, of floats 800 MB."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HttpServer]:
    folder = tmp_path_factory.mktemp("hostile")
    write_small_model(folder / "model")
    with HttpServer(folder, "--model", folder / "model") as running:
        assert running.send(GOOD, "/predict?heat_map=true").status == 200
        start = running.peak_bytes()
        yield running
        assert running.send(GOOD).status == 200
        assert running.peak_bytes() - start < GROWTH, f"{(running.peak_bytes() - start) / MIB:.0f} MiB more"
        assert "Traceback" not in running.text, running.text


def png_chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png_bomb(width: int, height: int, rows: int, colour: int = 2, depth: int = 8) -> bytes:
    """A PNG that says width x height and holds `rows` rows of zeros; they shrink to a thousandth."""
    squeeze, line = zlib.compressobj(9), bytes(1 + width * {2: 3, 0: 1}[colour] * depth // 8)
    content = b"".join(squeeze.compress(line) for _ in range(rows)) + squeeze.flush()
    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    parts = [png_chunk(b"IHDR", head), png_chunk(b"IDAT", content), png_chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def saved(kind: str, side: int = 80) -> bytes:
    stream = BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
    Image.fromarray(pixels).save(stream, kind)
    return stream.getvalue()


def npy(shape: str, kind: str = "|u1", content: bytes = b"") -> bytes:
    head = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head + content


SVG = b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>'
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/tmp/sctune-eps) (w) file\n"
UPLOADS = {
    "bomb": png_bomb(30_000, 30_000, 40),
    "bomb-at-most": png_bomb(2**31 - 1, 2**31 - 1, 0, depth=8, colour=0),
    "empty-png": png_bomb(0, 0, 0),
    "header-only": saved("PNG")[:33],
    "signature-only": saved("PNG")[:8],
    "truncated-png": saved("PNG")[:-2000],
    "truncated-jpeg": saved("JPEG")[:-500],
    "text-as-png": b"\x89PNG, said the text",
    "text": b"no image at all\n" * 100,
    "zeros": bytes(100_000),
    "gif": saved("GIF"),
    "pcx": saved("PCX"),
    "svg": SVG,
    "eps": EPS,
    "html": b"<script>alert(1)</script>",
    "npy-huge": npy("(1000000, 1000000)"),
    "npy-cut": npy("(100, 100)", content=b"x"),
    "npy-pickled": npy("(1,)", "|O", b"cos\nsystem\n(S'touch /tmp/sctune-npy'\ntR."),
    "npy-code": npy("__import__('os').system('true')"),
    "tiff-bomb": b"II*\x00\x08\x00\x00\x00\x02\x00\x00\x01\x04\x00\x01\x00\x00\x00\xff\xff\xff\x7f"
    b"\x01\x01\x04\x00\x01\x00\x00\x00\xff\xff\xff\x7f\x00\x00\x00\x00",
    "bmp-bomb": b"BM" + struct.pack("<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, 60_000, 60_000, 1, 24, 0, 0, 0, 0, 0, 0),
}


@pytest.mark.parametrize("name", UPLOADS)
def test_what_is_no_good_image_is_refused(server: HttpServer, name: str) -> None:
    content = UPLOADS[name]
    text = json.dumps({"images": [base64.b64encode(content).decode()]}).encode()
    form, kind = form_body({f"{name}.png": content})
    for answer in (
        server.send(content, kind="image/png"),
        server.send(form, kind=kind),
        server.send(text, kind="application/json"),
    ):
        error = answer.json()["error"]
        assert answer.status == 400 and "\n" not in error and len(error) < 400, answer
    both = server.form({"good.png": GOOD, "bad.png": content}).json()["results"]
    assert "score" in both[0] and "error" in both[1]


def float_tiff(side: int) -> bytes:
    """A small file that unfolds to four bytes for each pixel."""
    stream = BytesIO()
    Image.fromarray(np.zeros((side, side), np.float32)).save(stream, "TIFF", compression="tiff_adobe_deflate")
    return stream.getvalue()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["8-bit", "16-bit", "float"])
def test_the_largest_image_that_is_allowed_unfolds_within_bounds(server: HttpServer, kind: str) -> None:
    """64 million pixels in a small file, four at a time: two are unfolded at once."""
    if kind == "float":
        content = float_tiff(8000)
    else:
        content = png_bomb(8000, 8000, 8000, *((2, 8) if kind == "8-bit" else (0, 16)))
    assert len(content) < 500_000
    answers: list[Answer] = []
    asking = [threading.Thread(target=lambda: answers.append(server.send(content))) for _ in range(4)]
    for one in asking:
        one.start()
    for one in asking:
        one.join()
    assert [answer.status for answer in answers] == [200] * 4


@pytest.mark.parametrize(
    "name", ["../../etc/x", "/etc/passwd", "..\\..\\x", "a\x01b.png", "a" * 3000, "é\u202e.png", "C:x"]
)
def test_a_files_name_is_only_told_again(server: HttpServer, name: str) -> None:
    answer = server.form({name: GOOD})
    (one,) = answer.json()["results"]
    assert answer.status == 200 and one["name"].isprintable() and len(one["name"]) <= 200
    if name.isprintable() and len(name) < 200:
        assert one["name"] == name


@pytest.mark.parametrize(
    "text",
    [
        b'{"images":' + b'{"images":' * 100_000,
        b'{"images": [' + b"9" * 100_000 + b"]}",
        b'{"images": [1e999, NaN, -Infinity]}',
        b'{"images": ["\\ud800"]}',
        b'{"images": null, "images": "x"}',
        b'{"\\u0000": []}',
        b'{"images": [[[[[[[["QQ=="]]]]]]]]}',
        b"null",
        b"",
    ],
)  # fmt: skip
def test_odd_documents(server: HttpServer, text: bytes) -> None:
    answer = server.send(text, kind="application/json")
    assert answer.status in (400, 422) and "\n" not in answer.json()["error"], answer


def test_a_body_that_is_too_large_is_refused_unread(server: HttpServer) -> None:
    before = server.peak_bytes()
    with socket.create_connection((server.host, server.port), timeout=30) as line:
        line.sendall(
            b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\nContent-Length: 104857600\r\n\r\n"
        )
        assert line.recv(100).startswith(b"HTTP/1.1 413"), "before a byte of it was sent"
    assert server.peak_bytes() - before < 20 * MIB


@pytest.mark.parametrize("headers", [b"Content-Length: 104857600", b"Transfer-Encoding: chunked"])
def test_a_hundred_megabytes(server: HttpServer, headers: bytes) -> None:
    """Sent all the same, with its length or without."""
    before, block = server.peak_bytes(), bytes(2**20)
    chunked = headers.startswith(b"Transfer")
    with socket.create_connection((server.host, server.port), timeout=30) as line:
        line.sendall(
            b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\n" + headers + b"\r\n\r\n"
        )
        try:
            for _ in range(100):
                line.sendall(b"100000\r\n" + block + b"\r\n" if chunked else block)
            if chunked:
                line.sendall(b"0\r\n\r\n")
        except OSError:
            pass  # hung up on
        assert line.recv(100).startswith(b"HTTP/1.1 413")
    # what is read is bounded by the limit of 20 MB, held twice while it grows
    assert server.peak_bytes() - before < 100 * MIB
    assert server.send(GOOD).status == 200


def test_a_false_length_and_a_request_that_ends_early(server: HttpServer) -> None:
    for head in (b"Content-Length: 99999999999999999999999", b"Content-Length: -5", b"Content-Length: 1e3"):
        with socket.create_connection((server.host, server.port), timeout=30) as line:
            line.sendall(
                b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\n" + head + b"\r\n\r\nx"
            )
            assert line.recv(100).split(b" ")[1] in (b"400", b"413")
    for _ in range(20):
        with socket.create_connection((server.host, server.port), timeout=30) as line:
            line.sendall(
                b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\nContent-Length: 5000\r\n\r\nx"
            )
    assert server.send(GOOD).status == 200


def test_forms_made_to_cost_time(server: HttpServer) -> None:
    """Many near-boundaries, many parts, long headers: each is answered, and other requests meanwhile."""
    boundary = b"b"
    bodies = [
        b'--b\r\nContent-Disposition: form-data; name="f"; filename="x"\r\n\r\n' + b"\r\n--" * 2_000_000 + b"\r\n--b--",
        b"--b\r\n\r\n\r\n" * 200_000,
        b"\r\n" * 5_000_000,
        b"--b\r\n" + b"X-Long: " + b"a" * 5_000_000 + b"\r\n\r\n\r\n--b--\r\n",
        b"--b\r\n" + b"A: b\r\n" * 500_000 + b"\r\n\r\n--b--\r\n",
    ]  # fmt: skip
    for body in bodies:
        answer = server.send(body, kind=f"multipart/form-data; boundary={boundary.decode()}")
        assert answer.status == 400, answer
        assert server.get("/health").status == 200


def test_slow_and_half_requests_take_no_room(server: HttpServer) -> None:
    """A hundred connections that say little do not keep others from being answered."""
    lines = [socket.create_connection((server.host, server.port), timeout=30) for _ in range(100)]
    try:
        for line in lines:
            line.sendall(b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 19000000\r\n")
            line.sendall(b"Content-Type: image/png\r\n\r\n" + bytes(1000))
        assert server.send(GOOD).status == 200
    finally:
        for line in lines:
            line.close()


def test_nothing_was_written(server: HttpServer) -> None:
    for path in ("/tmp/sctune-eps", "/tmp/sctune-npy", "/etc/x"):
        assert not Path(path).exists()
    assert sorted(path.name for path in server.log.parent.iterdir()) == ["model", "serve.log"]

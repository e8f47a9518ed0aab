"""The raw files of a conformance pack: made here from numbers, one for each way in which readers of images differ.

Each carries its misreadings: what known wrong readers make of it, in its own size, so that they can be recognised.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

Pixels = NDArray[np.uint8]

BGR = "the colours in the order BGR"
GREY = "the colours made grey"
IGNORED, TURNED = "the EXIF orientation ignored", "turned by the EXIF orientation, which the model does not do"
LOW, CLIPPED, OWN = (
    "16-bit values cut to their low byte",
    "16-bit values clipped at 255",
    "16-bit values stretched to the range of the image",
)
HIGH, TWELVE = "16-bit values cut to their high byte", "16-bit values read as 12-bit ones"
INDICES = "the palette's indices in place of its colours"
_JPEG = (".jpg", ".jfif")
_ORIENTATION, _QUARTER_TURN = 0x0112, 6


@dataclass(frozen=True)
class Raw:
    """A file. about: what it is, for people; wrong: misreading -> uint8 [H, W, 3]."""

    name: str
    content: bytes
    about: str
    wrong: Mapping[str, Pixels] = field(default_factory=dict)

    @property
    def is_lossy(self) -> bool:
        """Whether decoders may differ by rounding."""
        return self.name.endswith(_JPEG)


def raw_files(size: int) -> list[Raw]:
    """The files for a model that takes images of `size` pixels a side; the same at every call."""
    large, small = (2 * size - 11, 2 * size + 37), (size // 2 + 3, size // 3 + 5)
    return [
        _colour("colour.png", _scene(*large, 1), "colour, larger than the model's images in both directions"),
        _colour("colour.bmp", _scene(size, size, 2), "colour, of the very size: not resized at all"),
        _colour("colour.tif", _scene(size + 1, size - 1, 3), "colour, one pixel more and one less"),
        _colour("colour.jpg", _scene(*large, 4), "colour, compressed with loss"),
        _colour("colour.jfif", _scene(*large, 19), "colour, compressed with loss, by the other name of JPEG"),
        _colour("colour.webp", _scene(*large, 20), "colour, WebP without loss"),
        _colour("smaller.png", _scene(*small, 5), "colour, enlarged in both directions"),
        _colour("wide.png", _scene(max(3, size // 5), 5 * size, 6), "colour, very wide: one direction is enlarged"),
        _colour("line.png", _scene(2 * size, 1, 7), "colour, one pixel wide"),
        _colour("dot.png", _scene(1, 1, 8), "colour, a single pixel"),
        _grey("grey.png", _scene(*large, 9)[..., 1], "grey, 8 bits"),
        _bilevel("bilevel.png", _scene(*large, 10)[..., 1], "black and white, 1 bit"),
        _sixteen("grey16.png", _deep(*large, 11, 65535), "grey, 16 bits, all of them used"),
        _sixteen("grey12in16.png", _deep(*large, 12, 4095), "grey, 12 bits in a file of 16"),
        _sixteen("grey16.tif", _deep(*large, 13, 65535), "grey, 16 bits, all of them used"),
        _sixteen("grey16.npy", _deep(*large, 14, 65535), "array [H, W] of uint16"),
        _colour("colour.npy", _scene(*large, 15), "array [H, W, 3] of uint8"),
        _alpha("opaque.png", _scene(*large, 16), "colour with transparency, all of it opaque"),
        _palette("palette.png", _scene(*large, 17), "colours by a palette"),
        _turned("turned.jpg", _scene(*large, 18), "colour, stored on its side: EXIF orientation 6"),
    ]


def _scene(height: int, width: int, seed: int) -> Pixels:
    """Ramps, fine stripes, spots of strong colour and noise, nothing symmetric: every misreading shows in it."""
    random = np.random.default_rng(seed)
    rows, columns = np.mgrid[0:height, 0:width].astype(np.float64)
    image = np.empty((height, width, 3))
    for channel, (start, along, across) in enumerate(((60, 90, 20), (120, -50, 60), (200, -120, 30))):
        ramp = start + along * columns / max(1, width - 1) + across * rows / max(1, height - 1)
        image[..., channel] = ramp + 25 * ((columns.astype(int) // 2 + channel) % 2) - 20 * (rows.astype(int) % 3 == 0)
    for _ in range(4):
        top, left = random.integers(0, max(1, height // 2)), random.integers(0, max(1, width // 2))
        image[top : top + height // 5 + 1, left : left + width // 6 + 1] = random.uniform(0, 255, 3)
    image += random.normal(0, 12, image.shape)
    return np.clip(image, 0, 255).round().astype(np.uint8)


def _deep(height: int, width: int, seed: int, high: int) -> NDArray[np.uint16]:
    """A scene in values up to `high`, most of them in its lower half, both ends of the range among them."""
    grey = _scene(height, width, seed).astype(np.float64).mean(axis=-1)
    values = (grey / 255) ** 2 * high * 0.8 + np.random.default_rng(seed).uniform(0, high / 64, grey.shape)
    values[0, 0], values[-1, -1] = 0, high
    return np.clip(values, 0, high).round().astype(np.uint16)


def _saved(picture: Image.Image, name: str, exif: Image.Exif | None = None) -> bytes:
    stream = BytesIO()
    ending = name.rpartition(".")[2]
    kind = {"jpg": "JPEG", "jfif": "JPEG", "tif": "TIFF"}.get(ending, ending.upper())
    options: dict[str, Any] = {} if exif is None else {"exif": exif}
    picture.save(stream, kind, **options, **({"lossless": True} if ending == "webp" else {}))
    return stream.getvalue()


def _array(values: NDArray[Any]) -> bytes:
    stream = BytesIO()
    np.save(stream, values, allow_pickle=False)
    return stream.getvalue()


def _rgb(grey: NDArray[Any]) -> Pixels:
    return np.repeat(grey.astype(np.uint8)[..., None], 3, axis=-1)


def _misread(scene: Pixels) -> dict[str, Pixels]:
    return {BGR: scene[..., ::-1], GREY: _rgb(np.asarray(Image.fromarray(scene).convert("L")))}


def _colour(name: str, scene: Pixels, about: str) -> Raw:
    content = _array(scene) if name.endswith(".npy") else _saved(Image.fromarray(scene), name)
    if name.endswith(_JPEG):
        scene = np.asarray(Image.open(BytesIO(content)))
    return Raw(name, content, about, _misread(scene))


def _grey(name: str, scene: Pixels, about: str) -> Raw:
    return Raw(name, _saved(Image.fromarray(scene), name), about)


def _bilevel(name: str, scene: Pixels, about: str) -> Raw:
    picture = Image.fromarray(scene).convert("1", dither=Image.Dither.NONE)
    return Raw(name, _saved(picture, name), about, {"0 and 1 in place of black and white": _rgb(np.asarray(picture))})


def _sixteen(name: str, values: NDArray[np.uint16], about: str) -> Raw:
    content = _array(values) if name.endswith(".npy") else _saved(Image.fromarray(values), name)
    span = max(1, int(values.max()) - int(values.min()))
    wrong = {
        LOW: values & 255,
        CLIPPED: np.minimum(values, 255),
        OWN: (values.astype(np.float64) - values.min()) / span * 255,
        HIGH: values >> 8,
        TWELVE: np.minimum(values >> 4, 255),
    }
    return Raw(name, content, about, {key: _rgb(value) for key, value in wrong.items()})


def _alpha(name: str, scene: Pixels, about: str) -> Raw:
    picture = Image.fromarray(np.dstack([scene, np.full(scene.shape[:2], 255, np.uint8)]))
    return Raw(name, _saved(picture, name), about, _misread(scene))


def _palette(name: str, scene: Pixels, about: str) -> Raw:
    picture = Image.fromarray(scene).quantize(64)
    colours = np.asarray(picture.convert("RGB"))
    return Raw(name, _saved(picture, name), about, {INDICES: _rgb(np.asarray(picture)), **_misread(colours)})


def _turned(name: str, scene: Pixels, about: str) -> Raw:
    exif = Image.Exif()
    exif[_ORIENTATION] = _QUARTER_TURN
    content = _saved(Image.fromarray(scene), name, exif=exif)
    stored = Image.open(BytesIO(content))
    upright = ImageOps.exif_transpose(stored)
    return Raw(name, content, about, {IGNORED: np.asarray(stored), TURNED: np.asarray(upright)})

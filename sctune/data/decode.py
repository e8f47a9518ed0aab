"""One image, from a file or from bytes, to a square uint8 RGB array; training and prediction share it.

What a file holds (`containers`) becomes grey levels by the range of the data set (`ranges`), and a square here.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from sctune.config.data import DataConfig
from sctune.data.containers import (
    FORMATS,
    PIXEL_LIMIT,
    CorruptImageError,
    Reading,
    Stored,
    is_turned,
    npy_header,
    npy_layout,
    read_stored,
)
from sctune.data.ranges import CONTAINER, RangeError, UsedValues, to_grey_levels, used_values
from sctune.errors import DataError

__all__ = [
    "FORMATS",
    "PIXEL_LIMIT",
    "Alpha",
    "CorruptImageError",
    "Decoded",
    "Decoding",
    "Resize",
    "decode",
    "decode_image",
    "image_size",
    "npy_shape",
    "open_image",
    "wide_values",
]

Resize = Literal["stretch", "crop", "pad"]
Alpha = Literal["refuse", "black", "white", "drop"]
Pixels = NDArray[np.uint8]
LARGE = 2
"""A JPEG is decoded at 1/2, 1/4 or 1/8 where that leaves this many times the side that is asked for."""
MOST_CROPPED = 0.9
"""`crop` says what share of the picture it keeps below this one."""

# the check of containers, whose limit is a setting, stands before every decoding
Image.MAX_IMAGE_PIXELS = None


@dataclass(frozen=True)
class Decoding:
    """How files become pixels; part of a model, so that what is scored is decoded as what was trained on.

    size: side in pixels; range: container, bits:N or MIN,MAX (`ranges`); page: from 1, None refuses files with several;
    alpha: what becomes of transparency that hides colours; reduce: large JPEGs may be decoded smaller (`LARGE`).
    """

    size: int
    resize: Resize = "stretch"
    range: str = CONTAINER
    page: int | None = None
    alpha: Alpha = "refuse"
    pixel_limit: int = PIXEL_LIMIT
    reduce: bool = True

    @staticmethod
    def of(data: DataConfig) -> Decoding:
        """As a configuration says; data.range must have been resolved (`depth.with_range`)."""
        return Decoding(data.image_size, data.resize, data.range, data.page, data.alpha, data.pixel_limit, data.reduce)

    @property
    def key(self) -> list[object]:
        """What a cache of pixels is keyed by; settings that change no pixel are left out."""
        return [self.size, self.resize, self.range, self.page, self.alpha, self.reduce]

    @property
    def reading(self) -> Reading:
        return Reading(self.page, self.pixel_limit, LARGE * self.size if self.reduce else None)


@dataclass(frozen=True)
class Decoded:
    """pixels: uint8 [S, S, 3]; width, height: of the upright image itself; notes: flags, one line each.

    nbytes: of the file. kind, depth, quality: of the file, as in `containers.Stored`.
    """

    pixels: Pixels
    width: int
    height: int
    notes: tuple[str, ...]
    kind: str
    depth: str
    quality: float | None
    nbytes: int


def decode(source: Path | bytes, decoding: Decoding) -> Decoded:
    """A file, or the same file's bytes, with the same result.

    Grey, RGB, palette and CMYK images of 8 bits, those of more bits and floating point by decoding.range, and .npy
    arrays [H, W], [H, W, C] or [C, H, W] (first 3 bands). All are turned upright (EXIF orientation). resize: bilinear
    with antialiasing; `stretch` ignores the aspect, `crop` takes the central square, `pad` adds black. Raises
    CorruptImageError for damaged and oversized images and for those that the settings do not allow, DataError for
    files that cannot be read.
    """
    with _reported(source):
        content = _content(source)
        stored = read_stored(content, decoding.reading)
        image, notes = _eight_bits(stored, decoding)
        if decoding.resize == "crop":
            notes += _cropped(stored.width, stored.height)
        pixels = _square(image, decoding.size, decoding.resize)
        if int(pixels.min()) == int(pixels.max()):
            notes.append(f"constant: every pixel is {int(pixels.max())}")
        about = (stored.kind, stored.depth, stored.quality, len(content))
        return Decoded(pixels, stored.width, stored.height, tuple(notes), *about)


def decode_image(source: Path | bytes, decoding: Decoding) -> Pixels:
    """The pixels of `decode`, uint8 [S, S, 3]."""
    return decode(source, decoding).pixels


def wide_values(path: Path, reading: Reading) -> UsedValues | None:
    """What values an image of more than 8 bits uses; None for one of 8 bits, of which only the header is read.

    Raises what `decode` does.
    """
    with _reported(path):
        if _is_narrow(path):
            return None
        values = read_stored(_content(path), reading).values
        return None if values is None else used_values(values)


def image_size(path: Path) -> tuple[int, int]:
    """Width and height in pixels of the upright image as its header says; raises what `decode` does."""
    with _reported(path):
        if path.suffix.lower() == ".npy":
            shape = npy_shape(path)
            height, width = shape[1:3] if npy_layout(shape) == "CHW" else shape[:2]
            return width, height
        try:
            with path.open("rb") as stream, Image.open(stream, formats=FORMATS) as image:
                return (image.height, image.width) if is_turned(image) else (image.width, image.height)
        except UnidentifiedImageError:
            # named by another type, damaged, or of a kind that Pillow does not know: told as decoding it would
            stored = read_stored(_content(path), Reading(page=1))
            return stored.width, stored.height


def open_image(source: Path | bytes) -> Image.Image:
    """The whole upright image in its own size, 8 bits, mode L or RGB; raises what `decode` does."""
    with _reported(source):
        return _eight_bits(read_stored(_content(source), Reading()), Decoding(1))[0]


def npy_shape(path: Path) -> tuple[int, ...]:
    """What the header of a .npy file says, without reading the array; raises what `decode` does."""
    with _reported(path):
        try:
            with path.open("rb") as stream:
                return npy_header(stream)[0]
        except OSError as problem:
            raise DataError(f"cannot read {path}: {problem.strerror}") from None


@contextmanager
def _reported(source: Path | bytes) -> Iterator[None]:
    name = "the image" if isinstance(source, bytes) else str(source)
    try:
        yield
    except (CorruptImageError, RangeError) as problem:
        raise CorruptImageError(f"{name}: {problem}") from None
    except (MemoryError, DataError):
        raise
    except Exception as problem:
        # decoders raise nearly anything on damaged bytes: OSError, SyntaxError, struct.error, IndexError ...
        text = " ".join(str(problem).split()) or type(problem).__name__
        raise CorruptImageError(f"{name} cannot be decoded: {text[:200]}") from None


def _content(source: Path | bytes) -> bytes:
    if isinstance(source, bytes):
        return source
    try:
        return source.read_bytes()
    except OSError as problem:
        raise DataError(f"cannot read {source}: {problem.strerror}") from None


def _is_narrow(path: Path) -> bool:
    """Whether the header says that all is 8 bits at most; False where only decoding tells."""
    try:
        with path.open("rb") as stream, Image.open(stream, formats=("PNG", "JPEG", "BMP", "DIB", "WEBP")) as image:
            # a PNG of 16-bit colours says RGB too
            return image.format != "PNG" or image.mode in ("1", "L", "P") or not str(image.tile[0].args).endswith("16B")
    except UnidentifiedImageError:
        return False
    except OSError as problem:
        raise DataError(f"cannot read {path}: {problem.strerror or problem}") from None


def _eight_bits(stored: Stored, decoding: Decoding) -> tuple[Image.Image, list[str]]:
    """Mode L or RGB, and what there is to say of it."""
    notes = list(stored.notes)
    if stored.picture is not None:
        image = stored.picture
    else:
        assert stored.values is not None
        levels, said = to_grey_levels(stored.values, decoding.range)
        notes += said
        image = Image.fromarray(255 - levels if stored.white_is_zero else levels)
        if stored.alpha is not None:
            image = image.convert("RGBA")
            image.putalpha(Image.fromarray(stored.alpha))
    if image.mode == "RGBA":
        image = _opaque(image, decoding.alpha)
    return image, notes


def _opaque(image: Image.Image, alpha: Alpha) -> Image.Image:
    hidden = image.getchannel("A").getextrema()[0]
    if alpha == "drop" or hidden == 255:
        return image.convert("RGB")
    if alpha == "refuse":
        raise CorruptImageError(
            "transparent pixels, whose colours nobody sees; say what is behind them with --set data.alpha=black or "
            "white, or take the hidden colours with data.alpha=drop"
        )
    behind = Image.new("RGBA", image.size, (0, 0, 0, 255) if alpha == "black" else (255, 255, 255, 255))
    return Image.alpha_composite(behind, image).convert("RGB")


def _cropped(width: int, height: int) -> list[str]:
    kept = min(width, height) / max(width, height)
    return [f"resize=crop keeps {kept:.0%} of the picture"] if kept < MOST_CROPPED else []


def _square(image: Image.Image, size: int, resize: str) -> Pixels:
    width, height = image.size
    side = min(width, height)
    box = None
    target = (size, size)
    if resize == "crop":
        left, top = (width - side) // 2, (height - side) // 2
        box = (left, top, left + side, top + side)
    elif resize == "pad":
        longest = max(width, height)
        target = (max(1, round(width * size / longest)), max(1, round(height * size / longest)))
    resized = image if image.size == target else image.resize(target, Image.Resampling.BILINEAR, box=box)
    if resized.size != (size, size):
        canvas = Image.new(resized.mode, (size, size))
        canvas.paste(resized, ((size - resized.width) // 2, (size - resized.height) // 2))
        resized = canvas
    pixels = np.asarray(resized)
    return np.stack([pixels] * 3, axis=-1) if pixels.ndim == 2 else pixels.copy()

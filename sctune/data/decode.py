"""One image, from a file or from bytes, to a square uint8 RGB array; training and prediction share it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from sctune.errors import DataError

PIXEL_LIMIT = 64_000_000
"""Images with more pixels are refused: a small file can unfold to gigabytes."""

Resize = Literal["stretch", "crop", "pad"]
Pixels = NDArray[np.uint8]
FORMATS = ("PNG", "JPEG", "BMP", "DIB", "TIFF", "WEBP")
"""Decoders that may see a file, whatever its name says; that of EPS would run the file's own program."""

NPY_MAGIC = b"\x93NUMPY"


class CorruptImageError(DataError):
    """A file that is there but cannot be decoded; the only error that skip_corrupt forgives."""


def decode_image(source: Path | bytes, size: int, resize: str = "stretch") -> Pixels:
    """uint8 [size, size, 3] of a file or of the same file's bytes, with the same result.

    Grey, RGB, palette and 16-bit (value // 257) images, and .npy arrays [H, W] or [H, W, 3+] (first 3 bands) with
    8-bit or uint16 values. resize: bilinear; `stretch` ignores the aspect, `crop` takes the central square, `pad`
    adds black. Raises CorruptImageError for damaged or oversized images, DataError for unreadable files.
    """
    return decode_sized(source, size, resize)[0]


def decode_sized(source: Path | bytes, size: int, resize: str = "stretch") -> tuple[Pixels, int, int]:
    """As decode_image, with the image's own width and height in pixels."""
    with _reported(source):
        image = _opened(source)
        return _square(image, size, resize), image.width, image.height


def image_size(path: Path) -> tuple[int, int]:
    """Width and height in pixels as a file's header says, without decoding it; raises what decode_image does."""
    with _reported(path):
        if path.suffix.lower() == ".npy":
            shape = npy_shape(path)
            return shape[1], shape[0]
        try:
            with path.open("rb") as stream, Image.open(stream, formats=FORMATS) as image:
                return image.width, image.height
        except UnidentifiedImageError:
            opened = _opened(path)  # named by another type, or damaged: told as decoding it would
            return opened.width, opened.height


def open_image(source: Path | bytes) -> Image.Image:
    """The whole image in its own size, 8 bits, mode L or RGB; reads and raises what decode_image does."""
    with _reported(source):
        return _opened(source)


def npy_shape(path: Path) -> tuple[int, ...]:
    """What the header of a .npy file says, without reading the array; raises what decode_image does."""
    with _reported(path):
        try:
            with path.open("rb") as stream:
                return _npy_header(stream)[0]
        except OSError as problem:
            raise DataError(f"cannot read {path}: {problem.strerror}") from None


@contextmanager
def _reported(source: Path | bytes) -> Iterator[None]:
    name = "the image" if isinstance(source, bytes) else str(source)
    try:
        yield
    except CorruptImageError as problem:
        raise CorruptImageError(f"{name}: {problem}") from None
    except (MemoryError, DataError):
        raise
    except Exception as problem:
        # decoders raise nearly anything on damaged bytes: OSError, SyntaxError, struct.error, IndexError ...
        text = " ".join(str(problem).split()) or type(problem).__name__
        raise CorruptImageError(f"{name} cannot be decoded: {text[:200]}") from None


def _opened(source: Path | bytes) -> Image.Image:
    if isinstance(source, bytes):
        content = source
    else:
        try:
            content = source.read_bytes()
        except OSError as problem:
            raise DataError(f"cannot read {source}: {problem.strerror}") from None
    return _open_npy(content) if content.startswith(NPY_MAGIC) else _open_picture(content)


def _open_picture(content: bytes) -> Image.Image:
    try:
        image = Image.open(BytesIO(content), formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise CorruptImageError(f"more than {PIXEL_LIMIT // 10**6} million pixels; make it smaller first") from None
    except UnidentifiedImageError:
        raise CorruptImageError("not an image that can be read (png, jpg, bmp, tif, webp or npy)") from None
    _check_pixels(image.width, image.height)
    if image.mode in ("L", "RGB"):
        image.load()
        return image
    if image.mode.startswith("I"):
        return Image.fromarray(_from_16_bit(np.asarray(image)))
    if image.mode == "F":
        return Image.fromarray(_from_numbers(np.asarray(image)))
    return image.convert("L" if image.mode == "1" else "RGB")


def _open_npy(content: bytes) -> Image.Image:
    stream = BytesIO(content)
    shape, dtype = _npy_header(stream)
    if len(shape) not in (2, 3) or (len(shape) == 3 and shape[2] != 1 and shape[2] < 3) or 0 in shape:
        raise CorruptImageError(f"an array of shape {list(shape)}; [H, W], [H, W, 1] or [H, W, 3 or more] is needed")
    _check_pixels(shape[1], shape[0])
    if dtype.kind not in "buif":
        raise CorruptImageError(f"an array of type {dtype}; numbers are needed")
    # the header is checked before memory is taken for what it claims
    if len(content) - stream.tell() < dtype.itemsize * int(np.prod(shape, dtype=np.int64)):
        raise CorruptImageError("the array is cut off")
    array = np.load(BytesIO(content), allow_pickle=False)
    array = array[..., :3] if array.ndim == 3 and array.shape[2] >= 3 else array.reshape(array.shape[:2])
    return Image.fromarray(np.ascontiguousarray(_from_16_bit(array) if dtype == np.uint16 else _from_numbers(array)))


def _npy_header(stream: BinaryIO) -> tuple[tuple[int, ...], np.dtype[Any]]:
    version = np.lib.format.read_magic(stream)
    header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = header(stream)
    return shape, dtype


def _check_pixels(width: int, height: int) -> None:
    if width * height > PIXEL_LIMIT:
        raise CorruptImageError(f"{width} x {height} pixels; at most {PIXEL_LIMIT // 10**6} million are read")


def _from_16_bit(values: NDArray[Any]) -> Pixels:
    # never copied to a wider type: at the limit of pixels each byte of a value is 64 MB
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > 65535:
        raise CorruptImageError(f"values from {low} to {high}; 8 or 16 bits are needed")
    return (values // 257).astype(np.uint8)


def _from_numbers(values: NDArray[Any]) -> Pixels:
    """8-bit values in an array of any type."""
    if values.dtype == np.uint8:
        return values.astype(np.uint8)
    if values.dtype == np.bool_:
        return values.astype(np.uint8) * np.uint8(255)
    low, high = float(values.min()), float(values.max())
    if not (low >= 0 and high <= 255):
        raise CorruptImageError(f"values from {low:g} to {high:g}; 8-bit values, 0 to 255, are needed")
    if high <= 1 and not np.array_equal(values, np.rint(values)):
        raise CorruptImageError(f"values from {low:g} to {high:g}; multiply by 255 to get 8-bit values")
    return values.astype(np.uint8)


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

"""What a file holds, as it was stored: the first step of decoding. Nothing is scaled to grey levels here.

Pillow reads what it keeps whole. It cuts colours of 16 bits to 8 without a word, so PNG files of that kind go to
imagecodecs and TIFF files to tifffile, which also gets the TIFF files that Pillow does not know (colours in floating
point, for one).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any, BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from sctune.data.tiff_tags import MAGICS, is_whole
from sctune.errors import DataError

PIXEL_LIMIT = 64_000_000
"""Default of data.pixel_limit; images with more are refused: a small file can unfold to gigabytes."""

FORMATS = ("PNG", "JPEG", "BMP", "DIB", "TIFF", "WEBP")
"""Decoders that may see a file, whatever its name says; that of EPS would run the file's own program."""

NPY_MAGIC = b"\x93NUMPY"
PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
WIDEST = 12
"""Bytes of a pixel (three floating-point numbers) at the limit of pixels; of images with more, fewer are read."""
ORIENTATION, BITS, PHOTOMETRIC, SAMPLES, NEW_SUBFILE, SAMPLE_FORMAT = 274, 258, 262, 277, 254, 339
WHITE_IS_ZERO, BLACK_IS_ZERO, RGB = 0, 1, 2
SIGNED = 2
TURNED = (5, 6, 7, 8)
"""EXIF orientations that exchange width and height."""
_STD_LUMINANCE_SUM = 3688
"""Of the quantisation table that the JPEG standard has as its example (quality 50)."""


class CorruptImageError(DataError):
    """A file that is there but cannot be decoded; the only error that skip_corrupt forgives."""


@dataclass(frozen=True)
class Stored:
    """An upright image as its file holds it: `picture` (8 bits, mode L, RGB or RGBA) or `values` (wider numbers).

    values: [H, W] or [H, W, 3]; white_is_zero: the values count the other way round; alpha: uint8 [H, W] beside them.
    width, height: of the whole upright image, in pixels (`picture` may be decoded smaller). kind: file format and mode;
    depth: bits of a stored number, with `float` for floating point. quality: of a JPEG, 1 to 100, as its tables say.
    lossy: compressed so that values near an edge are not those that were saved.
    """

    width: int
    height: int
    kind: str
    depth: str
    picture: Image.Image | None = None
    values: NDArray[Any] | None = None
    alpha: NDArray[np.uint8] | None = None
    white_is_zero: bool = False
    quality: float | None = None
    lossy: bool = False
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Reading:
    """How files are read. page: counted from 1, None: a file with several is refused.

    reduce_to: side in pixels that is wanted of both sides; codecs that can may decode a large image smaller, not below.
    """

    page: int | None = None
    pixel_limit: int = PIXEL_LIMIT
    reduce_to: int | None = None


def read_stored(content: bytes, reading: Reading) -> Stored:
    """Raises CorruptImageError for damaged, oversized and unknown files; decoders raise nearly anything besides."""
    if content.startswith(NPY_MAGIC):
        return _read_npy(content, reading)
    if content.startswith(PNG_MAGIC) and content[24:25] == b"\x10" and content[25:26] in (b"\x02", b"\x04", b"\x06"):
        return _read_wide_png(content, reading)
    try:
        image = Image.open(BytesIO(content), formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise _too_many(f"more than {reading.pixel_limit}", reading) from None
    except UnidentifiedImageError:
        if content.startswith(MAGICS):
            return _read_wide_tiff(content, reading)
        raise CorruptImageError("not an image that can be read (png, jpg, bmp, tif, webp or npy)") from None
    return _read_picture(content, image, reading)


def npy_header(stream: BinaryIO) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and type that the header of a .npy file claims."""
    version = np.lib.format.read_magic(stream)
    header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = header(stream)
    return shape, dtype


def npy_layout(shape: tuple[int, ...]) -> Literal["HW", "HWC", "CHW"]:
    """Where the bands of an array are: first or last, whichever is fewer. Raises CorruptImageError for others."""
    layout: Literal["HW", "HWC", "CHW"] = "HW"
    if len(shape) == 3 and shape[0] != shape[2]:
        layout = "CHW" if shape[0] < shape[2] else "HWC"
    bands = {"HW": 1, "HWC": shape[-1] if shape else 0, "CHW": shape[0] if shape else 0}[layout]
    known = len(shape) == 2 or (len(shape) == 3 and shape[0] != shape[2])
    if not known or (bands != 1 and bands < 3) or 0 in shape:
        raise CorruptImageError(
            f"an array of shape {list(shape)}; [H, W], [H, W, C] or [C, H, W] is needed, with 1, 3 or more bands C, "
            "and fewer bands than pixels"
        )
    return layout


def is_turned(image: Image.Image) -> bool:
    """Whether the upright image has the opened one's width as its height; Pillow turns TIFF files itself."""
    return image.format != "TIFF" and image.getexif().get(ORIENTATION) in TURNED


def _read_picture(content: bytes, image: Image.Image, reading: Reading) -> Stored:
    _check_pixels(image.width, image.height, reading)
    tags = getattr(image, "tag_v2", {})
    _choose_page(image, reading)
    bits, samples = tags.get(BITS, (8,)), tags.get(SAMPLES, 1)
    # Pillow takes signed numbers of 8 bits for unsigned ones
    is_signed = max(bits) == 8 and SIGNED in tags.get(SAMPLE_FORMAT, ())
    if image.format == "TIFF" and ((samples > 1 and max(bits) > 8) or is_signed):
        return _read_wide_tiff(content, reading)
    kind, quality = f"{image.format} {image.mode}", _jpeg_quality(image)
    width, height = image.size[::-1] if is_turned(image) else image.size
    if reading.reduce_to is not None and image.format in ("JPEG", "MPO"):
        image.draft(None, (reading.reduce_to, reading.reduce_to))
    inverted, lossy = tags.get(PHOTOMETRIC) == WHITE_IS_ZERO, _is_lossy(content, image)
    image.load()
    upright = ImageOps.exif_transpose(image)
    depth = f"{max(bits)} bits"
    if image.mode.startswith("I") or image.mode == "F":
        values = np.asarray(upright)
        wide = "float" if image.mode == "F" else f"{16 if '16' in image.mode else 32} bits"
        return Stored(width, height, kind, wide, values=_native(values), white_is_zero=inverted)
    depth = depth if max(bits) < 8 else "8 bits"
    return Stored(width, height, kind, depth, picture=_plain(upright, image), quality=quality, lossy=lossy)


def _plain(image: Image.Image, opened: Image.Image) -> Image.Image:
    """Mode L or RGB, and RGBA where there is transparency."""
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in opened.info:
        return image.convert("RGBA")
    if image.mode in ("L", "RGB"):
        return image
    return image.convert("L" if image.mode == "1" else "RGB")


def _choose_page(image: Image.Image, reading: Reading) -> None:
    """Move to the page that is asked for; smaller copies that a TIFF file keeps of its first page count as none."""
    if image.format == "MPO":  # a photograph, with previews of it behind
        return
    wanted, page, index = reading.page or 1, 0, 0
    while True:
        try:
            image.seek(index)
        except EOFError:
            break
        if not (image.format == "TIFF" and index and int(getattr(image, "tag_v2", {}).get(NEW_SUBFILE, 0)) & 1):
            page += 1
        if page == wanted and reading.page is not None:
            _check_pixels(image.width, image.height, reading)
            return
        if page > wanted:
            raise CorruptImageError(
                f"{getattr(image, 'n_frames', page)} pages or frames; name the one to be read, for example "
                "--set data.page=1"
            )
        index += 1
    if page < wanted:
        raise CorruptImageError(f"data.page={wanted}, and it has {page} page(s)")
    image.seek(0)


def _read_wide_png(content: bytes, reading: Reading) -> Stored:
    """Colours, or grey with transparency, of 16 bits."""
    import imagecodecs

    with Image.open(BytesIO(content), formats=("PNG",)) as image:
        _check_pixels(image.width, image.height, reading)
        frames = getattr(image, "n_frames", 1)
        if frames > 1 and reading.page is None:
            raise CorruptImageError(f"{frames} frames; name the one to be read, for example --set data.page=1")
        orientation, mode = image.getexif().get(ORIENTATION, 1), image.mode
    values = imagecodecs.png_decode(content)
    return _wide(values, orientation, f"PNG {mode}", has_alpha=values.shape[2] in (2, 4))


def _read_wide_tiff(content: bytes, reading: Reading) -> Stored:
    """What Pillow cuts or does not know: several samples a pixel of more than 8 bits, other types of numbers."""
    import tifffile

    if not is_whole(content):
        raise CorruptImageError("a TIFF file that is cut off or damaged")
    # what is wrong with a file is raised too; its log would fill the terminal
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)
    with tifffile.TiffFile(BytesIO(content)) as file:
        pages = [page for page in file.pages if isinstance(page, tifffile.TiffPage)]
        full = [page for page in pages if not page.subfiletype & 1]
        if len(full) > 1 and reading.page is None:
            raise CorruptImageError(f"{len(full)} pages; name the one to be read, for example --set data.page=1")
        if (reading.page or 1) > len(full):
            raise CorruptImageError(f"data.page={reading.page}, and it has {len(full)} page(s)")
        page = full[(reading.page or 1) - 1]
        _check_samples(page)
        _check_wide(page, reading)
        values = np.asarray(page.asarray())
        separate = int(page.planarconfig or 1) == 2 and values.ndim == 3
        orientation = int(page.tags[ORIENTATION].value) if ORIENTATION in page.tags else 1
        inverted, has_alpha = int(page.photometric) == WHITE_IS_ZERO, bool(page.extrasamples)
    if separate:
        values = values.transpose(1, 2, 0)
    kind = f"TIFF {page.samplesperpixel} x {values.dtype}"
    return _wide(values, orientation, kind, has_alpha=has_alpha, white_is_zero=inverted)


def _check_samples(page: Any) -> None:
    """Raises CorruptImageError for a tifffile.TiffPage whose samples are not grey or RGB, with transparency or not."""
    samples, beside = page.samplesperpixel, len(page.extrasamples)
    if samples > 4 or page.imagedepth > 1 or beside > 1:
        named = f", of which the file says that {beside} are no colours" if beside > 1 else ""
        raise CorruptImageError(
            f"{samples} samples a pixel{named}; 1, 3, or these with transparency are read, save it as RGB"
        )
    if int(page.photometric) not in (WHITE_IS_ZERO, BLACK_IS_ZERO, RGB):
        raise CorruptImageError(f"colours of the kind {page.photometric.name}; grey and RGB are read, save it as RGB")
    if page.dtype is None or page.dtype.kind not in "buif":
        raise CorruptImageError(f"samples of type {page.dtype}; numbers are needed")


def _check_wide(page: Any, reading: Reading) -> None:
    """Memory is taken for whole tiles, and for as many bytes as a sample has."""
    for width, height in ((page.imagewidth, page.imagelength), (page.tilewidth, page.tilelength)):
        _check_pixels(width, height, reading)
        taken = width * height * page.samplesperpixel * page.dtype.itemsize
        if taken > WIDEST * reading.pixel_limit:
            raise _too_many(f"{width} x {height}, {page.samplesperpixel} x {page.dtype} each,", reading)


def _is_lossy(content: bytes, image: Image.Image) -> bool:
    if image.format == "WEBP":
        return any(name == b"VP8 " for name in _webp_chunks(content))
    return image.format in ("JPEG", "MPO") or "jpeg" in str(image.info.get("compression"))


def _webp_chunks(content: bytes) -> Iterator[bytes]:
    """Names of the chunks of a WebP file, those inside of frames too."""
    place = 12
    while place + 8 <= len(content):
        name, size = content[place : place + 4], int.from_bytes(content[place + 4 : place + 8], "little")
        yield name
        # a frame begins with its place and duration
        place += 8 + (16 if name == b"ANMF" else size + size % 2)


def _wide(
    values: NDArray[Any], orientation: int, kind: str, *, has_alpha: bool = False, white_is_zero: bool = False
) -> Stored:
    """values: [H, W] or [H, W, C], as stored."""
    values = _native(_upright(values, orientation))
    alpha = None
    if has_alpha and values.ndim == 3:
        top = np.iinfo(values.dtype).max if values.dtype.kind in "ui" else 1.0
        alpha = np.asarray(np.clip(values[..., -1] / top, 0, 1) * 255).astype(np.uint8)
        values = values[..., :-1]
    if values.ndim == 3:
        values = values[..., 0] if values.shape[2] < 3 else values[..., :3]
    height, width = values.shape[:2]
    if values.dtype == np.uint8:
        return _narrow(255 - values if white_is_zero else values, alpha, kind)
    depth = "float" if values.dtype.kind == "f" else f"{values.dtype.itemsize * 8} bits"
    return Stored(width, height, kind, depth, values=values, alpha=alpha, white_is_zero=white_is_zero)


def _narrow(levels: NDArray[np.uint8], alpha: NDArray[np.uint8] | None, kind: str) -> Stored:
    """levels: [H, W] or [H, W, 3], which are what they are, whatever the range of a data set."""
    picture = Image.fromarray(np.ascontiguousarray(levels))
    if alpha is not None:
        picture = picture.convert("RGB")
        picture.putalpha(Image.fromarray(alpha))
    return Stored(picture.width, picture.height, kind, "8 bits", picture=picture)


def _read_npy(content: bytes, reading: Reading) -> Stored:
    stream = BytesIO(content)
    shape, dtype = npy_header(stream)
    layout = npy_layout(shape)
    height, width = shape[1:] if layout == "CHW" else shape[:2]
    _check_pixels(width, height, reading)
    if dtype.kind not in "buif":
        raise CorruptImageError(f"an array of type {dtype}; numbers are needed")
    # the header is checked before memory is taken for what it claims
    if len(content) - stream.tell() < dtype.itemsize * int(np.prod(shape, dtype=np.int64)):
        raise CorruptImageError("the array is cut off")
    array = _native(np.load(BytesIO(content), allow_pickle=False))
    if layout == "CHW":
        array = array.transpose(1, 2, 0)
    if array.ndim == 3:
        array = array[..., 0] if array.shape[2] == 1 else array[..., :3]
    if array.dtype == np.bool_:
        array = array.astype(np.uint8) * np.uint8(255)
    return _wide(array, 1, f"NPY {layout} {dtype.name}")


def _native(values: NDArray[Any]) -> NDArray[Any]:
    return values if values.dtype.isnative else values.astype(values.dtype.newbyteorder("="))


def _upright(values: NDArray[Any], orientation: int) -> NDArray[Any]:
    """An array [H, W, ...] turned and mirrored as its EXIF orientation (1 to 8) says."""
    if orientation in TURNED:
        values = values.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        values = values[::-1]
    if orientation in (2, 3, 6, 7):
        values = values[:, ::-1]
    return np.ascontiguousarray(values)


def _jpeg_quality(image: Image.Image) -> float | None:
    """1 to 100, by the scale that libjpeg gives to the standard's luminance table; None for other formats."""
    tables = getattr(image, "quantization", None)
    if not tables:
        return None
    scale = 100 * sum(tables[min(tables)]) / _STD_LUMINANCE_SUM
    return round(max(1.0, min(100.0, 100 - scale / 2 if scale <= 100 else 5000 / scale)))


def _check_pixels(width: int, height: int, reading: Reading) -> None:
    if width * height > reading.pixel_limit:
        raise _too_many(f"{width} x {height}", reading)


def _too_many(size: str, reading: Reading) -> CorruptImageError:
    limit = reading.pixel_limit
    shown = f"{limit / 1e6:g} million" if limit >= 10**5 else str(limit)
    return CorruptImageError(f"{size} pixels; at most {shown} are read, make it smaller or raise data.pixel_limit")

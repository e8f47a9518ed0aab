"""Masks of defects: which pixels are marked, and the same at the size of a model's input.

Any value but zero of any channel marks. That is decided before resizing, which takes the nearest pixel.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from sctune.data.decode import FORMATS, PIXEL_LIMIT, CorruptImageError, image_size
from sctune.data.digests import THREADS
from sctune.data.image_file import ImageFile
from sctune.errors import DataError

Mask = NDArray[np.bool_]
Size = tuple[int, int]

_ORIENTATION = 0x0112
_TURNED = (5, 6, 7, 8)
"""EXIF orientations that swap width and height."""
_ASPECT = 0.02
"""Masks whose aspect differs by more from their image's lie elsewhere, whatever the size."""


@dataclass(frozen=True)
class Usable:
    """Masks that can be measured by. rows: which of the asked files; masks: bool [N, S, S]; files: mask files read."""

    rows: list[int]
    masks: Mask
    files: int
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Looked:
    """One image's masks, joined, at the asked size; what is wrong with them, and the file that it is wrong with."""

    mask: Mask | None
    fault: str | None = None
    first: str = ""


def read_mask(path: Path) -> Mask:
    """bool [H, W]: where a mask marks, upright where it says how it lies.

    Any value but zero of any channel; palettes by their colours; transparency marks nothing. In JPEG files, whose
    compression leaves values around every edge, those above half of the largest. Raises CorruptImageError for what is
    no image, DataError for files that cannot be read.
    """
    try:
        if path.suffix.lower() == ".npy":
            return _marked(np.load(path, allow_pickle=False), alpha=False)
        with Image.open(path, formats=FORMATS) as image:
            if image.width * image.height > PIXEL_LIMIT:
                raise CorruptImageError(f"{path}: more than {PIXEL_LIMIT // 10**6} million pixels")
            lossy = image.format == "JPEG"
            upright = ImageOps.exif_transpose(image)
            if upright.mode not in ("1", "L", "LA", "RGB", "RGBA", "F") and not upright.mode.startswith("I"):
                upright = upright.convert("RGB")
            values = np.asarray(upright)
            return _marked(values, upright.mode in ("LA", "RGBA"), int(values.max()) // 2 if lossy else 0)
    except DataError:
        raise
    except UnidentifiedImageError:
        raise CorruptImageError(f"{path}: not an image that can be read") from None
    except OSError as problem:
        raise CorruptImageError(f"{path}: {problem.strerror or ' '.join(str(problem).split())[:200]}") from None
    except Exception as problem:
        # decoders raise nearly anything on damaged bytes
        text = " ".join(str(problem).split()) or type(problem).__name__
        raise CorruptImageError(f"{path} cannot be decoded: {text[:200]}") from None


def square_mask(mask: Mask, size: int, resize: str) -> Mask:
    """bool [size, size] of a mask [H, W], by the nearest pixel, in the geometry of `decode_image`."""
    height, width = mask.shape
    image = Image.fromarray(mask.astype(np.uint8))
    box, target = None, (size, size)
    if resize == "crop":
        side = min(width, height)
        left, top = (width - side) // 2, (height - side) // 2
        box = (left, top, left + side, top + side)
    elif resize == "pad":
        longest = max(width, height)
        target = (max(1, round(width * size / longest)), max(1, round(height * size / longest)))
    resized = image.resize(target, Image.Resampling.NEAREST, box=box)
    canvas = Image.new("L", (size, size))
    canvas.paste(resized, ((size - resized.width) // 2, (size - resized.height) // 2))
    marked: Mask = np.asarray(canvas) > 0
    return marked


def usable_masks(root: Path, files: Sequence[ImageFile], size: int, resize: str) -> Usable:
    """The masks of images, those of one image joined, at the size of a model's input.

    Left out, and named in the notes, are images whose masks cannot be read, mark nothing (in the file, or at this
    size), or have another shape than the image.
    """
    with ThreadPoolExecutor(THREADS) as pool:
        looked = list(pool.map(lambda file: _look(root, file, size, resize), files))
    rows = [row for row, one in enumerate(looked) if one.mask is not None]
    masks = [one.mask for one in looked if one.mask is not None]
    return Usable(
        rows,
        np.stack(masks) if masks else np.zeros((0, size, size), np.bool_),
        sum(len(files[row].masks) for row in rows),
        _notes(looked),
    )


def mask_notes(root: Path, files: Sequence[ImageFile], sizes: Mapping[str, Size] | None = None) -> tuple[str, ...]:
    """One line for each kind of fault of the masks of anomalous images: unreadable, empty, of another size.

    sizes: path -> width and height of the upright image, where they are known.
    """
    masked = [file for file in files if file.label == 1 and file.masks]
    known = sizes or {}
    with ThreadPoolExecutor(THREADS) as pool:
        return _notes(list(pool.map(lambda file: _look(root, file, None, "", known.get(file.path)), masked)))


def _look(root: Path, file: ImageFile, size: int | None, resize: str, known: Size | None = None) -> _Looked:
    """size: None to look only; known: width and height of the upright image."""
    joined: Mask | None = None
    fault, first = None, ""
    wanted = known or _upright_size(root / file.path)
    for name in file.masks:
        try:
            mask = read_mask(root / name)
        except DataError:
            return _Looked(None, "cannot be read and are left out", name)
        high, wide = mask.shape
        if wanted is not None and (wide, high) != wanted:
            fault, first = "are of another size than the image", name
            if abs(wide / high / (wanted[0] / wanted[1]) - 1) > _ASPECT:
                return _Looked(None, "are of another shape than the image and are left out", name)
        made = np.asarray(mask.any(keepdims=True)) if size is None else square_mask(mask, size, resize)
        if not mask.any():
            fault, first = "mark nothing", name
        joined = made if joined is None else joined | made
    if joined is None or not joined.any():
        return _Looked(None, fault or f"mark nothing at {size} x {size} pixels", first or file.masks[0])
    return _Looked(joined, fault, first)


def _notes(looked: Sequence[_Looked]) -> tuple[str, ...]:
    faults: dict[str, list[str]] = {}
    for one in looked:
        if one.fault is not None:
            faults.setdefault(one.fault, []).append(one.first)
    total = len(looked)
    return tuple(
        f"masks of {len(names)} of {total} anomalous image(s) {fault}, the first is {names[0]}"
        for fault, names in sorted(faults.items())
    )


def _marked(values: NDArray[Any], alpha: bool, above: int = 0) -> Mask:
    """values [H, W] or [H, W, C]; alpha: whether the last channel is transparency; above: largest value of no mark."""
    if values.ndim not in (2, 3) or 0 in values.shape:
        raise CorruptImageError(f"an array of shape {list(values.shape)} is no mask")
    colours = values[..., :-1] if alpha else values
    marks = colours > above if above else colours != 0
    joined: Mask = np.asarray(marks if marks.ndim == 2 else marks.any(axis=-1), dtype=np.bool_)
    return joined


def _upright_size(path: Path) -> tuple[int, int] | None:
    """Width and height of an image as it is seen, by its header; None where that cannot be read."""
    try:
        if path.suffix.lower() == ".npy":
            return image_size(path)
        with Image.open(path, formats=FORMATS) as image:
            turned = image.getexif().get(_ORIENTATION) in _TURNED
            return (image.height, image.width) if turned else (image.width, image.height)
    except Exception:  # decoders raise nearly anything; the image itself is refused where it is decoded
        return None

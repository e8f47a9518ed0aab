"""Masks of defects: which pixels are marked, and the same at the size of a model's input.

Any value but zero of any channel marks, as a file is seen. That is decided before resizing (to the nearest pixel).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sctune.data.containers import NPY_MAGIC, PIXEL_LIMIT, CorruptImageError, Reading, Stored, npy_header, read_stored
from sctune.data.decode import image_size
from sctune.data.digests import THREADS
from sctune.data.image_file import ImageFile
from sctune.errors import DataError

Mask = NDArray[np.bool_]
Size = tuple[int, int]

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


def read_mask(path: Path, pixel_limit: int = PIXEL_LIMIT) -> Mask:
    """bool [H, W]: where a mask marks, upright where it says how it lies; read as images are (`containers`).

    Any value but zero of any channel, as the file is seen: palettes by their colours, WhiteIsZero undone at every
    depth. What is wholly transparent marks nothing; where all colours are one, what is not transparent marks. In files
    compressed with loss, which leaves values around every edge, those above half of the largest. Raises
    CorruptImageError for what is no image of one page, DataError for files that cannot be read.
    """
    try:
        content = path.read_bytes()
    except OSError as problem:
        raise DataError(f"cannot read {path}: {problem.strerror}") from None
    try:
        if content.startswith(NPY_MAGIC):
            return _of_array(content, pixel_limit)
        return _of_image(read_stored(content, Reading(pixel_limit=pixel_limit)))
    except CorruptImageError as problem:
        raise CorruptImageError(f"{path}: {problem}") from None
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
    """One line for each kind of fault of masks: unreadable, empty, of another size; of a normal image and not empty.

    sizes: path -> width and height of the upright image, where they are known.
    """
    known = sizes or {}
    masked = [file for file in files if file.label == 1 and file.masks]
    normal = [file for file in files if file.label == 0 and file.masks]
    with ThreadPoolExecutor(THREADS) as pool:
        notes = _notes(list(pool.map(lambda file: _look(root, file, None, "", known.get(file.path)), masked)))
        found = list(pool.map(lambda file: _look(root, file, None, "", known.get(file.path)), normal))
    marked = [file.masks[0] for file, one in zip(normal, found, strict=True) if one.mask is not None]
    if not marked:
        return notes
    contrary = f"masks of {len(marked)} of {len(normal)} normal image(s) mark something, the first is {marked[0]}"
    return (*notes, f"{contrary}; see whether the label is right")


def _look(root: Path, file: ImageFile, size: int | None, resize: str, known: Size | None = None) -> _Looked:
    """size: None to look only; known: width and height of the upright image."""
    joined: Mask | None = None
    fault, first = None, ""
    wanted = known or _upright_size(root / file.path)
    # a mask of an image that was let through is let through
    limit = max(PIXEL_LIMIT, wanted[0] * wanted[1] if wanted else 0)
    for name in file.masks:
        try:
            mask = read_mask(root / name, limit)
        except DataError as problem:
            reason = str(problem).removeprefix(f"{root / name}").removeprefix(":").strip()
            return _Looked(None, "cannot be read and are left out", f"{name} ({reason})")
        high, wide = mask.shape
        if wanted is not None and (wide, high) != wanted:
            fault, first = "are of another size than the image", name
            if abs(wide / high / (wanted[0] / wanted[1]) - 1) > _ASPECT:
                return _Looked(None, "are of another shape than the image and are left out", name)
        made = np.asarray(mask.any(keepdims=True)) if size is None else square_mask(mask, size, resize)
        if mask.all():
            fault, first = "mark every pixel", name
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


def _of_array(content: bytes, pixel_limit: int) -> Mask:
    """Of a .npy file [H, W], [H, W, C] or [C, H, W], all C of it."""
    shape, dtype = npy_header(BytesIO(content))
    bands = None
    if len(shape) == 3:
        bands = 0 if shape[0] < shape[2] else -1
    pixels = math.prod(shape) // (shape[bands] or 1) if bands is not None else math.prod(shape)
    if len(shape) not in (2, 3) or 0 in shape or (len(shape) == 3 and shape[0] == shape[2]) or pixels > pixel_limit:
        raise CorruptImageError(
            f"an array of shape {list(shape)} is no mask; [H, W], [H, W, C] or [C, H, W] is needed, with fewer bands "
            f"than pixels, of which at most {pixel_limit} are read"
        )
    if dtype.kind not in "buif":
        raise CorruptImageError(f"an array of type {dtype}; numbers are needed")
    marks = _but_zero(np.load(BytesIO(content), allow_pickle=False))
    return marks if bands is None else np.asarray(marks.any(axis=bands))


def _of_image(stored: Stored) -> Mask:
    """values, alpha: of the whole picture as its file holds it."""
    if stored.values is not None:
        values, alpha = stored.values, stored.alpha
        if stored.white_is_zero:
            values = _black_is_zero(values)
    else:
        assert stored.picture is not None
        values, alpha = np.asarray(stored.picture), None
        if stored.picture.mode == "RGBA":
            values, alpha = values[..., :3], values[..., 3]
    if alpha is not None and int(alpha.min()) < int(alpha.max()):
        seen = alpha > 0
        # a shape that is drawn in transparency alone, whatever colour lies under it
        return seen if (values == values[0, 0]).all() else seen & _joined(values, stored.lossy)
    return _joined(values, stored.lossy)


def _joined(values: NDArray[Any], lossy: bool) -> Mask:
    marks = values > int(values.max()) // 2 if lossy else _but_zero(values)
    return marks if marks.ndim == 2 else np.asarray(marks.any(axis=-1))


def _but_zero(values: NDArray[Any]) -> Mask:
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise CorruptImageError("values that are no finite numbers; a mask has zero where nothing is marked")
    return np.asarray(values != 0)


def _black_is_zero(values: NDArray[Any]) -> NDArray[Any]:
    """Values that count from white, the other way round; black is the largest that the container holds."""
    if values.dtype.kind != "u":
        raise CorruptImageError(
            f"WhiteIsZero in {values.dtype}, whose black is not known; save the mask with 0 for none"
        )
    return np.asarray(np.iinfo(values.dtype).max - values)


def _upright_size(path: Path) -> tuple[int, int] | None:
    """Width and height of an image as it is seen; None where it cannot be read."""
    try:
        return image_size(path)
    except DataError:  # the image itself is refused where it is decoded
        return None

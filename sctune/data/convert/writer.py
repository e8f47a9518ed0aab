"""Making the files of a prepared data set: cut, converted or copied, by threads, with what is there already kept."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from itertools import groupby
from pathlib import Path

import numpy as np
from PIL import Image

from sctune.data.convert.plan import Box, RawImage
from sctune.data.convert.raw import read_mask
from sctune.data.convert.staging import AGAIN, free_bytes, full_disk, write_atomically, writing_errors
from sctune.data.decode import CorruptImageError, open_image
from sctune.data.manifest import FileRecord
from sctune.errors import DataError

Progress = Callable[[int, int], None]
"""Called with the number of images done and of all."""

THREADS = min(8, os.cpu_count() or 1)
CHUNK = 64
"""Raw files under way at a time; a failure is seen after as many at most."""
BANDS_SHARE = 16
"""A Mastcam array has six 8-byte bands, its picture three of one byte."""


def write_images(
    folder: Path, root: Path, images: Sequence[RawImage], progress: Progress | None = None
) -> tuple[FileRecord, ...]:
    """Write all images and masks below the folder, one raw file at a time in each thread; records sorted by path.

    Files that an earlier run has finished are kept. Raises DataError with the way out for raw files that cannot be
    read and for a full disk; what is written stays.
    """
    ordered = sorted(images, key=lambda image: (image.source, image.path))
    bundles = [list(bundle) for _, bundle in groupby(ordered, key=lambda image: image.source)]
    with writing_errors(folder, 0):
        for place in {Path(name).parent for image in images for name in (image.path, image.mask_path) if name}:
            (folder / place).mkdir(parents=True, exist_ok=True)
        volumes = [sum(_volume(folder, root, image) for image in bundle) for bundle in bundles]
    if sum(volumes) > free_bytes(folder):
        raise full_disk(folder, sum(volumes))
    records: list[FileRecord] = []
    try:
        with ThreadPoolExecutor(THREADS) as pool:
            for start in range(0, len(bundles), CHUNK):
                chunk = bundles[start : start + CHUNK]
                with writing_errors(folder, sum(volumes[start:])):
                    for made in pool.map(lambda bundle: _write_bundle(folder, root, bundle), chunk):
                        records += made
                        if progress:
                            progress(len(records), len(images))
    except CorruptImageError as problem:
        raise DataError(
            f"{problem}; get that file again, then {AGAIN} ({len(records)} of {len(images)} images are written)"
        ) from None
    return tuple(sorted(records, key=lambda record: record.path))


def encode_png(image: Image.Image) -> bytes:
    stream = BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


def cut(image: Image.Image, box: Box) -> Image.Image:
    """The pixels of the box; columns beyond the image's width are mirrored at its edge, so no false edge appears."""
    left, top, right, bottom = box
    inside = image.crop((left, top, min(right, image.width), bottom))
    short = right - image.width
    if short <= 0:
        return inside
    pixels = np.asarray(inside)
    return Image.fromarray(np.pad(pixels, [(0, 0), (0, short), (0, 0)][: pixels.ndim], mode="symmetric"))


def _write_bundle(folder: Path, root: Path, images: list[RawImage]) -> list[FileRecord]:
    """All images of one raw file, which is read once."""
    source = root / images[0].source
    decoded: Image.Image | None = None
    records = []
    for image in images:
        content = _kept(folder / image.path, root, (image.source, *image.masks))
        mask = _kept(folder / image.mask_path, root, (image.source, *image.masks)) if image.mask_path else None
        if content is None or (image.mask_path and mask is None):
            decoded = decoded or open_image(source)
            content = _image_content(source, decoded, image)
            write_atomically(folder / image.path, content)
            if image.mask_path:
                mask = _mask_content(root, decoded, image)
                write_atomically(folder / image.mask_path, mask)
        records.append(_record(image, content, mask))
    return records


def _image_content(source: Path, decoded: Image.Image, image: RawImage) -> bytes:
    if image.box is not None:
        return encode_png(cut(decoded, image.box))
    return encode_png(decoded) if source.suffix.lower() == ".npy" else _read(source)


def _mask_content(root: Path, decoded: Image.Image, image: RawImage) -> bytes:
    """A cut mask is 0 and 255; a whole one is copied."""
    if image.box is None:
        path = root / image.masks[0]
        open_image(path)
        return _read(path)
    # the plan has said which masks may be of another width
    marked = read_mask(root, image.masks, image.source, decoded.size, any_width=True)
    return encode_png(cut(Image.fromarray(marked * np.uint8(255)), image.box))


def _record(image: RawImage, content: bytes, mask: bytes | None) -> FileRecord:
    assert image.split is not None, "the split is assigned before anything is written"
    return FileRecord(
        path=image.path,
        source=image.source,
        sha256=hashlib.sha256(content).hexdigest(),
        kind=image.kind,
        split=image.split,
        unit=image.unit,
        group=image.group,
        mask=image.mask_path,
        mask_sha256=None if mask is None else hashlib.sha256(mask).hexdigest(),
    )


def _kept(path: Path, root: Path, sources: tuple[str, ...]) -> bytes | None:
    """What an earlier run has written, where it is whole and none of its raw files has changed since."""
    try:
        written = path.stat().st_mtime_ns
        if any((root / name).stat().st_ctime_ns > written for name in sources):
            return None
        content = path.read_bytes()
        open_image(content)
    except (OSError, CorruptImageError):
        return None
    return content


def _volume(folder: Path, root: Path, image: RawImage) -> int:
    """Bytes that the image will still take, about; 0 where it is there."""
    if (folder / image.path).exists():
        return 0
    if image.box is not None:
        left, top, right, bottom = image.box
        return (right - left) * (bottom - top)
    try:
        volume = (root / image.source).stat().st_size
        if image.source.lower().endswith(".npy"):
            return volume // BANDS_SHARE
        return volume + sum((root / name).stat().st_size for name in image.masks)
    except OSError as problem:
        raise DataError(f"cannot read {problem.filename}: {problem.strerror}; {AGAIN}") from None


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as problem:
        raise DataError(f"cannot read {path}: {problem.strerror}; then {AGAIN}") from None

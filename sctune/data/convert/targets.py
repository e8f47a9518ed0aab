"""The files that are to be made, looked at before anything is written: none twice, and no name that cannot be kept."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sctune.data.convert.plan import Box, RawImage
from sctune.data.places import refuse_unprintable
from sctune.errors import DataError


def check_targets(root: Path, images: Sequence[RawImage]) -> None:
    """Raises DataError, naming the raw files, where two images would be one file, or one image two.

    The second would put the same pixels into training and test; two boxes of one strip are not that.
    """
    sources: dict[tuple[str, Box | None], RawImage] = {}
    targets: dict[str, RawImage] = {}
    for image in images:
        for name in (image.source, *image.masks, image.path):
            refuse_unprintable(name)
        first = sources.setdefault((image.source, image.box), image)
        if first is not image:
            places = " and ".join(dict.fromkeys((first.path, image.path)))
            raise DataError(f"{root / image.source} is listed twice, for {places}; leave one of the entries")
        for target in (image.path, image.mask_path):
            first = targets.setdefault(target, image) if target else image
            if first is not image:
                raise DataError(
                    f"{root}: {first.source} and {image.source} would both make {target}; remove or rename one of them"
                )

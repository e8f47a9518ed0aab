"""Which masks of a ground_truth folder belong to which image: MVTec AD's names, the image's own name, MVTec LOCO's."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

from sctune.data.image_file import ImageFile

_ENDING = "_mask"


class MaskNames:
    """The masks of one ground_truth folder by the image that they mark.

    An image TYPE/STEM.* has the mask TYPE/STEM_mask.* (`_mask` in any case), else TYPE/STEM.*, else all of the folder
    TYPE/STEM, as in MVTec LOCO.
    """

    def __init__(self, paths: Iterable[str]) -> None:
        """paths: POSIX, relative to the ground_truth folder."""
        self._marked: dict[str, str] = {}
        self._same: dict[str, str] = {}
        self._folders: dict[str, list[str]] = {}
        self._left: set[str] = set()
        for path in sorted(paths):
            self._left.add(path)
            stem = PurePosixPath(path).with_suffix("").as_posix()
            if stem.lower().endswith(_ENDING):
                self._marked.setdefault(stem[: -len(_ENDING)], path)
            self._same.setdefault(stem, path)
            self._folders.setdefault(PurePosixPath(path).parent.as_posix(), []).append(path)

    def of(self, image: str) -> tuple[str, ...]:
        """Paths of the masks of an image, sorted. image: TYPE/NAME, as below the test folder."""
        stem = PurePosixPath(image).with_suffix("").as_posix()
        one = self._marked.get(stem) or self._same.get(stem)
        found = (one,) if one else tuple(self._folders.get(stem, ()))
        self._left.difference_update(found)
        return found

    @property
    def unused(self) -> list[str]:
        """Masks that no image has asked for, sorted."""
        return sorted(self._left)


def without_masks(place: Path, files: Sequence[ImageFile]) -> list[str]:
    """A note where some anomalous images have masks and some have none; place: the data set, for the message."""
    anomalies = [file for file in files if file.label == 1]
    without = [file.path for file in anomalies if not file.masks]
    if not without or len(without) == len(anomalies):
        return []
    return [f"{place}: {len(without)} of {len(anomalies)} anomalous images have no mask, the first is {without[0]}"]


def masks_as_images(place: Path, files: Sequence[ImageFile]) -> list[str]:
    """A note where files are called as the masks of images that lie beside them: they are read as images."""
    stems = {PurePosixPath(file.path).with_suffix("").as_posix() for file in files}
    marked = sorted(stem for stem in stems if stem.lower().endswith(_ENDING) and stem[: -len(_ENDING)] in stems)
    if not marked:
        return []
    return [
        f"{place}: {len(marked)} image(s) are called as masks of others and are read as images, the first is "
        f"{marked[0]}; move masks to ground_truth/TYPE, or name them in a CSV file"
    ]

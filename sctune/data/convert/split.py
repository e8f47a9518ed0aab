"""The 75/25 split of the normal images of data sets that come without one (METHODS 6)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from sctune.data.convert.plan import RawImage
from sctune.data.image_file import GOOD, ImageFile
from sctune.data.layouts import quarter_split
from sctune.data.pools import take_units

SEED = 42


def assign_split(images: Sequence[RawImage], grouped: bool) -> tuple[RawImage, ...]:
    """The images with their split, in the given order.

    Normals without one: scikit-learn's train_test_split(test_size=0.25, random_state=42) in the given order. grouped:
    whole source units are drawn instead, until a quarter of the normals is held out: first all units with a defect,
    also where those hold more (their anomalies must share no unit with a training normal); then every image carries
    its unit as group.
    """
    open_ones = [image for image in images if image.split is None]
    held = _held_units(images, open_ones) if grouped else {image.name for image in quarter_split(open_ones)[1]}
    chosen = []
    for image in images:
        if image.split is None:
            key = image.unit if grouped else image.name
            image = replace(image, split="test" if key in held else "train")
        chosen.append(replace(image, group=image.unit) if grouped else image)
    return tuple(chosen)


def quarter_and_defective(images: Sequence[RawImage]) -> tuple[int, int]:
    """A quarter of the normal images, rounded up, and how many lie in units with a defect."""
    units = [image.unit for image in images if image.kind == GOOD]
    mixed = _defective_units(images)
    return math.ceil(len(units) / 4), sum(unit in mixed for unit in units)


def _defective_units(images: Sequence[RawImage]) -> set[str | None]:
    return {image.unit for image in images if image.kind != GOOD}


def _held_units(images: Sequence[RawImage], normals: Sequence[RawImage]) -> set[str | None]:
    mixed = _defective_units(images)
    files = [ImageFile(image.name, label=0, kind=GOOD, group=image.unit or image.name) for image in normals]
    count = max(quarter_and_defective(images))
    held, _ = take_units(files, count, np.random.RandomState(SEED), lambda unit: 0 if unit in mixed else 1)
    return {file.group for file in held}

"""The 75/25 split of the normal images of data sets that come without one (METHODS 6)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from sctune.data.convert.plan import RawImage
from sctune.data.layouts import GOOD, ImageFile, quarter_split
from sctune.data.pools import take_units

SEED = 42


def assign_split(images: Sequence[RawImage], grouped: bool) -> tuple[RawImage, ...]:
    """The images with their split, in the given order.

    Normals without one: scikit-learn's train_test_split(test_size=0.25, random_state=42) in the given order. grouped:
    whole source units are drawn instead, until a quarter of the normals is held out, units with a defect first (so
    their anomalies share no unit with a training normal); then every image carries its unit as group.
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


def _held_units(images: Sequence[RawImage], normals: Sequence[RawImage]) -> set[str | None]:
    mixed = {image.unit for image in images if image.kind != GOOD}
    files = [ImageFile(image.name, label=0, kind=GOOD, group=image.unit or image.name) for image in normals]
    held, _ = take_units(
        files, math.ceil(len(files) / 4), np.random.RandomState(SEED), lambda unit: 0 if unit in mixed else 1
    )
    return {file.group for file in held}

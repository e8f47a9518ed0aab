"""Which values of a wide image are black and white: `data.range`, and what a data set itself says of it.

Images of 8 bits or 1 bit are what they are. Wider containers (16 or 32 bits, floating point) say nothing of the depth
that was used: a 12-bit camera leaves the upper four bits of a 16-bit file at zero.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sctune.config.data import range_ends
from sctune.errors import DataError

AUTO, CONTAINER = "auto", "container"
DEPTHS = (8, 10, 12, 14, 16)
"""Bits that cameras use, from which `auto` chooses."""
HOT_SHARE, HOT_LEAST = 1e-4, 4
"""Pixels beyond the range that an image may have: hot ones, which every sensor has a few of."""
DIM = 16
"""Grey levels of 256 that a whole image lies below, where it is probably of another depth."""
BLOCK = 2**20

Pixels = NDArray[np.uint8]
Values = NDArray[Any]


class RangeError(DataError):
    """Values that the range does not hold; `decode` makes an error of the file of it."""


@dataclass(frozen=True)
class ValueRange:
    """low is black, high is white; rounded: to the nearest grey level, else down (as value // 257 does)."""

    text: str
    low: float
    high: float
    rounded: bool = False


@dataclass(frozen=True)
class UsedValues:
    """What the values of one wide image are, without its hot pixels.

    whole: all are whole numbers; low, high: the smallest and the largest value.
    """

    whole: bool
    low: float
    high: float


def parse_range(text: str, dtype: np.dtype[Any]) -> ValueRange:
    """The range of images of one type of numbers; `auto` must have been resolved (`resolved_range`)."""
    if text == AUTO:
        raise ValueError("data.range=auto is resolved from the training normals before an image is decoded")
    ends = range_ends(text) or (0.0, 65535.0 if dtype == np.uint16 else 255.0)
    return ValueRange(text, *ends, rounded="," in text)


def used_values(values: Values) -> UsedValues:
    """values: of any shape; raises RangeError where one of them is no finite number."""
    _refuse_not_finite(values)
    flat = values.reshape(-1)
    hot = min(_hot(flat.size), flat.size - 1)
    ends = np.partition(flat, (0, flat.size - 1 - hot))
    whole = values.dtype.kind in "ui" or bool(np.array_equal(values, np.rint(values)))
    return UsedValues(whole, float(ends[0]), float(ends[flat.size - 1 - hot]))


def to_grey_levels(values: Values, text: str) -> tuple[Pixels, list[str]]:
    """values of a wide image, any shape, to uint8 of the same shape; and what there is to say of it.

    Raises RangeError where more than a few hot pixels lie outside of the range: nothing is cut in silence.
    """
    _refuse_not_finite(values)
    span = parse_range(text, values.dtype)
    if values.dtype.kind == "f" and not span.rounded:
        _refuse_fractions(values)
    beyond, largest = _beyond(values, span)
    if beyond > _hot(values.size):
        low, high = float(values.min()), float(values.max())
        raise RangeError(
            f"values from {low:g} to {high:g}, and data.range={span.text} reads {span.low:g} to {span.high:g}; the "
            "image is of another depth, exposure or unit than the data set"
        )
    levels = _levels(values, span)
    notes = [f"{beyond} hot pixels of up to {largest:g} count as {span.high:g}"] if beyond else []
    if levels.max() < DIM and float(values.max()) > 0:
        notes.append(
            f"nearly black: values up to {float(values.max()):g} where data.range={span.text} has white at "
            f"{span.high:g}; is it of another depth?"
        )
    return levels, notes


def resolved_range(found: Iterable[UsedValues]) -> str:
    """What `auto` means for a data set whose wide training normals have these values; `bits:8` where none is wide.

    Raises DataError with the way out where they do not say it themselves.
    """
    images = list(found)
    if not images:
        return "bits:8"
    low, high = min(image.low for image in images), max(image.high for image in images)
    way_out = f"say which value is black and which is white, for example --set data.range={low:g},{high:g}"
    if low < -0.5 / 255 or high > 65535:
        raise DataError(f"the normal images hold values from {low:g} to {high:g}; {way_out}")
    unit = [not image.whole and image.high <= 1 + 0.5 / 255 for image in images]
    if all(unit):
        return "0,1"
    if any(unit):
        raise DataError(f"some normal images hold values up to 1, others up to {high:g}; make them alike, or {way_out}")
    if high < 64 and not all(image.whole for image in images):
        raise DataError(f"the normal images hold values from {low:g} to {high:g}, in a unit of their own; {way_out}")
    return f"bits:{next(depth for depth in DEPTHS if high < 2**depth)}"


def _hot(pixels: int) -> int:
    return max(HOT_LEAST, int(pixels * HOT_SHARE))


def _refuse_not_finite(values: Values) -> None:
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise RangeError(f"values from {values.min():g} to {values.max():g}; finite numbers are needed")


def _refuse_fractions(values: Values) -> None:
    """Floating-point numbers up to 1 would all be black where whole grey levels are expected."""
    low, high = float(values.min()), float(values.max())
    if 0 < high <= 1 + 0.5 / 255 and not np.array_equal(values, np.rint(values)):
        raise RangeError(f"values from {low:g} to {high:g}; say so with data.range=0,1, or multiply by 255")


def _beyond(values: Values, span: ValueRange) -> tuple[int, float]:
    """How many values give no grey level, and the one that is furthest above the range."""
    step = (span.high - span.low) / 255
    # a hair beyond the ends is still the last grey level
    hair = step / 2 if span.rounded else 0.999 * step if values.dtype.kind == "f" else 0.0
    below, above = values < span.low - (hair if span.rounded else 0), values > span.high + hair
    dark, hot = int(np.count_nonzero(below)), int(np.count_nonzero(above))
    # a sensor's hot pixels are bright; below zero there is nothing that bits could mean
    return values.size if dark and not span.rounded else dark + hot, float(values.max())


def _levels(values: Values, span: ValueRange) -> Pixels:
    if values.dtype == np.uint16:
        return np.asarray(_scaled(np.arange(65536, dtype=np.uint16), span)[values])
    return _scaled(values, span)


def _scaled(values: Values, span: ValueRange) -> Pixels:
    flat = values.reshape(-1)
    levels = np.empty(flat.size, np.uint8)
    # block by block: the whole in double precision would take eight times the memory of the image
    for start in range(0, flat.size, BLOCK):
        # multiplied first: whole numbers stay exact, so that 257 k is level k
        part = (flat[start : start + BLOCK].astype(np.float64) - span.low) * 255 / (span.high - span.low)
        levels[start : start + BLOCK] = np.clip(np.rint(part) if span.rounded else np.floor(part), 0, 255)
    return levels.reshape(values.shape)

"""Which depth a data set uses: `data.range=auto`, found once from the training normals and kept from then on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from sctune.config import TrialConfig
from sctune.config.data import DataConfig
from sctune.data.containers import CorruptImageError
from sctune.data.decode import Decoding, wide_values
from sctune.data.images import THREADS
from sctune.data.ranges import AUTO, UsedValues, resolved_range
from sctune.data.split import Split

ODD_FACTOR = 8
"""How many times darker than the brightest normal image another one's brightest pixels are, where it is told."""


@dataclass(frozen=True)
class FoundRange:
    """range: what data.range=auto means here; line: how it was found; warnings: one line each."""

    range: str
    line: str
    warnings: tuple[str, ...] = ()


def find_range(normals: Iterable[tuple[Path, Sequence[str]]], data: DataConfig) -> FoundRange:
    """normals: root and paths of the training normals of each data set; of images of 8 bits the header alone is read.

    A few hot pixels of an image do not count. Raises DataError with the way out where the values do not say their
    depth: negative ones, floating point in a unit of its own, or images that differ.
    """
    places = sorted({root / path for root, paths in normals for path in paths})
    reading = Decoding(data.image_size, page=data.page, pixel_limit=data.pixel_limit).reading

    def look(place: Path) -> UsedValues | None:
        try:
            return wide_values(place, reading)
        except CorruptImageError:  # named, or skipped, where it is decoded
            return None

    with ThreadPoolExecutor(THREADS) as pool:
        seen = list(zip(places, pool.map(look, places), strict=True))
    wide = {place: values for place, values in seen if values is not None}
    chosen = resolved_range(wide.values())
    if not wide:
        return FoundRange(chosen, "values: 8-bit images (data.range=bits:8)")
    brightest = max(values.high for values in wide.values())
    count = f"{len(wide)} of {len(places)} training normals are" if len(wide) < len(places) else "images are"
    line = f"values: {count} of more than 8 bits, the brightest reach {brightest:g}: data.range={chosen}"
    return FoundRange(chosen, line, tuple(_odd(wide, brightest)))


def with_range(config: TrialConfig, split: Split) -> TrialConfig:
    """The configuration with data.range=auto replaced by what the split's training normals say."""
    if config.data.range != AUTO:
        return config
    paths = [file.path for file in split.train if file.label == 0]
    return config.override({"data.range": find_range([(split.root, paths)], config.data).range})


def _odd(wide: dict[Path, UsedValues], brightest: float) -> list[str]:
    dark = sorted(place for place, values in wide.items() if 0 < values.high * ODD_FACTOR < brightest)
    if not dark:
        return []
    return [
        f"{len(dark)} of {len(wide)} training normals of more than 8 bits are over {ODD_FACTOR} times darker than the "
        f"brightest, first {dark[0].name} (up to {wide[dark[0]].high:g} of {brightest:g}): are all of one depth?"
    ]

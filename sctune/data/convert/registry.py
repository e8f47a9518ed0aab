"""The paper's data sets that `sctune data prepare` knows, by name."""

from __future__ import annotations

from sctune.data.convert.aitex import AITEX
from sctune.data.convert.elpv import ELPV
from sctune.data.convert.mastcam import MASTCAM
from sctune.data.convert.mvtec import MVTEC
from sctune.data.convert.optical import OPTICAL
from sctune.data.convert.plan import RawSet
from sctune.data.convert.sdd import SDD
from sctune.errors import DataError, nearest

SETS = (MVTEC, SDD, AITEX, ELPV, OPTICAL, MASTCAM)


def known_sets() -> tuple[RawSet, ...]:
    """All six, in the paper's order."""
    return SETS


def raw_set(name: str) -> RawSet:
    """A data set by name; raises DataError with the nearest one for others."""
    found = next((one for one in SETS if one.name == name.lower()), None)
    if found is None:
        raise DataError(f"unknown data set {name!r}; {nearest(name, [one.name for one in SETS])}")
    return found

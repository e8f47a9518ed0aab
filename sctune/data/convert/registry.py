"""The data sets that `sctune data prepare` knows, by name: the paper's six, and those of other packages.

Another package adds one by an entry point of the group `sctune.converters` that leads to a `RawSet`
(docs/extending.md).
"""

from __future__ import annotations

from sctune.data.convert.aitex import AITEX
from sctune.data.convert.elpv import ELPV
from sctune.data.convert.mastcam import MASTCAM
from sctune.data.convert.mvtec import MVTEC
from sctune.data.convert.optical import OPTICAL
from sctune.data.convert.plan import RawSet
from sctune.data.convert.sdd import SDD
from sctune.errors import ConfigError, DataError, nearest
from sctune.plugins import load_plugin, plugin_names

GROUP = "sctune.converters"
SETS = (MVTEC, SDD, AITEX, ELPV, OPTICAL, MASTCAM)


def known_sets() -> tuple[RawSet, ...]:
    """The paper's six in its order, then those of other packages by name.

    Raises ConfigError for a package whose entry point cannot be loaded, or is no RawSet of that name.
    """
    return (*SETS, *(_foreign(name) for name in plugin_names(GROUP, [one.name for one in SETS])))


def raw_set(name: str) -> RawSet:
    """A data set by name; raises DataError with the nearest one for others."""
    sets = known_sets()
    found = next((one for one in sets if one.name == name.lower()), None)
    if found is None:
        raise DataError(f"unknown data set {name!r}; {nearest(name, [one.name for one in sets])}")
    return found


def _foreign(name: str) -> RawSet:
    found = load_plugin(GROUP, name)
    if not isinstance(found, RawSet) or found.name != name or name != name.lower():
        what = f"a RawSet named {found.name!r}" if isinstance(found, RawSet) else f"a {type(found).__name__}"
        raise ConfigError(
            f"entry point {name!r} of group {GROUP} gives {what}; it must be a RawSet of that name, in lower case"
        )
    return found

"""Backbones by name: the shipped ones, `timm/NAME`, and those of installed packages. Imports no torch.

A package ships one by the entry-point group `sctune.backbones`: the entry point's name is the backbone's, and it loads
a `BackboneEntry`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from sctune.backbones import features, lite, resnet, vgg
from sctune.backbones.entry import BackboneEntry, Tap
from sctune.backbones.timm_nets import PREFIX, timm_entry
from sctune.errors import WeightsError, nearest
from sctune.plugins import load_entry, plugin_names

GROUP = "sctune.backbones"
SHIPPED = {entry.name: entry for entry in (*resnet.ENTRIES, *vgg.ENTRIES, *features.ENTRIES, *lite.ENTRIES)}
_registered: dict[str, BackboneEntry] = {}


def register(entry: BackboneEntry) -> None:
    """Add a backbone in this process alone (a notebook); workers of a search know those of installed packages.

    Raises ValueError for a name that another one has.
    """
    if entry.name in SHIPPED or entry.name.startswith(PREFIX) or entry.name in plugin_names(GROUP):
        raise ValueError(f"a backbone {entry.name!r} exists already; give it another name")
    _registered[entry.name] = entry


def backbone_entry(name: str) -> BackboneEntry:
    """What is known of a backbone; raises WeightsError, with the nearest name, where nothing is."""
    if name in SHIPPED:
        return SHIPPED[name]
    if name.startswith(PREFIX):
        return timm_entry(name)
    if name in _registered:
        return _registered[name]
    return _plugin(name)


def backbone_names() -> list[str]:
    """All names but those of timm, sorted."""
    return sorted({*SHIPPED, *_registered, *plugin_names(GROUP)})


def feature_side(image_size: int, backbone: str, taps: Sequence[str]) -> int:
    """Side in cells of the square map that a backbone gives: the largest one of the taps.

    Raises ValueError for an unknown tap and for an image side, in pixels, that the backbone cannot take.
    """
    entry = backbone_entry(backbone)
    return max(entry.rounding(image_size, entry.tap(tap)) for tap in taps)


def tap_list(backbone: str, taps: Sequence[str]) -> list[Tap]:
    """The maps of these names, the shallowest first. Raises ValueError for unknown names and for one map twice."""
    entry = backbone_entry(backbone)
    found = [entry.tap(name) for name in taps]
    if len(set(found)) < len(found):
        raise ValueError(f"{', '.join(taps)} name one map of {backbone} twice; name each once")
    return sorted(found, key=lambda tap: (tap.after, tap.output))


@lru_cache(maxsize=64)
def _plugin(name: str) -> BackboneEntry:
    if name not in plugin_names(GROUP):
        raise WeightsError(f"unknown backbone {name!r}; {nearest(name, (*backbone_names(), 'timm/NAME'))}")
    return load_entry(GROUP, name, BackboneEntry)

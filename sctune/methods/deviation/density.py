"""What a configuration of the family says of the density beside its detector."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sctune.backbones.registry import backbone_entry, tap_list
from sctune.config import TrialConfig
from sctune.methods.untrained.entry import taps_of

WEIGHT = "score.density"
WEIGHTS = (0.0, 0.5, 1.0, 2.0, 4.0, 10.0)
ENOUGH = 10
WELL_SHOWN, BADLY_SHOWN = 2.0, 10.0
"""Weights of the density by `auto`: heads that were shown ENOUGH anomalies of the kinds to come, or not. Measured on
ELPV's development images: heads trained on one anomaly, or on one kind and asked for the other, have AUROC .66 and .57
to .67 where the density has .88 and .87 to .91; at a weight of 1 they cost it .02 and .04 to .06, at 10 less than .005.
"""


def density_config(config: TrialConfig) -> TrialConfig:
    """The configuration of method `gaussian` that fits the density; raises ConfigError where it cannot be fitted."""
    model = config.model
    components = model.density_components if model.normal_head == "mixture" else 1
    section: dict[str, Any] = {"name": "gaussian", "components": components, "push": model.density_push}
    if model.density_features == "cells":
        section |= {"features": "cells", "cell_share": cell_share(config)}
    return config.override({f"method.{name}": value for name, value in section.items()})


def auto_weight(config: TrialConfig, shown: int) -> float:
    """Weight of the density beside 1 for the heads, by what these were shown of the defects to come.

    shown: labelled anomalies that were trained on.
    """
    return WELL_SHOWN if config.data.setting == "general" and shown >= ENOUGH else BADLY_SHOWN


def cell_share(config: TrialConfig) -> float:
    """Share of the highest cells that make a score."""
    return config.score.top_k or config.model.top_k


def trunk_ends(config: TrialConfig) -> dict[int, int]:
    """Numbers of leading blocks of the trained trunk behind which a density looks -> channels there, ascending.

    Those of method `gaussian`, as far as the trunk reaches; the trunk's own maps where it reaches none of them.
    """
    backbone = config.model.backbone
    known, own = backbone_entry(backbone).taps.values(), tap_list(backbone, config.model.tap_names)
    usual = tap_list(backbone, taps_of(density_config(config)))
    found = {}
    for tap in usual:
        # a block of several maps gives those that the detector looks at
        several = any(other.after == tap.after and other.output != tap.output for other in known)
        if tap.after <= own[-1].after and not several:
            found[tap.after] = tap.channels
    if not found:
        found = {end: sum(tap.channels for tap in own if tap.after == end) for end in {tap.after for tap in own}}
    return dict(sorted(found.items()))


def density_variants(config: TrialConfig, variants: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Ways to score, each with all weights of the density; the first is the configuration's own."""
    own = config.score.density
    weights: list[Any] = [own, *(weight for weight in WEIGHTS if weight != own)]
    found = [{**variant, WEIGHT: weight} for variant in variants for weight in weights]
    return sorted(found, key=lambda variant: variant != found[0])

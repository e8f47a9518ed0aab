"""What a configuration of the family says of the density beside its detector."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sctune.config import TrialConfig

WEIGHT = "score.density"
WEIGHTS = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0)


def density_config(config: TrialConfig) -> TrialConfig:
    """The configuration of method `gaussian` that fits the density; raises ConfigError where it cannot be fitted."""
    model = config.model
    components = model.density_components if model.normal_head == "mixture" else 1
    section = {"name": "gaussian", "components": components, "push": model.density_push}
    return config.override({f"method.{name}": value for name, value in section.items()})


def density_variants(config: TrialConfig, variants: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Ways to score, each with all weights of the density; the first is the configuration's own."""
    own = config.score.density
    weights = [own, *(weight for weight in WEIGHTS if weight != own)]
    found = [{**variant, WEIGHT: weight} for variant in variants for weight in weights]
    return sorted(found, key=lambda variant: variant != found[0])

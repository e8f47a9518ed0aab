"""From what gain on a search goes on by itself (`--min-gain`)."""

from __future__ import annotations

from sctune.config import search_defaults
from sctune.errors import ConfigError
from sctune.metrics.objective import is_shipped
from sctune.search.plan.options import SearchOptions

GRID = "grid"


def default_min_gain(profile: str, sampler: str, objective: str) -> float:
    """0, never, for a grid, and for objectives of other packages, whose units are their own."""
    return 0.0 if sampler == GRID or not is_shipped(objective) else search_defaults(profile).min_gain


def min_gain(options: SearchOptions, profile: str, sampler: str) -> float:
    """What was asked for, or the default. Raises ConfigError where a grid is to end before its last point."""
    asked = options.min_gain
    if asked and sampler == GRID:
        raise ConfigError(
            f"--min-gain {asked:g}: sampler grid is there to compare all its points; leave it out, or take another "
            "--sampler"
        )
    return default_min_gain(profile, sampler, options.objective) if asked is None else asked

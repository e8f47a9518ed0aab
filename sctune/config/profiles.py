"""Named settings to begin with: a configuration and what goes with it in a search."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

import yaml
from pydantic import Field

from sctune.config.section import Section
from sctune.config.trial import TrialConfig, leaves
from sctune.errors import ConfigError, nearest


class SearchDefaults(Section):
    """What a profile says about the search itself; options of the command line win."""

    trials: int = Field(24, ge=1)
    sampler: str = "tpe"
    scheduler: str = "asha"
    grace: int | None = Field(None, ge=1, description="first rung in epochs; none: max(1, epochs / 9)")
    factor: int = Field(3, ge=2, description="one in `factor` trials passes a rung")
    min_gain: float = Field(0.002, ge=0, description="a search ends by itself where its rest gains less; 0: never")
    folds: int = Field(5, ge=2, description="folds over the anomalies in selection modes `seen` and `cross`")
    cpus_per_trial: float = Field(1.0, gt=0)
    references: bool = Field(True, description="run the references, methods that train nothing, before the trials")


def profile_names() -> list[str]:
    return sorted(_profiles())


def load_profile(name: str) -> TrialConfig:
    """The base configuration of a profile: smoke, cpu, gpu or paper. Raises ConfigError for others."""
    return TrialConfig().override(dict(leaves(_profile(name).get("config", {}))))


def search_defaults(name: str) -> SearchDefaults:
    """The search settings of a profile (trials, rungs, folds, resources per trial)."""
    return SearchDefaults.model_validate(_profile(name).get("search", {}))


def _profile(name: str) -> dict[str, Any]:
    profiles = _profiles()
    if name not in profiles:
        raise ConfigError(f"unknown profile {name!r}; {nearest(name, profiles)}")
    return dict(profiles[name])


def _profiles() -> dict[str, Any]:
    return dict(yaml.safe_load(files("sctune").joinpath("profiles.yaml").read_text(encoding="utf-8")))

"""From the options of a search to what its trials share: the base configuration, and the space over it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from sctune.backbones.weights import IMAGENET, RANDOM
from sctune.config import TrialConfig, load_profile, search_defaults
from sctune.errors import ConfigError
from sctune.methods.named import method_values
from sctune.search.plan.method_space import method_space
from sctune.search.plan.options import SearchOptions
from sctune.search.plan.references import planned_references
from sctune.search.space.definition import Space, load_space
from sctune.search.space.named import ALL_METHODS, own_space_of
from sctune.search.space.parameter import as_number

PAPER = "paper"
"""The profile in which a method is what was published."""


def base_config(options: SearchOptions, profile: str) -> TrialConfig:
    """The profile with the method, or what that of its own space has for it, and the options merged.

    Raises ConfigError for options that do not go together.
    """
    values: dict[str, Any] = {"data.setting": options.setting, "data.selection": options.selection}
    if (options.normal is None) != (options.anomalous is None):
        raise ConfigError("--normal and --anomalous go together: two folders of images")
    if options.normal is not None and options.anomalous is not None:
        if options.data is not None:
            raise ConfigError("--data or --normal with --anomalous, not both")
        normal, anomalous = (Path(folder).expanduser().absolute() for folder in (options.normal, options.anomalous))
        values["data.source"] = f"normal={normal};anomalous={anomalous}"
    elif options.data is not None:
        values["data.source"] = (
            options.data if options.data == "elpv" else str(Path(options.data).expanduser().absolute())
        )
    if options.setting == "hard":
        values["data.known_class"] = options.known_classes[0] if options.known_classes else None
    elif options.known_classes:
        raise ConfigError("--known-class goes with --setting hard")
    values |= {
        "data.category": options.categories[0] if options.categories else None,
        "data.partition_seed": options.partition_seed,
        "data.skip_corrupt": options.skip_corrupt,
        "data.allow_duplicates": options.allow_duplicates,
    }
    if options.n_anomalies is not None:
        values["data.n_anomalies"] = options.n_anomalies
    if options.seeds:
        values["seed"] = options.seeds[0]
    if options.method is not None:
        # what the user asked for by an option of its own wins over the method
        values = method_values(options.method, profile) | values
    else:
        values = _own_start(options.space, profile) | values
    return load_profile(profile).override(values)


def _own_start(space: str, profile: str) -> dict[str, Any]:
    """What a method has for a profile where the space is its own, of the first of its published names.

    Without what it searches; and what makes a published name is left to `--method`.
    """
    entry = own_space_of(space)
    if entry is None or not entry.published:
        return {}
    tree = next(iter(entry.published.values())).get(profile, {})
    values = {f"{section}.{field}": value for section, fields in tree.items() for field, value in fields.items()}
    return {"method.name": entry.name} | {
        name: value for name, value in values.items() if name not in entry.hyperparameters
    }


def search_space(options: SearchOptions, profile: str, base: TrialConfig) -> Space:
    """The space over the profile; paths are made absolute, since workers have another current folder."""
    overrides = dict(options.overrides)
    weights = overrides.get("model.weights")
    if isinstance(weights, str) and weights not in (IMAGENET, RANDOM):
        overrides["model.weights"] = str(Path(weights).expanduser().absolute())
    if options.space == ALL_METHODS:
        space = _over_methods(options, profile, base, overrides)
    else:
        space = load_space(options.space, base, overrides)
    if options.method is not None:
        # what it has for a profile of ours is a place to begin, and the space's to vary
        published = profile if profile == PAPER else None
        _check_method(options.method, method_values(options.method, published), space)
    fixed = space.base.model.weights
    if fixed not in (IMAGENET, RANDOM) and not Path(fixed).is_absolute():
        space = replace(space, base=space.base.override({"model.weights": str(Path(fixed).expanduser().absolute())}))
    return space


def _over_methods(options: SearchOptions, profile: str, base: TrialConfig, overrides: dict[str, Any]) -> Space:
    if options.method is not None:
        raise ConfigError(
            f"--method {options.method} is one method, and space {ALL_METHODS} searches over all; leave it out, "
            f"or take --space {base.method.name}"
        )
    references, _ = planned_references(options.references, profile, base)
    trials = options.trials or search_defaults(profile).trials
    return method_space(profile, base, overrides, references, trials)


def _check_method(method: str, values: dict[str, Any], space: Space) -> None:
    """ConfigError where the space decides what the method sets.

    A method whose parts the space decides would be a method by name only, with the rest of its settings left.
    """
    for field, value in values.items():
        if field in space.by_name or field in space.variant_fields:
            raise ConfigError(
                f"--method {method} sets {field}, which space {space.name} varies; leave --method out, or take "
                "another space"
            )
        if field in space.fixed and as_number(space.fixed[field]) != value:
            raise ConfigError(
                f"--method {method} sets {field}={value}, and space {space.name} sets it to {space.fixed[field]}; "
                "leave --method out, or take another space"
            )

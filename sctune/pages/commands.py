"""The commands that repeat a study, made from its manifest."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from sctune.config import TASK_FIELDS, TrialConfig, parse_assignments, read_yaml, search_defaults
from sctune.errors import SctuneError
from sctune.search.plan.base import base_config
from sctune.search.plan.gain import default_min_gain
from sctune.search.plan.options import SearchOptions
from sctune.search.rules.registry import NO_RULE
from sctune.search.space.named import method_spaces, shipped_spaces
from sctune.search.study.manifest import StudyManifest

SPACE_FILE = "space.yaml"
"""What a space that does not come with sctune is to be saved as."""


_MISSING = object()


def search_words(manifest: StudyManifest, name: str) -> list[str]:
    """`sctune search` with the options that make the same study under another name; each word as it is typed.

    Places (study root, storage, tracking) are left out: they are this machine's.
    """
    words = ["sctune", "search", "--space", _space(manifest), "--name", name, "--profile", manifest.profile]
    for option, value in _data(manifest) + _tasks(manifest) + _search(manifest):
        words += [option] if value is None else [option, str(value)]
    for field, value in changed_fields(manifest).items():
        words += ["--set", f"{field}={_written(value)}"]
    return words


def command(words: Iterable[str]) -> str:
    """One line for a shell."""
    return shlex.join(words)


def is_shipped(manifest: StudyManifest) -> bool:
    """Whether the study's space is one that comes with this sctune or one of its methods, unchanged."""
    name = str(manifest.space.get("name"))
    path = shipped_spaces().get(name)
    content = method_spaces().get(name) if path is None else read_yaml(path)
    return content is not None and {**content, "format_version": 1} == {**manifest.space, "format_version": 1}


def changed_fields(manifest: StudyManifest) -> dict[str, Any]:
    """Fields of the base configuration that profile, options and space do not give, with their values."""
    config, expected = manifest.trial_config(), _expected(manifest)
    named = {} if config.method.name == expected.method.name else {"method.name": config.method.name}
    with suppress(SctuneError):  # else its fields are named one by one
        expected = expected.override(named)
    asked = expected.flat()
    own = {*TASK_FIELDS, "data.partition_seed", "data.selection", "data.skip_corrupt", "data.n_anomalies"}
    differs = {name: value for name, value in config.flat().items() if asked.get(name, _MISSING) != value}
    return named | {name: value for name, value in differs.items() if name not in own}


def _space(manifest: StudyManifest) -> str:
    return str(manifest.space.get("name")) if is_shipped(manifest) else SPACE_FILE


def _expected(manifest: StudyManifest) -> TrialConfig:
    data = manifest.trial_config().data
    options = SearchOptions(
        space=_space(manifest),
        setting=data.setting,
        known_classes=() if data.known_class is None else (data.known_class,),
        selection=data.selection,
        n_anomalies=data.n_anomalies,
    )
    base = base_config(options, manifest.profile)
    try:
        return base.override(manifest.space.get("set", {}))
    except SctuneError:  # only together with what the command line set
        return base


def _data(manifest: StudyManifest) -> list[tuple[str, Any]]:
    data = manifest.trial_config().data
    source = data.source
    if source.startswith("normal=") and ";anomalous=" in source:
        normal, _, anomalous = source.removeprefix("normal=").partition(";anomalous=")
        found: list[tuple[str, Any]] = [("--normal", normal), ("--anomalous", anomalous)]
    else:
        found = [("--data", source)]
    found += [("--category", name) for name in dict.fromkeys(task.category for task in manifest.tasks) if name]
    return found + ([("--skip-corrupt", None)] if data.skip_corrupt else [])


def _tasks(manifest: StudyManifest) -> list[tuple[str, Any]]:
    data = manifest.trial_config().data
    found: list[tuple[str, Any]] = [("--setting", data.setting)]
    found += [("--known-class", name) for name in dict.fromkeys(task.known_class for task in manifest.tasks) if name]
    if data.setting != "anomaly-free":
        found.append(("--n-anomalies", data.n_anomalies))
    seeds = ",".join(str(seed) for seed in dict.fromkeys(task.seed for task in manifest.tasks))
    return [
        *found,
        ("--seeds", seeds),
        *([] if manifest.replicates == 1 else [("--replicates", manifest.replicates)]),
        ("--selection", data.selection),
        *([] if manifest.build_objective().is_default else [("--objective", manifest.objective)]),
        ("--partition-seed", manifest.partition_seed),
    ]


def _search(manifest: StudyManifest) -> list[tuple[str, Any]]:
    defaults, resources = search_defaults(manifest.profile), manifest.resources
    found: list[tuple[str, Any]] = [
        ("--trials", manifest.trials),
        ("--sampler", manifest.sampler),
        ("--sampler-seed", manifest.sampler_seed),
        *(("--prior", prior.name) for prior in manifest.priors),
        ("--scheduler", manifest.scheduler.name),
        *_rungs(manifest),
        *_min_gain(manifest),
        ("--free-running", None) if manifest.look_behind is None else ("--look-behind", manifest.look_behind),
    ]
    if resources.gpus:
        found.append(("--gpus-per-trial", "auto" if resources.packed else f"{resources.gpus:g}"))
    if resources.cpus != defaults.cpus_per_trial:
        found.append(("--cpus-per-trial", f"{resources.cpus:g}"))
    if bool(manifest.references) != defaults.references:
        found.append(("--references" if manifest.references else "--no-references", None))
    # of a free-running study it decides which results a sampler has seen when it proposes
    return [*found, ("--max-concurrent", resources.max_concurrent)]


def _min_gain(manifest: StudyManifest) -> list[tuple[str, Any]]:
    asked = manifest.min_gain or 0.0
    usual = default_min_gain(manifest.profile, manifest.sampler, manifest.objective)
    return [] if asked == usual else [("--min-gain", asked)]


def _rungs(manifest: StudyManifest) -> list[tuple[str, Any]]:
    """What was asked of the scheduler, where it stops anybody."""
    spec, defaults = manifest.scheduler, search_defaults(manifest.profile)
    if spec.name == NO_RULE:
        return []
    usual = defaults.grace if defaults.grace is None else min(defaults.grace, manifest.replicate_epochs)
    found: list[tuple[str, Any]] = [] if spec.grace == usual else [("--grace", spec.grace)]
    found += [] if spec.factor == defaults.factor else [("--factor", spec.factor)]
    found += [] if spec.stop_confidence is None else [("--stop-confidence", spec.stop_confidence)]
    return found + ([("--audit", f"{manifest.audit:g}")] if manifest.audit else [])


def _written(value: Any) -> str:
    """A value as `--set` reads it back."""
    if isinstance(value, str):
        plain = parse_assignments([f"k={value}"])["k"] if value and "\n" not in value else None
        return value if plain == value and isinstance(plain, str) else json.dumps(value)
    return json.dumps(value)

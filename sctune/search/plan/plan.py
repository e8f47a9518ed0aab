"""From options to a plan: all checks before a study exists; nothing is written but the image cache."""

from __future__ import annotations

import itertools
import subprocess
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from optuna.distributions import CategoricalDistribution

from sctune.backbones.trunk import build_backbone
from sctune.backbones.weights import resolve_weights
from sctune.config import Task, TrialConfig, method_entry, search_defaults
from sctune.data.catalog import DataSet, open_dataset
from sctune.data.check import DataCheck, check_data
from sctune.data.decode import Decoding
from sctune.data.depth import FoundRange, find_range
from sctune.data.images import CorruptImageError, ImageCache
from sctune.data.ranges import AUTO
from sctune.data.split import Split, split_for
from sctune.errors import ConfigError, DataError
from sctune.files import file_sha256
from sctune.metrics.objective import AUROC, find_objective
from sctune.paths import cache_folder, home, studies_folder
from sctune.search.plan.base import base_config, search_space
from sctune.search.plan.gain import min_gain
from sctune.search.plan.locations import free_name, storage_uri
from sctune.search.plan.options import SearchOptions
from sctune.search.plan.order import check_order
from sctune.search.plan.priors import read_priors
from sctune.search.plan.proxy_evidence import proxy_warning
from sctune.search.plan.references import planned_references
from sctune.search.plan.replicates import check_race, planned_replicates
from sctune.search.rules.registry import NO_RULE, make_rule
from sctune.search.space.definition import Space
from sctune.search.study.content import content_digest
from sctune.search.study.database import check_free, storage_url
from sctune.search.study.database_check import check_database
from sctune.search.study.manifest import DataSpec, ResourceSpec, SchedulerSpec, SelectionSpec, StudyManifest
from sctune.search.study.options import StudyOptions
from sctune.search.study.process import this_user
from sctune.search.suggest.beliefs import Prior
from sctune.search.suggest.samplers import make_sampler, sampler_entry
from sctune.tracking.choice import choose_store
from sctune.tracking.server import check_tracking
from sctune.trial.building import package_versions
from sctune.urls import STORAGE_VARIABLE, chosen

_METHOD, _BACKBONE = "method.name", "model.backbone"
MAX_GRID = 100_000
"""Points of a grid that are run to the end without a number of trials or a time budget."""


@dataclass(frozen=True)
class Plan:
    """A search that passed all checks. splits: task key -> split; warnings: lines for the user.

    depth: how values of more than 8 bits are read, in words; checks: what each data set was found to be.
    tracking_origin: what named the store of the runs, for the user.
    """

    manifest: StudyManifest
    space: Space
    splits: dict[str, Split]
    study_root: Path
    skipped: tuple[str, ...]
    warnings: tuple[str, ...]
    depth: str = ""
    checks: tuple[DataCheck, ...] = ()
    tracking_origin: str = "the study's"


def make_plan(options: SearchOptions, has_gpu: bool) -> Plan:
    """Check everything that a search needs: configuration, space, data, weights, tracking, name.

    has_gpu: whether trials will run on a GPU (decides the default profile). Raises SctuneError with one line.
    """
    profile = profile_of(options, has_gpu)
    if profile == "paper" and options.selection != "test":
        raise ConfigError(
            "profile paper selects on the test images; say so with --selection test, or take profile gpu or cpu"
        )
    objective = find_objective(options.objective)
    root = (options.study_root or studies_folder()).expanduser().absolute()
    name = free_name(options, root)
    storage = storage_uri(options.storage_path, root / name)
    record = chosen(options.storage, STORAGE_VARIABLE)
    if record is not None:
        record = storage_url(record)
        check_database(record)
        check_free(record, name)
    space = search_space(options, profile, base_config(options, profile))
    base = space.base
    sampler = options.sampler or ("grid" if space.is_grid else search_defaults(profile).sampler)
    _check_sampler(options, sampler, space)
    priors = read_priors(options.priors, space, sampler, options.method, root, options.storage)
    scheduler, warnings = _scheduler(options, profile, sampler, space)
    replicates, seeds = planned_replicates(options, scheduler.name, base.seed)
    warnings += space.notes
    datasets, tasks, splits, selection = open_tasks(options, base, profile, seeds, by_seed=replicates > 1)
    depth = _depth(base, splits)
    space = replace(space, base=base.override({"data.range": depth.range}))
    base = space.base
    for backbone, weights in weights_files(space).items():
        # a file that does not fit is refused here, not in every trial
        whole = {"backbone": backbone, "freeze": 0, "tap": "deep", "taps": None}
        build_backbone(base.model.model_copy(update=whole), weights)
    store = choose_store(options.tracking_uri, home())
    check_tracking(store.uri, make=False)
    skipped = _decode(splits, base)
    checks = _check(datasets, tasks, splits, base)
    warnings += [*depth.warnings, *(line for check in checks for line in check.warnings)]
    warnings += [line for split in splits.values() for line in split.warnings]
    warnings += [line for check in checks for line in check.notes]
    if any(split.makers for split in splits.values()):
        half = selection.mode != "proxy"
        warnings.append(proxy_warning(options.setting, base.n_anomalies, half=half))
        if not objective.is_default:
            warnings.append(f"what is known of the proxy was measured with {AUROC.label}, not with {objective.label}")
    references, left_out = planned_references(options.references, profile, base)
    warnings += left_out
    gain = min_gain(options, profile, sampler)
    asked = _Asked(
        name, profile, sampler, priors, scheduler, replicates, selection, references, store.uri, storage, record, gain
    )
    manifest = _manifest(options, asked, space, tasks, _data_spec(datasets, splits))
    manifest = manifest.model_copy(update={"splits": {key: split.digest for key, split in splits.items()}})
    return Plan(
        manifest, space, splits, root, skipped, tuple(dict.fromkeys(warnings)), depth.line, checks, store.origin
    )


def profile_of(options: SearchOptions, has_gpu: bool) -> str:
    """The profile that was asked for, else by whether trials will run on a GPU."""
    return options.profile or ("gpu" if has_gpu and options.gpus_per_trial != 0 else "cpu")


@dataclass(frozen=True)
class _Asked:
    """What options, profile and space together decided."""

    name: str
    profile: str
    sampler: str
    priors: tuple[Prior, ...]
    scheduler: SchedulerSpec
    replicates: int
    selection: SelectionSpec
    references: tuple[str, ...]
    tracking_uri: str
    storage_path: str
    storage_url: str | None
    min_gain: float


def _manifest(options: SearchOptions, asked: _Asked, space: Space, tasks: list[Task], data: DataSpec) -> StudyManifest:
    defaults = search_defaults(asked.profile)
    points = space.size() if asked.sampler == "grid" else None
    kept = {name: getattr(options, name) for name in StudyOptions.model_fields}
    return StudyManifest(
        # a space may set it too
        **kept
        | {
            "partition_seed": space.base.data.partition_seed,
            "min_gain": asked.min_gain,
            "owner": options.owner or this_user(),
        },
        name=asked.name,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        space=space.to_dict(),
        profile=asked.profile,
        config=space.base.model_dump(),
        tasks=tuple(tasks),
        sampler=asked.sampler,
        priors=asked.priors,
        scheduler=asked.scheduler,
        replicates=asked.replicates,
        trials=options.trials or points or defaults.trials,
        selection=asked.selection,
        references=asked.references,
        folds=defaults.folds,
        data=data,
        storage_path=asked.storage_path,
        tracking_uri=asked.tracking_uri,
        storage_url=asked.storage_url,
        resources=ResourceSpec(
            cpus=options.cpus_per_trial or defaults.cpus_per_trial,
            # of auto, nothing is known before the nodes are asked
            gpus=0.0 if isinstance(options.gpus_per_trial, str) else options.gpus_per_trial or 0.0,
            asked_concurrent=options.max_concurrent,
            share=options.share or 0.0,
        ),
        versions=package_versions(),
        git_commit=git_commit(),
    )


def weights_files(space: Space) -> dict[str, Path]:
    """Backbone -> weights file of every backbone that the space can take; downloads what is missing."""
    found = {name: resolve_weights(name, space.base.model.weights) for name in _backbones(space)}
    return {name: path for name, path in found.items() if path is not None}


def _backbones(space: Space) -> list[str]:
    """Those that some method of the space looks at, by name."""
    found: set[str] = set()
    for fields in [space.in_variant(name) for name in space.variants] or [{}]:
        methods = [fields[_METHOD]] if _METHOD in fields else space.field_values(_METHOD)
        if any(method_entry(name).looks_at(_BACKBONE) for name in methods):
            found |= {fields[_BACKBONE]} if _BACKBONE in fields else set(space.field_values(_BACKBONE))
    return sorted(found)


def weights_digests(space: Space) -> dict[str, str]:
    """Backbone -> SHA-256 of its weights file, which workers compare with theirs."""
    return {name: file_sha256(path) for name, path in weights_files(space).items()}


def git_commit() -> str | None:
    """Commit of the checkout that sctune runs from; None for an installed package."""
    folder = Path(__file__).resolve().parents[3]
    if not (folder / ".git").exists():
        return None
    try:
        answer = subprocess.run(
            ["git", "-C", str(folder), "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip()


def _categories(options: SearchOptions) -> tuple[str | None, ...]:
    return options.categories or (None,)


def open_tasks(
    options: SearchOptions, config: TrialConfig, profile: str, seeds: tuple[int, ...], by_seed: bool = False
) -> tuple[dict[str | None, DataSet], list[Task], dict[str, Split], SelectionSpec]:
    """The data sets by category; tasks; task key -> split; what selects.

    A task for every category x known class x seed, and x fold where the seen anomalies select; by_seed: one seed's
    together. Raises DataError.
    """
    datasets = {
        category: open_dataset(config.data.source, category, config.data.group) for category in _categories(options)
    }
    tasks: list[Task] = []
    splits: dict[str, Split] = {}
    spec: SelectionSpec | None = None
    subjects = list(itertools.product(datasets, options.known_classes or (None,), seeds))
    if by_seed:
        subjects.sort(key=lambda subject: seeds.index(subject[2]))
    for category, known, seed in subjects:
        task = Task(source=config.data.source, category=category, setting=options.setting, known_class=known, seed=seed)
        folds = search_defaults(profile).folds
        split = split_for(config, task.model_copy(update={"folds": folds}), datasets[category])
        spec = spec or SelectionSpec(mode=split.mode, reason=split.reason)
        if split.mode != spec.mode:
            raise ConfigError(
                f"task {task.key} selects by {split.mode}, the first one by {spec.mode}; name one mode with --selection"
            )
        for fold in range(split.folds) or [None]:
            if task.key in splits:
                raise ConfigError(f"task {task.key} is asked for twice; name each category, class and seed once")
            part = task if fold is None else task.model_copy(update={"fold": fold, "folds": split.folds})
            tasks.append(part)
            splits[part.key] = split if fold is None else split_for(config, part, datasets[category])
    assert spec is not None
    return datasets, tasks, splits, spec


def _depth(base: TrialConfig, splits: dict[str, Split]) -> FoundRange:
    """How values of more than 8 bits are read, the same way in the whole study."""
    if base.data.range != AUTO:
        return FoundRange(base.data.range, f"values: data.range={base.data.range}, as asked for")
    return find_range(
        ((split.root, [file.path for file in split.train if file.label == 0]) for split in splits.values()), base.data
    )


def _decode(splits: dict[str, Split], config: TrialConfig) -> tuple[str, ...]:
    """Fill the cache that the trials share; a corrupt image is refused here, or skipped and counted."""
    skipped: list[str] = []
    cache = ImageCache(cache_folder())
    for split in splits.values():
        paths = [file.path for file in split.development]
        try:
            skipped += cache.array(split.root, paths, Decoding.of(config.data), config.data.skip_corrupt).skipped
        except CorruptImageError as problem:
            raise DataError(f"{problem}; repair or remove it, or leave such images out with --skip-corrupt") from None
    return tuple(dict.fromkeys(skipped))


def _check(
    datasets: dict[str | None, DataSet], tasks: list[Task], splits: dict[str, Split], config: TrialConfig
) -> tuple[DataCheck, ...]:
    """Each data set under the pools of its tasks; raises DataError for copies across pools or under two labels."""
    cache, checks = ImageCache(cache_folder()), []
    for category, data in datasets.items():
        own = [splits[task.key] for task in tasks if task.category == category]
        pools = [pool for split in own for pool in split.pools]
        decoded = [file.path for file in own[0].development]
        checks.append(check_data(data, cache, Decoding.of(config.data), pools, decoded))
        checks[-1].refuse()
    return tuple(checks)


def _data_spec(datasets: dict[str | None, DataSet], splits: dict[str, Split]) -> DataSpec:
    """The first task's data set; the digest covers the development files of all tasks."""
    first, split = next(iter(datasets.values())), next(iter(splits.values()))
    return DataSpec(
        name=first.name,
        digest=content_digest(splits),
        counts=split.summary(),
        licence=first.licence or None,
        attribution=first.attribution,
    )


def _check_sampler(options: SearchOptions, sampler: str, space: Space) -> None:
    make_sampler(sampler, options.sampler_seed, space=space)
    _check_grid(options, sampler, space)
    _check_numbers(sampler, space)


def _check_grid(options: SearchOptions, sampler: str, space: Space) -> None:
    """A grid without a limit runs every point; ConfigError where nobody can have meant that."""
    points = space.size() if sampler == "grid" and not (options.trials or options.time_budget_s) else None
    if points is not None and points > MAX_GRID:
        raise ConfigError(
            f"sampler grid: {points} points, a trial for each; give --trials N for the first N in declared order, a "
            "--time-budget, a coarser step, or take --sampler qmc, which spreads N trials over all of it"
        )


def _check_numbers(sampler: str, space: Space) -> None:
    """CMA-ES learns of numbers that every point has; ConfigError where there are none, and it would draw at random."""
    everywhere = [one for one in space.parameters if space.always_active(one)]
    if sampler == "cmaes" and all(isinstance(one.distribution(), CategoricalDistribution) for one in everywhere):
        raise ConfigError(
            f"sampler cmaes learns of numbers that every point has, and space {space.name} has none; take --sampler tpe"
        )


def _scheduler(options: SearchOptions, profile: str, sampler: str, space: Space) -> tuple[SchedulerSpec, list[str]]:
    defaults = search_defaults(profile)
    # a grid is there to be compared point by point, and these samplers learn from full runs only
    full_runs = sampler_entry(sampler).learns_from_full_runs
    quiet = full_runs or sampler == "grid"
    name = options.scheduler or ("none" if quiet else defaults.scheduler)
    epochs = space.epochs
    grace = options.grace or (min(defaults.grace, epochs) if defaults.grace is not None else None)
    factor = options.factor or defaults.factor
    replicates, _ = planned_replicates(options, name, space.base.seed)
    rule = make_rule(
        name,
        epochs,
        grace,
        factor,
        options.sampler_seed,
        replicates=replicates,
        confidence=options.stop_confidence,
    )
    check_order(options, name, rule)
    check_race(options, name)
    warnings = []
    if rule is not None and options.time_budget_s is not None and rule.pauses:
        warnings.append(
            f"scheduler {name} compares trials before it trains any of them long, so that a --time-budget may be spent "
            "before a trial has run to its end; what is paused then goes on with `sctune resume`"
        )
    if name == NO_RULE:
        _refuse_without_rule(options)
    if full_runs and name != "none":
        warnings.append(f"sampler {sampler} learns from full runs only; scheduler {name} will leave it few of them")
    spec = SchedulerSpec(name=name, grace=grace, factor=factor, stop_confidence=options.stop_confidence)
    return spec, warnings


def _refuse_without_rule(options: SearchOptions) -> None:
    """Raises ConfigError where something is asked of a scheduler that stops nobody."""
    given = {
        "--audit": options.audit,
        "--grace": options.grace,
        "--factor": options.factor,
        "--stop-confidence": options.stop_confidence,
    }
    for option, value in given.items():
        if value:
            raise ConfigError(
                f"{option} {value:g}: scheduler {NO_RULE} stops no trial; leave it out, or name another --scheduler"
            )

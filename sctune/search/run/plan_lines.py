"""The plan of a search in words, as it is shown before every search, and before what trains again."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from sctune.config import TrialConfig, method_entry
from sctune.methods.length import steps_text
from sctune.search.cluster.connection import Resources
from sctune.search.plan.plan import Plan
from sctune.search.plan.references import reference_limit
from sctune.search.plan.replicates import replicate_lines
from sctune.search.rules.gain import LEAST
from sctune.search.run.sharing import packing_of
from sctune.search.space.definition import Space
from sctune.search.space.parameter import Parameter
from sctune.search.space.variants import VARIANT
from sctune.search.study.manifest import SchedulerSpec
from sctune.text import duration
from sctune.tracking.server import safe_uri


def plan_lines(plan: Plan, resources: Resources) -> list[str]:
    """The plan in words, shown before every search."""
    manifest, base, objective = plan.manifest, plan.space.base, plan.manifest.build_objective()
    points = plan.space.size()
    size = "continuous" if points is None else f"{points} points"
    lines = [
        f"study {manifest.name}: space {manifest.space['name']} ({size}), "
        f"profile {manifest.profile}, {manifest.trials} trials, sampler {manifest.sampler}, "
        f"scheduler {_scheduler(manifest.scheduler)}",
        *(_parameter(plan.space, parameter) for parameter in plan.space.parameters),
        *(f"  variant {name}: {fields_text(fields)}" for name, fields in plan.space.variants.items()),
        f"runs: {safe_uri(manifest.tracking_uri)} ({plan.tracking_origin})",
        f"data {manifest.data.name}: {_counts(manifest.data.counts)}",
        *(f"  {line}" for check in plan.checks for line in check.table),
        plan.depth,
        f"selection by {manifest.selection.mode}: {manifest.selection.reason}",
        *([] if objective.is_default else [f"objective {objective.label}: {objective.about}"]),
        f"tasks: {', '.join(task.key for task in manifest.tasks)}; {_length(plan.space)} of {base.data.image_size} px",
        *replicate_lines(manifest),
        f"{resources.concurrent} trial(s) at a time, each with {resources.cpus:g} CPU and {_gpus(resources)}, "
        f"of {resources.cluster_cpus:g} CPUs and {resources.cluster_gpus:g} GPUs on {resources.nodes} node(s)",
        *(packing_of(manifest.resources, resources).lines() if resources.packed else ()),
    ]
    if manifest.resources.share:
        lines.append(
            f"shares the cluster with weight {manifest.resources.share:g}: no more than its part while others wait"
        )
    if _turns_freely(plan.space):
        lines.append(
            f"training images are turned freely (augment.rotation=free); `{_changes(base)}` says which turns leave a "
            "normal image of this part normal"
        )
    if manifest.look_behind is not None:
        lines.append(
            f"trial n is drawn and judged by the trials before n - {manifest.look_behind} alone, so that the same "
            "search is the same again (--free-running: by whatever has ended)"
        )
    lines += [f"prior {prior.name}: {prior.note}" for prior in manifest.priors]
    if manifest.min_gain and manifest.trials > LEAST:
        lines.append(
            f"ends by itself where the rest is expected to improve the best by less than {manifest.min_gain:g}, once "
            f"{LEAST} trials are full runs (--min-gain 0: never)"
        )
    if manifest.references:
        limit = reference_limit(manifest, plan.splits, resources.concurrent, manifest.time_budget_s)
        lines.append(
            f"before the trials: {', '.join(manifest.references)} (references, which train nothing), "
            f"{duration(limit.seconds)} at most"
        )
    if manifest.data.licence:
        lines.append(f"data licence: {manifest.data.licence}")
    if plan.skipped:
        lines.append(f"skipped {len(plan.skipped)} corrupt images, the first is {plan.skipped[0]}")
    return [*lines, *(f"warning: {line}" for line in plan.warnings)]


def _gpus(resources: Resources) -> str:
    return "its share of a GPU" if resources.packed else f"{resources.gpus:g} GPU"


def _scheduler(spec: SchedulerSpec) -> str:
    asked = spec.stop_confidence
    return spec.name if asked is None else f"{spec.name} with stop confidence {asked:g}"


def _turns_freely(space: Space) -> bool:
    takes = any(method_entry(name).looks_at("augment.rotation") for name in space.field_values("method.name"))
    return takes and "free" in space.field_values("augment.rotation")


def _changes(base: TrialConfig) -> str:
    data = base.data
    words = [str(data.source), *(["--category", data.category] if data.category else [])]
    return f"sctune data changes {shlex.join(words)}"


def _length(space: Space) -> str:
    """How much a trial trains, in words; some methods count otherwise than in iterations of an epoch."""
    if len(set(space.field_values("method.name"))) > 1:
        return f"{space.base.budget.epochs} epochs, each method in steps of its own, images"
    base = space.config({VARIANT: next(iter(space.variants))}) if space.variants else space.base
    steps = steps_text(base)
    each = ", each once over the normal images," if steps is None else f" x {steps}"
    return f"{base.epochs} epochs{each} x {base.budget.batch_size} images"


def _parameter(space: Space, parameter: Parameter) -> str:
    idle = "" if space.can_be_active(parameter) else "; never drawn: it has no effect with this configuration"
    met = (f"{other} is {' or '.join(map(str, allowed))}" for other, allowed in parameter.when)
    where = f", where {' and '.join(met)}" if parameter.when else ""
    return f"  {parameter.name}: {parameter.describe()}{where}{idle}"


def fields_text(values: Mapping[str, Any]) -> str:
    """Fields and what they are set to, in words."""
    return ", ".join(f"{name}={value}" for name, value in values.items()) or "the base as it is"


def _counts(counts: dict[str, int]) -> str:
    parts = []
    for name in ("train", "selection", "calibration", "test"):
        parts.append(f"{name} {counts[f'{name}_normals']} normal + {counts[f'{name}_anomalies']} anomalous")
    return ", ".join(parts)

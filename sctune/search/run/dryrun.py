"""What a search would do and cost, before it does: `sctune search --dry-run`."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from sctune.backbones.registry import backbone_entry
from sctune.config import TrialConfig
from sctune.search.cluster.connection import Resources
from sctune.search.plan import costs
from sctune.search.plan.options import SearchOptions
from sctune.search.plan.plan import Plan
from sctune.search.run.driver import planned
from sctune.search.space.definition import Space, Values
from sctune.search.space.parameter import Parameter
from sctune.search.study.references import TIME_SHARE, reference_fields
from sctune.text import duration
from sctune.tracking.server import safe_uri

_HEADS = ("single_head", "two_head_patch", "two_head_latent", "four_head")
"""By the seconds of a step; the last two pass reference images too."""


class Probe(NamedTuple):
    """A point, tried on the first task. Seconds of a step, of a scoring, and of scoring as the registered model does.

    final_seconds: of all selection and calibration images, which the end of a search scores once. weights_bytes: of
    the model; checkpoint_bytes: with what training needs besides. steps: of an epoch, None for budget.iterations.
    """

    step_seconds: float
    scoring_seconds: float
    final_seconds: float
    weights_bytes: int
    checkpoint_bytes: int
    steps: int | None = None


@dataclass(frozen=True)
class DryRun:
    """A plan with measured costs; seconds are of this machine at the moment, with a trial's share of threads.

    timed: the point that was timed, one of those whose steps take longest. study_seconds: all together, with
    start_seconds (checks, Ray, its workers), references_seconds and end_seconds (figures, model, its registration,
    Ray's end).
    study_bytes: all together: the most that checkpoints take at a time, checkpoints_bytes, and files_bytes of figures,
    record and MLflow's copies.
    """

    plan: Plan
    resources: Resources
    timed: Values
    step_seconds: float
    epoch_seconds: float
    start_seconds: float
    end_seconds: float
    study_seconds: float
    checkpoint_bytes: int
    checkpoints_bytes: int
    files_bytes: int
    references_seconds: float = 0.0

    @property
    def study_bytes(self) -> int:
        return self.checkpoints_bytes + self.files_bytes

    @property
    def lines(self) -> list[str]:
        around = duration(self.start_seconds + self.end_seconds)
        return [
            *plan_lines(self.plan, self.resources),
            f"one step {self.step_seconds:.2f} s, one epoch with scoring {self.epoch_seconds:.1f} s, "
            f"timed at {_fields(self.timed)}",
            f"expected time: about {duration(self.study_seconds)}, with {around} for start and end{self._references}, "
            "less what early stopping and cheaper points save",
            f"disk: {_mib(self.checkpoint_bytes)} per checkpoint, {_mib(self.checkpoints_bytes)} of checkpoints "
            f"+ {_mib(self.files_bytes)} of figures, record and MLflow's copies = {_mib(self.study_bytes)} in all",
        ]

    @property
    def _references(self) -> str:
        return f" and {duration(self.references_seconds)} for references" if self.plan.manifest.references else ""

    def to_dict(self) -> dict[str, Any]:
        return {
            "format_version": 1,
            "manifest": self.plan.manifest.model_dump(mode="json", exclude={"tracking_uri", "storage_url"}),
            "tracking_uri": safe_uri(self.plan.manifest.tracking_uri),
            "tracking_origin": self.plan.tracking_origin,
            "splits": {key: split.summary() for key, split in self.plan.splits.items()},
            "timed": self.timed,
            "step_seconds": self.step_seconds,
            "epoch_seconds": self.epoch_seconds,
            "start_seconds": self.start_seconds,
            "references_seconds": self.references_seconds,
            "end_seconds": self.end_seconds,
            "study_seconds": self.study_seconds,
            "checkpoint_bytes": self.checkpoint_bytes,
            "checkpoints_bytes": self.checkpoints_bytes,
            "files_bytes": self.files_bytes,
            "study_bytes": self.study_bytes,
            "data": [check.to_dict() for check in self.plan.checks],
            "warnings": list(self.plan.warnings),
        }


def dry_run(options: SearchOptions) -> DryRun:
    """Check everything, run one step and one scoring of the first task, and work out time and disk."""
    import torch

    began = time.perf_counter()
    with planned(options) as (plan, resources):
        # the search does the same before its launch
        start = time.perf_counter() - began
        closing = time.perf_counter()
    end = time.perf_counter() - closing
    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, round(resources.cpus)))
    try:
        timed = dearest_point(plan.space)
        # before the probe, whose density would leave features on disk that they need
        references = [reference_seconds(plan, name) for name in plan.manifest.references]
        probe = _probe(plan, timed)
    finally:
        torch.set_num_threads(threads)
    return costed(plan, resources, timed, probe, start, end, references)


def costed(
    plan: Plan,
    resources: Resources,
    timed: Values,
    probe: Probe,
    start_s: float = 0.0,
    end_s: float = 0.0,
    references: Sequence[float] = (),
) -> DryRun:
    """Time and disk of a plan from what one point takes; start_s, end_s: of checks and Ray, as measured here.

    references: seconds of each on the first task.
    """
    manifest = plan.manifest
    config = plan.space.config(timed)
    steps = config.budget.iterations if probe.steps is None else probe.steps
    tasks = len(manifest.tasks)
    epoch = (steps * probe.step_seconds + probe.scoring_seconds) * tasks
    turns = math.ceil(manifest.trials / resources.concurrent)
    start = start_s + costs.WORKERS_S
    end = end_s + costs.END_S + probe.final_seconds
    # running trials hold one checkpoint each (two for a moment), the best ones keep theirs
    held = 2 * resources.concurrent + manifest.keep_best
    size = probe.checkpoint_bytes * tasks
    beside = _together([seconds for seconds in references for _ in manifest.tasks], resources.concurrent)
    if manifest.time_budget_s is not None:
        beside = min(beside, TIME_SHARE * manifest.time_budget_s)
    images = max(len(split.development) for split in plan.splits.values())
    return DryRun(
        plan=plan,
        resources=resources,
        timed=timed,
        step_seconds=probe.step_seconds,
        epoch_seconds=epoch,
        start_seconds=start,
        end_seconds=end,
        study_seconds=start + beside + turns * (costs.TRIAL_S + config.epochs * epoch) + end,
        checkpoint_bytes=size,
        checkpoints_bytes=held * size,
        files_bytes=costs.files_bytes(probe.weights_bytes, manifest.trials, config.epochs, images),
        references_seconds=beside,
    )


def _together(seconds: Sequence[float], concurrent: int) -> float:
    """How long works of these lengths take, so many at a time, the next one where the first ends."""
    ends = [0.0] * concurrent
    for one in seconds:
        ends[ends.index(min(ends))] += one
    return max(ends)


def reference_seconds(plan: Plan, name: str) -> float:
    """What a reference takes on the first task; 0 where it fails, which costs the search nothing either."""
    from sctune.train.trainer import Trainer

    task = plan.manifest.tasks[0]
    started = time.perf_counter()
    try:
        base = plan.space.base
        config = base.override(reference_fields(base, name, plan.manifest.profile))
        Trainer(config, task, split=plan.splits[task.key], objective=plan.manifest.build_objective()).run_epoch()
    except Exception:  # whatever a method raises: the search goes on without it
        return 0.0
    return time.perf_counter() - started


def dearest_point(space: Space) -> Values:
    """The extreme point to time: the one whose epoch takes longest by its configuration, the first of equal ones."""
    return max(space.probe_points(), key=lambda point: _cost(space.config(point)))


def _cost(chosen: TrialConfig) -> tuple[Any, ...]:
    """What makes an epoch long, the heaviest first: an order, not a number of seconds.

    Pixels of an epoch, times what the method's own fields make of them; the larger backbone, and how far it is run and
    trained; turns of what is scored; the density beside the heads; SaliencyCut, which adds a forward and a backward
    pass; heads, those with references first; then how many references and patches they take.
    """
    config = chosen.flat()
    pixels = config["budget.iterations"] * config["budget.batch_size"] * config["data.image_size"] ** 2
    return (
        pixels * chosen.entry.cost(chosen),
        config["model.n_scales"],
        backbone_entry(config["model.backbone"]).cost,
        config["model.tap"] == "deep",
        -config["model.freeze"],
        config["score.turns"],
        *_density_cost(config),
        {"none": 0, "saliencycut": 2}.get(config["augment.kind"], 1),
        _HEADS.index(config["model.heads"]),
        config["model.reference_count"],
        config["model.patch_count"],
    )


def _density_cost(config: Mapping[str, Any]) -> tuple[int, ...]:
    """A frozen copy is fitted once, the trained trunk after every epoch; cells, and each kind of normal, cost more."""
    head = config["model.normal_head"]
    if head == "mlp":
        return 0, 0, 0
    return (
        {"frozen": 1, "trained": 2}[config["model.density_trunk"]],
        {"pooled": 0, "cells": 1}[config["model.density_features"]],
        config["model.density_components"] if head == "mixture" else 1,
    )


def plan_lines(plan: Plan, resources: Resources) -> list[str]:
    """The plan in words, shown before every search."""
    manifest, base, objective = plan.manifest, plan.space.base, plan.manifest.build_objective()
    points = plan.space.size()
    size = "continuous" if points is None else f"{points} points"
    lines = [
        f"study {manifest.name}: space {manifest.space['name']} ({size}), "
        f"profile {manifest.profile}, {manifest.trials} trials, sampler {manifest.sampler}, "
        f"scheduler {manifest.scheduler.name}",
        *(_parameter(plan.space, parameter) for parameter in plan.space.parameters),
        *(f"  variant {name}: {_fields(fields)}" for name, fields in plan.space.variants.items()),
        f"runs: {safe_uri(manifest.tracking_uri)} ({plan.tracking_origin})",
        f"data {manifest.data.name}: {_counts(manifest.data.counts)}",
        *(f"  {line}" for check in plan.checks for line in check.table),
        plan.depth,
        f"selection by {manifest.selection.mode}: {manifest.selection.reason}",
        *([] if objective.is_default else [f"objective {objective.label}: {objective.about}"]),
        f"tasks: {', '.join(task.key for task in manifest.tasks)}; {base.epochs} epochs x "
        f"{base.budget.iterations} iterations x {base.budget.batch_size} images of {base.data.image_size} px",
        f"{resources.concurrent} trial(s) at a time, each with {resources.cpus:g} CPU and {resources.gpus:g} GPU, "
        f"of {resources.cluster_cpus:g} CPUs and {resources.cluster_gpus:g} GPUs on {resources.nodes} node(s)",
    ]
    if manifest.references:
        lines.append(f"before the trials: {', '.join(manifest.references)} (references, which train nothing)")
    if manifest.data.licence:
        lines.append(f"data licence: {manifest.data.licence}")
    if plan.skipped:
        lines.append(f"skipped {len(plan.skipped)} corrupt images, the first is {plan.skipped[0]}")
    return [*lines, *(f"warning: {line}" for line in plan.warnings)]


def _parameter(space: Space, parameter: Parameter) -> str:
    idle = "" if space.can_be_active(parameter) else "; never drawn: it has no effect with this configuration"
    return f"  {parameter.name}: {parameter.describe()}{idle}"


def _fields(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in values.items()) or "the base as it is"


def _counts(counts: dict[str, int]) -> str:
    parts = []
    for name in ("train", "selection", "calibration", "test"):
        parts.append(f"{name} {counts[f'{name}_normals']} normal + {counts[f'{name}_anomalies']} anomalous")
    return ", ".join(parts)


def _mib(size: int) -> str:
    return f"{size / 2**20:.0f} MiB"


def _probe(plan: Plan, point: Values) -> Probe:
    """Costs of a point on the first task."""
    from sctune.train.trainer import Trainer

    task = plan.manifest.tasks[0]
    split = plan.splits[task.key]
    trainer = Trainer(plan.space.config(point), task, split=split, objective=plan.manifest.build_objective())
    step, steps = trainer.time_step()
    # the first scoring fills what is kept for later epochs
    trainer.selection.evaluate(trainer.method.scorer())
    started = time.perf_counter()
    trainer.selection.evaluate(trainer.method.scorer())
    scored = time.perf_counter()
    images = trainer.selection.images
    trainer.method.score(images)
    final = (time.perf_counter() - scored) * (1 + len(split.calibration) / len(images))
    weights = sum(value.nbytes for value in trainer.method.model_state().values())
    size = sum(value.nbytes for value in trainer.state()[0].values())
    return Probe(step, scored - started, final, weights, size, steps)

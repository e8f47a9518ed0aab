"""What a search would do and cost, before it does: `sctune search --dry-run`."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sctune.search.cluster import Resources
from sctune.search.driver import planned
from sctune.search.options import SearchOptions
from sctune.search.parameter import Parameter
from sctune.search.plan import Plan
from sctune.search.progress import duration
from sctune.search.space import Space, Values
from sctune.tracking.server import safe_uri

_HEADS = ("single_head", "two_head_patch", "two_head_latent", "four_head")
"""By the seconds of a step; the last two pass reference images too."""


@dataclass(frozen=True)
class DryRun:
    """A plan with measured costs; seconds are of this machine at the moment, with a trial's share of threads.

    timed: the point that was timed, one of those whose steps take longest.
    """

    plan: Plan
    resources: Resources
    timed: Values
    step_seconds: float
    epoch_seconds: float
    study_seconds: float
    checkpoint_bytes: int
    study_bytes: int

    @property
    def lines(self) -> list[str]:
        return [
            *plan_lines(self.plan, self.resources),
            f"one step {self.step_seconds:.2f} s, one epoch with scoring {self.epoch_seconds:.1f} s, "
            f"timed at {_fields(self.timed)}",
            f"expected time: about {duration(self.study_seconds)}, less what early stopping and cheaper points save",
            f"disk: {self.checkpoint_bytes / 2**20:.0f} MiB per checkpoint, {self.study_bytes / 2**20:.0f} MiB in all",
        ]

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
            "study_seconds": self.study_seconds,
            "checkpoint_bytes": self.checkpoint_bytes,
            "study_bytes": self.study_bytes,
            "data": [check.to_dict() for check in self.plan.checks],
            "warnings": list(self.plan.warnings),
        }


def dry_run(options: SearchOptions) -> DryRun:
    """Check everything, run one step and one scoring of the first task, and work out time and disk."""
    import torch

    with planned(options) as (plan, resources):
        pass
    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, round(resources.cpus)))
    try:
        timed = dearest_point(plan.space)
        step, scoring, size = _probe(plan, timed)
    finally:
        torch.set_num_threads(threads)
    manifest = plan.manifest
    budget = plan.space.config(timed).budget
    tasks = len(manifest.tasks)
    epoch = (budget.iterations * step + scoring) * tasks
    turns = math.ceil(manifest.trials / resources.concurrent)
    # running trials hold one checkpoint each (two for a moment), the best ones keep theirs
    held = 2 * resources.concurrent + manifest.keep_best
    study = turns * budget.epochs * epoch
    return DryRun(plan, resources, timed, step, epoch, study, size * tasks, held * size * tasks)


def dearest_point(space: Space) -> Values:
    """The extreme point to time: the one whose epoch takes longest by its configuration, the first of equal ones."""
    base = space.base.flat()
    return max(space.probe_points(), key=lambda point: _cost(base | space.assignments(point)))


def _cost(config: Mapping[str, Any]) -> tuple[Any, ...]:
    """What makes an epoch long, the heaviest first: an order, not a number of seconds.

    Pixels of an epoch; the larger backbone, and how far it is run and trained; SaliencyCut, which adds a forward and
    a backward pass; heads, those with references first; then how many references and patches they take.
    """
    pixels = config["budget.iterations"] * config["budget.batch_size"] * config["data.image_size"] ** 2
    return (
        pixels,
        config["model.n_scales"],
        config["model.backbone"] == "resnet18",
        config["model.tap"] == "deep",
        -config["model.freeze"],
        {"none": 0, "saliencycut": 2}.get(config["augment.kind"], 1),
        _HEADS.index(config["model.heads"]),
        config["model.reference_count"],
        config["model.patch_count"],
    )


def plan_lines(plan: Plan, resources: Resources) -> list[str]:
    """The plan in words, shown before every search."""
    manifest, base = plan.manifest, plan.space.base
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
        f"tasks: {', '.join(task.key for task in manifest.tasks)}; {base.budget.epochs} epochs x "
        f"{base.budget.iterations} iterations x {base.budget.batch_size} images of {base.data.image_size} px",
        f"{resources.concurrent} trial(s) at a time, each with {resources.cpus:g} CPU and {resources.gpus:g} GPU, "
        f"of {resources.cluster_cpus:g} CPUs and {resources.cluster_gpus:g} GPUs on {resources.nodes} node(s)",
    ]
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


def _probe(plan: Plan, point: Values) -> tuple[float, float, int]:
    """Seconds of a training step and of one scoring, and bytes of a checkpoint, of a point and the first task."""
    from sctune.train.trainer import Trainer

    task = plan.manifest.tasks[0]
    trainer = Trainer(plan.space.config(point), task, split=plan.splits[task.key])
    trainer.detector.train()
    trainer.step.start_epoch(0)
    trainer.step.run(0)
    # the first scoring fills the kept maps of frozen blocks, which later epochs find
    trainer.selection.evaluate(trainer.scorer)
    started = time.perf_counter()
    trainer.step.run(1)
    stepped = time.perf_counter()
    trainer.selection.evaluate(trainer.scorer)
    scored = time.perf_counter()
    size = sum(value.nbytes for value in trainer.state()[0].values())
    return stepped - started, scored - stepped, size

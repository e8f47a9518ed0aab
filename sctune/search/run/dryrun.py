"""What a search would do and cost, before it does: `sctune search --dry-run`."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from sctune.errors import SctuneError
from sctune.search.cluster.connection import Resources
from sctune.search.plan import costs
from sctune.search.plan.dearest import dearest_points
from sctune.search.plan.options import SearchOptions
from sctune.search.plan.plan import Plan
from sctune.search.plan.references import reference_limit
from sctune.search.plan.replicates import trainings
from sctune.search.run.driver import planned
from sctune.search.run.plan_lines import fields_text, plan_lines
from sctune.search.run.probe import Probe, Timed, Trial, probe_apart, timed_at
from sctune.search.study.references import reference_fields
from sctune.search.study.scheduling import rule_of
from sctune.text import duration
from sctune.tracking.server import safe_uri


@dataclass(frozen=True)
class DryRun:
    """A plan with measured costs; seconds are of this machine at the moment, with a trial's share of threads.

    timed: the methods of the space, each at its dearest point. problems: method -> why it could not be timed.
    study_seconds: all together where each method gets an equal share of the trials, with start_seconds (checks, Ray,
    its workers), references_seconds and end_seconds (figures, model, its registration, Ray's end); most_seconds: where
    all trials are of the dearest method.
    study_bytes: all together: the most that checkpoints take at a time, checkpoints_bytes, and files_bytes of figures,
    record and MLflow's copies.
    """

    plan: Plan
    resources: Resources
    timed: tuple[Timed, ...]
    start_seconds: float
    end_seconds: float
    study_seconds: float
    most_seconds: float
    checkpoints_bytes: int
    files_bytes: int
    references_seconds: float = 0.0
    problems: Mapping[str, str] = field(default_factory=dict)

    @property
    def dearest(self) -> Timed:
        """The method whose trials take longest."""
        return max(self.timed, key=lambda one: one.trial_seconds)

    @property
    def checkpoint_bytes(self) -> int:
        """Of the method with the largest."""
        return max(one.checkpoint_bytes for one in self.timed)

    @property
    def study_bytes(self) -> int:
        return self.checkpoints_bytes + self.files_bytes

    @property
    def lines(self) -> list[str]:
        around = duration(self.start_seconds + self.end_seconds)
        return [
            *plan_lines(self.plan, self.resources),
            *self._method_lines,
            f"expected time: about {duration(self.study_seconds)}{self._bound}, with {around} for start and "
            f"end{self._references}, less what early stopping and cheaper points save",
            f"disk: {_mib(self.checkpoint_bytes)} per checkpoint, {_mib(self.checkpoints_bytes)} of checkpoints "
            f"+ {_mib(self.files_bytes)} of figures, record and MLflow's copies = {_mib(self.study_bytes)} in all",
        ]

    @property
    def _method_lines(self) -> list[str]:
        if len(self.timed) == 1 and not self.problems:
            (one,) = self.timed
            return [_seconds(one), f"memory: {_memory(one.probe)} a trial, Ray's own aside"]
        return [
            *(
                f"{one.method}: a {self._unit} {duration(one.trial_seconds)} and {_memory(one.probe)}; {_seconds(one)}"
                for one in self.timed
            ),
            *(f"{name}: cannot be timed: {problem}" for name, problem in self.problems.items()),
        ]

    @property
    def _unit(self) -> str:
        return "trial" if self.plan.manifest.replicates == 1 else "replicate"

    @property
    def _bound(self) -> str:
        if len(self.timed) == 1:
            return ""
        return (
            f" where each method gets an equal share of the trials, {duration(self.most_seconds)} where all are "
            f"{self.dearest.method}"
        )

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
            **self.dearest.to_dict(),
            "methods": {one.method: one.to_dict() for one in self.timed},
            "not_timed": dict(self.problems),
            "start_seconds": self.start_seconds,
            "references_seconds": self.references_seconds,
            "end_seconds": self.end_seconds,
            "study_seconds": self.study_seconds,
            "most_seconds": self.most_seconds,
            # of the methods that need most of each
            "memory_bytes": max(one.probe.memory_bytes for one in self.timed),
            "gpu_bytes": max(one.probe.gpu_bytes for one in self.timed),
            "checkpoint_bytes": self.checkpoint_bytes,
            "checkpoints_bytes": self.checkpoints_bytes,
            "files_bytes": self.files_bytes,
            "study_bytes": self.study_bytes,
            "data": [check.to_dict() for check in self.plan.checks],
            "warnings": list(self.plan.warnings),
        }


def dry_run(options: SearchOptions) -> DryRun:
    """Check everything, run one step and one scoring of each method on the first task, and work out time and disk."""
    import torch

    began = time.perf_counter()
    with planned(options) as (plan, resources):
        # the search does the same before its launch
        start = time.perf_counter() - began
        closing = time.perf_counter()
    end = time.perf_counter() - closing
    threads, own_threads = max(1, round(resources.cpus)), torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        # before the probes, whose densities would leave features on disk that they need
        references = [reference_seconds(plan, name) for name in plan.manifest.references]
    finally:
        torch.set_num_threads(own_threads)
    timed, problems = time_methods(plan, threads)
    return costed(plan, resources, timed, start, end, references, problems)


def time_methods(plan: Plan, threads: int) -> tuple[list[Timed], dict[str, str]]:
    """The methods of a plan's space at their dearest points, and why some could not be timed.

    Raises SctuneError where none could.
    """
    found: list[Timed] = []
    problems: dict[str, SctuneError] = {}
    task, replicates = plan.manifest.tasks[0], plan.manifest.replicates
    # those of a replicate are trained together
    tasks = len(plan.manifest.tasks) // replicates
    for name, point in dearest_points(plan.space).items():
        config = plan.space.config(point)
        try:
            probe = probe_apart(Trial(config, task, plan.splits[task.key], plan.manifest.objective, threads, tasks))
        except SctuneError as problem:
            problems[name] = problem
            continue
        # states of the replicates that are through stay in memory
        through = (replicates - 1) * tasks * probe.checkpoint_bytes
        probe = probe._replace(memory_bytes=probe.memory_bytes + through)
        found.append(timed_at(config, point, probe, tasks, replicates))
    if not found:
        raise next(iter(problems.values()))
    return found, {name: str(problem) for name, problem in problems.items()}


def costed(
    plan: Plan,
    resources: Resources,
    timed: Sequence[Timed],
    start_s: float = 0.0,
    end_s: float = 0.0,
    references: Sequence[float] = (),
    problems: Mapping[str, str] | None = None,
) -> DryRun:
    """Time and disk of a plan from what its methods take; start_s, end_s: of checks and Ray, as measured here.

    references: seconds of each on the first task.
    """
    manifest, trials = plan.manifest, [one.trial_seconds for one in timed]
    turns = math.ceil(trainings(manifest) / resources.concurrent)
    start = start_s + costs.WORKERS_S
    end = end_s + costs.END_S + max(one.probe.final_seconds for one in timed)
    # running trials hold one checkpoint each (two for a moment), the best ones keep theirs
    held = 2 * resources.concurrent + manifest.keep_best
    rule = rule_of(manifest, plan.space.epochs)
    if rule is not None and rule.pauses:
        # what pauses keeps its own to the end
        held = max(held, 2 * manifest.trials + manifest.keep_best)
    beside = _together([seconds for seconds in references for _ in manifest.tasks], resources.concurrent)
    beside = min(beside, reference_limit(manifest, plan.splits, resources.concurrent, manifest.time_budget_s).seconds)
    images = max(len(split.development) for split in plan.splits.values())
    weights, epochs = max(one.probe.weights_bytes for one in timed), max(one.epochs for one in timed)
    epochs *= math.ceil(trainings(manifest) / manifest.trials)
    return DryRun(
        plan=plan,
        resources=resources,
        timed=tuple(timed),
        start_seconds=start,
        end_seconds=end,
        study_seconds=start + beside + turns * fmean(trials) + end,
        most_seconds=start + beside + turns * max(trials) + end,
        checkpoints_bytes=held * max(one.checkpoint_bytes for one in timed),
        files_bytes=costs.files_bytes(weights, manifest.trials, epochs, images),
        references_seconds=beside,
        problems=problems or {},
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


def _seconds(one: Timed) -> str:
    return (
        f"one step {one.probe.step_seconds:.2f} s, one epoch with scoring {one.epoch_seconds:.1f} s, timed at "
        f"{fields_text(one.point)}"
    )


def _memory(probe: Probe) -> str:
    return f"{_mib(probe.memory_bytes)}{f' and {_mib(probe.gpu_bytes)} of the GPU' if probe.gpu_bytes else ''}"


def _mib(size: int) -> str:
    return f"{size / 2**20:.0f} MiB"

"""Searches on a recorded table: ways to search, and one search of such a way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from sctune.config import Task
from sctune.errors import ConfigError
from sctune.report import EpochReport
from sctune.search.plan.order import usual_behind
from sctune.search.rules.registry import NO_RULE, RACE
from sctune.search.simulate.course import Simulated, simulate
from sctune.search.simulate.table import RecordedTable
from sctune.search.study.manifest import DataSpec, SchedulerSpec, SelectionSpec, StudyManifest
from sctune.search.study.scheduling import rule_of
from sctune.search.suggest.samplers import make_sampler
from sctune.trial.course import Course

_SALT = 5


@dataclass(frozen=True)
class Way:
    """How to search. trials: configurations at most; slots: workers; min_gain: as `--min-gain`, 0 for never."""

    sampler: str
    scheduler: SchedulerSpec
    replicates: int = 1
    trials: int = 1
    slots: int = 1
    min_gain: float = 0.0

    @property
    def name(self) -> str:
        rule, confidence = self.scheduler, self.scheduler.stop_confidence
        given = [] if rule.name == NO_RULE else [f"{rule.grace or 'default'}/{rule.factor}"]
        given += [] if confidence is None else [f"confidence {confidence:g}"]
        parts = [self.sampler, " ".join([rule.name, *given]), f"{self.replicates} replicate(s)"]
        return ", ".join([*parts, *([f"min-gain {self.min_gain:g}"] if self.min_gain else [])])

    def of(self, trials: int) -> Way:
        return replace(self, trials=trials)


class TableSearch:
    """All searches of one way on a table. Raises ConfigError for a way that cannot be, or that the table is too small
    for.
    """

    def __init__(self, table: RecordedTable, way: Way) -> None:
        seeds = len(table.about.seeds)
        if way.replicates > seeds:
            raise ConfigError(
                f"{way.replicates} replicates: the table has {seeds} seed(s); ask for fewer, or record more seeds"
            )
        if way.scheduler.name == RACE and way.replicates < 2:
            raise ConfigError(f"scheduler {RACE} compares trials over replicates; ask for --replicates 2 or more")
        if way.sampler == "grid":
            raise ConfigError(
                "sampler grid tries points as they are declared, and a table has some of them; leave it out"
            )
        self.table, self.way = table, way
        make_sampler(way.sampler, 0, space=table.space)
        self._manifest = self._made()
        # a bad rung is refused here, not in each search
        rule_of(self._manifest, table.epochs)

    def run(self, number: int) -> Simulated:
        """Search number 0, 1, ...: it draws the order of the seeds, the same for every way, and what the sampler
        draws.
        """
        order = np.random.default_rng([number, _SALT]).permutation(len(self.table.about.seeds))
        seeds = [int(place) for place in order[: self.way.replicates]]
        tasks = tuple(Task(seed=self.table.about.seeds[place]) for place in seeds)
        manifest = self._manifest.model_copy(update={"tasks": tasks, "sampler_seed": number})
        return simulate(
            manifest,
            self.table.space,
            lambda place: _Training(self.table, place, seeds, tasks),
            self.way.slots,
            lambda _places: rule_of(manifest, self.table.epochs),
            self.table.labels_of(seeds) if manifest.tells_noise else None,
        )

    def _made(self) -> StudyManifest:
        way, about = self.way, self.table.about
        manifest = StudyManifest(
            name="simulated",
            created="",
            space=about.space,
            profile=about.profile,
            config=about.config,
            tasks=(Task(),),
            sampler=way.sampler,
            scheduler=way.scheduler,
            trials=way.trials,
            replicates=way.replicates,
            objective=about.objective,
            min_gain=way.min_gain,
            selection=SelectionSpec(mode=about.selection),
            data=DataSpec(name=about.name, digest=""),
            storage_path="",
            tracking_uri="",
        )
        return manifest.model_copy(update={"look_behind": usual_behind(manifest, self.table.epochs, way.slots)})


class _Training:
    """A configuration's replicates one after another, as `trial.course` makes them one curve."""

    def __init__(self, table: RecordedTable, place: int, seeds: Sequence[int], tasks: Sequence[Task]) -> None:
        self._table, self._place, self._seeds = table, place, seeds
        self._course = Course(tasks, len(tasks), table.epochs)
        self._epoch = 0

    def next(self) -> EpochReport:
        done, self._epoch = self._course.done, self._epoch + 1
        own = self._table.report(self._place, self._seeds[done], self._epoch)
        report = self._course.report({self._course.tasks[0].key: own})
        self._course.told(report)
        if own.last:
            self._epoch = 0
        return report

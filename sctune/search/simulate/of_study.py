"""What another sampler would have made of a study: in which order it would have tried the study's own trials.

What it would have proposed elsewhere was never trained, and nothing here knows it. So the trials are a finite table:
the sampler proposes, the nearest trial that it has not had is taken and told as it is stored, to where it ended. That
says how soon it comes to what the study found best, and how often it looked where the study has nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from optuna.trial import FrozenTrial, TrialState

from sctune.errors import ConfigError
from sctune.metrics.objective import Objective
from sctune.report import EpochReport
from sctune.search.rules.base import Decision, Rule
from sctune.search.simulate.course import Simulated, simulate
from sctune.search.space.finite import FiniteSpace, confined
from sctune.search.study.manifest import StudyManifest
from sctune.search.study.record import reports_of
from sctune.search.suggest.samplers import make_sampler

LEAST = 4
"""Trials among which an order means anything."""
GRID = "grid"


@dataclass(frozen=True)
class Resampled:
    """A sampler on the trials of a study. found: after how many trials the study's best full run was tried: quartile,
    median, quartile over the searches; half: mean of the best full run among the first half of the trials, in units of
    the objective, None where there was none in some search; unknown: share of the proposals that are farther from every
    trial than the trials lie from their nearest ones in the median; None where it proposed nothing.
    """

    sampler: str
    searches: int
    trials: int
    found: tuple[float, float, float]
    half: float | None
    unknown: float | None

    def to_dict(self) -> dict[str, Any]:
        return vars(self) | {"found": dict(zip(("low", "median", "high"), self.found, strict=True))}


class StoredTrials:
    """The trials of a study that have ended with a value. Raises ConfigError for fewer than LEAST, or no full run."""

    def __init__(self, manifest: StudyManifest, trials: Sequence[FrozenTrial]) -> None:
        self.manifest, self.objective = manifest, manifest.build_objective()
        whole = manifest.build_space()
        ended = (TrialState.COMPLETE, TrialState.PRUNED)
        self.trials = [trial for trial in trials if trial.state in ended and reports_of(trial)]
        full = [place for place, trial in enumerate(self.trials) if trial.state is TrialState.COMPLETE]
        if len(self.trials) < LEAST or not full:
            raise ConfigError(
                f"--sampler: study {manifest.name} has {len(self.trials)} ended trial(s), {len(full)} of them full "
                f"runs; an order can be told of {LEAST} with a full run among them"
            )
        merits = [self.objective.merit(self.last(place)) for place in full]
        self.best = full[int(np.argmax(merits))]
        self.space = confined(whole, [whole.decode(trial.params) for trial in self.trials])
        self.spacing = _spacing(self.space)

    def last(self, place: int) -> float:
        values = self.trials[place].intermediate_values
        return float(values[max(values)])

    def resampled(self, sampler: str, searches: int) -> Resampled:
        """Raises ConfigError for a sampler that is not known, or has no order of its own."""
        if sampler == GRID:
            raise ConfigError(
                f"--sampler {GRID}: it tries points as they are declared, whatever they give; leave it out"
            )
        make_sampler(sampler, 0, space=self.space)
        runs = [self._search(sampler, seed) for seed in range(searches)]
        count = len(self.trials)
        after = [1 + [trial.place for trial in run.trials].index(self.best) for run in runs]
        halves = [_best_of(run, (count + 1) // 2, self.objective) for run in runs]
        moved = [trial.moved.nearest for run in runs for trial in run.trials if trial.moved is not None]
        low, median, high = (float(one) for one in np.quantile(after, (0.25, 0.5, 0.75)))
        return Resampled(
            sampler,
            searches,
            count,
            (low, median, high),
            None if None in halves else float(np.mean([one for one in halves if one is not None])),
            float(np.mean(np.array(moved) > self.spacing)) if moved else None,
        )

    def _search(self, sampler: str, seed: int) -> Simulated:
        update = {
            "sampler": sampler,
            "sampler_seed": seed,
            "trials": len(self.trials),
            "min_gain": 0.0,
            "priors": (),
            "audit": 0.0,
        }
        return simulate(
            self.manifest.model_copy(update=update),
            self.space,
            lambda place: _Stored(self.trials[place], self.manifest, self.objective),
            1,
            self._rule,
        )

    def _rule(self, place_of: Callable[[int], int]) -> Rule:
        ends = {
            place: max(reports_of(trial)) for place, trial in enumerate(self.trials) if trial.state is TrialState.PRUNED
        }
        return _AsStored(place_of, ends)


class _AsStored(Rule):
    """Stops a trial where it was stopped in the study."""

    looks_behind = True

    def __init__(self, place_of: Callable[[int], int], ends: Mapping[int, int]) -> None:
        self._place_of, self._ends = place_of, ends

    def decide(self, number: int, epoch: int, value: float) -> Decision:
        return Decision.stop_if(epoch == self._ends.get(self._place_of(number)))


class _Stored:
    """The reports of a stored trial, one after the other."""

    def __init__(self, trial: FrozenTrial, manifest: StudyManifest, objective: Objective) -> None:
        self._trial, self._objective = trial, objective
        self._left = iter(reports_of(trial).items())
        full = trial.state is TrialState.COMPLETE
        # a pruned one may have come to the end of what its method trains, and is stopped there all the same
        self._epochs = max(reports_of(trial)) + (0 if full else 1)

    def next(self) -> EpochReport:
        epoch, report = next(self._left)
        metrics = {
            self._objective.metric: float(self._trial.intermediate_values[epoch]),
            "seconds": float(report["metrics"].get("seconds", 0.0)),
        }
        return EpochReport(epoch, self._epochs, metrics, objective=self._objective.name)


def _best_of(run: Simulated, count: int, objective: Objective) -> float | None:
    full = [one for one in run.trials[:count] if one.state is TrialState.COMPLETE and one.value is not None]
    return objective.best(one.value for one in full if one.value is not None) if full else None


def _spacing(space: FiniteSpace) -> float:
    """Median distance of a configuration from its nearest neighbour."""
    apart = np.array([space.distances(values) for values in space.configurations])
    np.fill_diagonal(apart, np.inf)
    return float(np.median(apart.min(axis=1)))


def table_of(rows: Sequence[Resampled], objective: Objective) -> tuple[list[str], list[list[str]]]:
    """Head and cells of a table with a line for each sampler."""
    head = [
        "sampler",
        "best found after",
        "half of the searches",
        f"{objective.label} of the first half",
        "nothing near",
    ]
    return head, [
        [
            row.sampler,
            f"{row.found[1]:g} of {row.trials}",
            f"{row.found[0]:g} to {row.found[2]:g}",
            "-" if row.half is None else f"{row.half:.4f}",
            "-" if row.unknown is None else f"{100 * row.unknown:.0f} %",
        ]
        for row in rows
    ]


def lines_of(stored: StoredTrials) -> list[str]:
    """What the figures are of."""
    number = stored.trials[stored.best].number
    return [
        f"samplers: in which order they would have tried the {len(stored.trials)} trials of the study, told as they "
        f"are stored; the best is trial {number} ({stored.last(stored.best):.4f})",
        f"nothing near: proposals farther from every trial than trials lie apart ({stored.spacing:.3f} of the space's "
        "ranges); what those would have given is not known",
    ]

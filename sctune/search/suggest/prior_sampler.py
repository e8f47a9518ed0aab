"""A sampler with priors: it proposes around what somebody believes in, and lets go of it as evidence comes.

The way of PriorBand (Mallik et al., NeurIPS 2023): each proposal is drawn by the sampler, around a prior, or around the
best trial so far. Priors and best trial have a share that falls with the number of trials and goes with the credibility
of the priors (evidence.py); the best trial takes of it what PriorBand's weights say, by how likely the best third of
the trials is around the one and around the other.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState
from pydantic import BaseModel, ConfigDict

from sctune.search.space.definition import Space
from sctune.search.suggest.beliefs import Belief, Prior
from sctune.search.suggest.evidence import NEWEST, Judged, credibility, merits
from sctune.search.suggest.wrapped import WrappedSampler

MOST = 0.7
"""Share of the proposals around priors that are certain to be right, at first."""

HALF = 12
"""Trials after which that is half as much: the sampler has learnt something itself by then."""

BEST_WIDTH = 0.1
"""Standard deviation of draws around the best trial, as a share of a range."""

TOP = 3
"""One of so many trials counts among the best."""

KNOWN = 4
"""Trials that have a best one."""

SAMPLER, BEST, START, UNTRIED = "sampler", "best", "start", "untried"
"""Who proposes beside priors: the sampler, the best trial, the space's start points, what is left at the end."""

_SALT = 7


class Proposal(BaseModel):
    """Who proposed a trial: a prior's name, or one of the words above. shares: prior -> chance that it had by then."""

    model_config = ConfigDict(frozen=True)

    source: str
    shares: dict[str, float]


@dataclass(frozen=True)
class _Chances:
    """Of the next proposal. priors: in their order; best: around the best trial, which `around` describes."""

    priors: tuple[float, ...]
    best: float = 0.0
    around: Belief | None = None


class WithPriors(WrappedSampler):
    """A sampler that shares its proposals with priors and the best trial.

    Which of them proposes is drawn by seed, trial number and how often the number was asked for, from the trials that
    the study shows: a search with the same look-behind is the same search. What a prior does not name is drawn by the
    sampler for that parameter alone.
    """

    def __init__(self, sampler: BaseSampler, priors: Sequence[Prior], space: Space, seed: int) -> None:
        super().__init__(sampler)
        self._space, self._seed = space, seed
        self._priors = [Judged(space, prior) for prior in priors]
        self._asked: Counter[int] = Counter()
        self._belief: Belief | None = None
        self._rng = np.random.default_rng(seed)
        self.proposal = Proposal(source=SAMPLER, shares={})

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        super().before_trial(study, trial)
        self._rng = np.random.default_rng([self._seed, trial.number, self._asked[trial.number], _SALT])
        self._asked[trial.number] += 1
        chances = self._chances(study)
        self._belief, source = self._drawn(chances)
        names = (one.name for one in self._priors)
        self.proposal = Proposal(source=source, shares=dict(zip(names, chances.priors, strict=True)))

    def _drawn(self, chances: _Chances) -> tuple[Belief | None, str]:
        place = self._rng.random()
        for prior, chance in zip(self._priors, chances.priors, strict=True):
            place -= chance
            if place < 0:
                return prior.beliefs[self._rng.choice(len(prior.beliefs), p=prior.weights)], prior.name
        return (chances.around, BEST) if place < chances.best else (None, SAMPLER)

    def _chances(self, study: Study) -> _Chances:
        trials = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))[-NEWEST:]
        seen = merits(trials, 1.0 if study.direction is StudyDirection.MAXIMIZE else -1.0)
        believed = np.array([credibility(prior.expected(trials), seen) for prior in self._priors])
        whole = MOST * believed.max() * HALF / (HALF + len(trials))
        shares = whole * believed / believed.sum()
        if len(trials) < KNOWN:
            return _Chances(tuple(shares.tolist()))
        order = np.argsort(-seen, kind="stable")
        best = trials[order[0]]
        around = Belief(self._space, self._space.decode(best.params), {}, BEST_WIDTH)
        top = [trials[place] for place in order[: max(1, len(trials) // TOP)]]
        ranks = np.arange(len(top), 0, -1)
        under_best = ranks @ np.exp([around.log_density(one.params) for one in top])
        under = np.array([ranks @ np.exp(prior.log_densities(top)) for prior in self._priors])
        shares = shares * under / (under + under_best)
        return _Chances(tuple(shares.tolist()), float(whole - shares.sum()), around)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return super().infer_relative_search_space(study, trial) if self._belief is None else {}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return super().sample_relative(study, trial, search_space) if self._belief is None else {}

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        if self._belief is not None and self._belief.names(param_name):
            return self._belief.draw(param_name, self._rng)
        return super().sample_independent(study, trial, param_name, param_distribution)

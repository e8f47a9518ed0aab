"""TPE is shown a bounded number of trials: all in a short study, and of the same trials always the same ones."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState

from sctune.config import load_profile
from sctune.search.space.definition import Space, load_space
from sctune.search.suggest.bounded import BEST, NEWEST, SHOWN, Bounded, chosen
from sctune.search.suggest.samplers import SeededByNumber, make_sampler
from sctune.search.suggest.suggester import Suggester


def tpe(seed: int) -> BaseSampler:
    """As sctune has it, shown every trial."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return optuna.samplers.TPESampler(seed=seed, multivariate=True, group=True, constant_liar=True)


def conditional() -> Space:
    return load_space("pseudo", load_profile("cpu"))


def run(suggester: Suggester, until: int, slots: int = 3) -> list[dict[str, Any]]:
    """Proposals with `slots` trials at a time; some are stopped, some fail, one pauses."""
    running: list[int] = []
    while suggester.n_trials < until:
        trial = suggester.ask()
        assert trial is not None
        running.append(trial.number)
        if len(running) == slots:
            end(suggester, running.pop(0))
    return [suggester.params(number) for number in range(until)]


def end(suggester: Suggester, number: int) -> None:
    value = float(np.random.default_rng(number).random())
    suggester.report(number, 1, value)
    if number == 5:
        suggester.pause(number)
    elif number % 7 == 3:
        suggester.tell(number, TrialState.FAIL, None)
    elif number % 3 == 1:
        suggester.tell(number, TrialState.PRUNED, value)
    else:
        suggester.report(number, 2, value / 2)
        suggester.tell(number, TrialState.COMPLETE, value / 2)


@pytest.mark.parametrize("behind", [None, 4])
def test_a_short_study_is_what_it_was(behind: int | None) -> None:
    space = conditional()
    ours = Suggester(space, make_sampler("tpe", 8), 8, behind=behind)
    plain = Suggester(space, SeededByNumber(tpe, 8), 8, behind=behind)
    # a paused trial would hold up a study that looks behind for good
    until = 45 if behind is None else 7
    assert run(ours, until) == run(plain, until)


def test_a_bound_changes_what_is_proposed_beyond_it_and_not_before() -> None:
    space = conditional()
    bound = 12
    every = run(Suggester(space, SeededByNumber(tpe, 1), 1), 60)
    few = run(Suggester(space, SeededByNumber(lambda seed: Bounded(tpe(seed), bound), 1), 1), 60)
    # best and newest are shown besides
    same = next(number for number in range(60) if every[number] != few[number])
    assert bound < same < 60


@pytest.mark.parametrize("behind", [None, 5])
def test_a_resumed_study_proposes_the_same(behind: int | None) -> None:
    space = conditional()

    def make(trials: list[FrozenTrial]) -> Suggester:
        sampler = SeededByNumber(lambda seed: Bounded(tpe(seed), 15), 2)
        return Suggester(space, sampler, 2, trials, behind=behind)

    def go_on(suggester: Suggester, until: int) -> None:
        while suggester.n_trials < until:
            trial = suggester.ask()
            assert trial is not None
            value = float(np.random.default_rng(trial.number).random())
            suggester.report(trial.number, 1, value)
            suggester.tell(trial.number, TrialState.COMPLETE, value)

    whole, first = make([]), make([])
    go_on(whole, 90)
    go_on(first, 70)
    second = make(first.trials())
    go_on(second, 90)
    assert [second.params(number) for number in range(90)] == [whole.params(number) for number in range(90)]


def test_the_study_itself_has_every_trial() -> None:
    seen: list[list[int]] = []

    class Looks(optuna.samplers.RandomSampler):
        def sample_independent(self, study: Any, trial: Any, param_name: str, param_distribution: Any) -> Any:
            seen.append([one.number for one in study.get_trials(deepcopy=False)])
            return super().sample_independent(study, trial, param_name, param_distribution)

    suggester = Suggester(conditional(), Bounded(Looks(seed=0), 10), 0)
    for number in range(200):
        trial = suggester.ask()
        assert trial is not None
        suggester.tell(number, TrialState.COMPLETE, number / 200)
    suggester.ask()
    assert len(seen[-1]) < 100
    # the best ones are the newest here, and the others have gaps
    assert seen[-1][-BEST - 1 :] == list(range(175, 201))
    assert [trial.number for trial in suggester.trials()] == list(range(201))


def make_trials(count: int, state: Callable[[int], TrialState], names: Callable[[int], str]) -> list[FrozenTrial]:
    rng = np.random.default_rng(0)
    made = []
    for number in range(count):
        value = float(rng.random())
        ended = state(number) in (TrialState.COMPLETE, TrialState.PRUNED)
        trial = optuna.trial.create_trial(
            state=state(number),
            value=value if ended else None,
            params={names(number): 0.5},
            distributions={names(number): optuna.distributions.FloatDistribution(0, 1)},
            intermediate_values={1: value, 2: value} if number % 2 else {1: value},
        )
        trial.number = number
        made.append(trial)
    return made


def mixed(number: int) -> TrialState:
    return (TrialState.COMPLETE, TrialState.PRUNED, TrialState.COMPLETE, TrialState.FAIL, TrialState.COMPLETE)[
        number % 5
    ]


@pytest.mark.parametrize("maximize", [True, False])
def test_who_is_shown(maximize: bool) -> None:
    trials = make_trials(5000, mixed, lambda number: "rare" if number == 1230 else f"set{number % 3}")
    trials += make_trials(5003, lambda _: TrialState.RUNNING, lambda _: "set0")[5000:]
    shown = chosen(trials, maximize)
    numbers = [trial.number for trial in shown]
    assert numbers == sorted(set(numbers))
    ended = [trial for trial in trials if trial.state in (TrialState.COMPLETE, TrialState.PRUNED)]
    full = [trial for trial in ended if trial.state is TrialState.COMPLETE]
    by_value = sorted(full, key=lambda trial: trial.value or 0.0, reverse=maximize)
    assert {trial.number for trial in by_value[:BEST]} <= set(numbers)
    assert {trial.number for trial in ended[-NEWEST:]} <= set(numbers)
    assert 1230 in numbers
    assert numbers[-3:] == [5000, 5001, 5002]
    assert not any(trial.state is TrialState.FAIL for trial in shown)
    # four sets of parameters round up
    assert SHOWN - BEST - NEWEST <= len(shown) <= SHOWN + 4 + 3
    # each thousand numbers gives its share, and so does each state
    counts, _ = np.histogram(numbers, bins=5, range=(0, 5000))
    assert counts.min() > 0.9 * counts.mean()
    full_share = sum(trial.state is TrialState.COMPLETE for trial in shown) / len(shown)
    assert full_share == pytest.approx(len(full) / len(ended), abs=0.03)


def test_stopped_trials_are_good_where_full_runs_are_few() -> None:
    """By how far they came, then by their latest value, as Optuna has it."""
    trials = make_trials(1500, lambda number: TrialState.COMPLETE if number < 5 else TrialState.PRUNED, lambda _: "x")
    shown = {trial.number for trial in chosen(trials, True, 100)}
    far = [trial for trial in trials[5:] if 2 in trial.intermediate_values]
    far.sort(key=lambda trial: -trial.intermediate_values[2])
    assert {trial.number for trial in far[: BEST - 5]} | set(range(5)) <= shown


def test_all_are_shown_up_to_the_bound() -> None:
    trials = make_trials(SHOWN, lambda _: TrialState.COMPLETE, lambda _: "x")
    failed = make_trials(SHOWN + 500, lambda _: TrialState.FAIL, lambda _: "x")[SHOWN:]
    assert list(chosen(trials + failed, True)) == trials + failed

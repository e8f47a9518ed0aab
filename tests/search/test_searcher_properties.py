"""The searcher as a state machine against a plain model: launches that end cleanly, stop, or are killed anywhere.

The model is one list of events. After a kill the record must be what some beginning of that list makes, and a new
launch must go on from there.
"""

from __future__ import annotations

import json
import random
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, event, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test
from ray.tune.search import Searcher

from sctune.report import VALUE, EpochReport
from sctune.search.run import faults
from sctune.search.run.controller import End, EndReason, TrialController
from sctune.search.run.searcher import StudySearcher
from sctune.search.study.record import reports_of
from sctune.search.study.study import MANIFEST, Study
from sctune.search.suggest.samplers import SAMPLERS
from tests.builders import ANYWHERE, FEW, FLAT, make_manifest, make_space
from tests.search.searching import failure, result, stop

EPOCHS = 4
SPACES = {
    "flat": FLAT,
    "few": FEW,
    "conditional": {
        "augment.kind": {"values": ["saliencycut", "none"]},
        "augment.threshold": {"values": [0.2, 0.4, 0.6], "when": {"augment.kind": "saliencycut"}},
    },
}
SIZES = {"flat": None, "few": 6, "conditional": 4}
PAIRS = [(sampler, space) for sampler in SAMPLERS for space in SPACES if (sampler, space) != ("grid", "flat")]

Event = tuple[Any, ...]
"""("start", number, attempt), ("report", number, epoch, value) or ("end", number, state, value)."""


@dataclass(frozen=True)
class Trial:
    """A trial as events make it."""

    attempt: int
    state: str = "RUNNING"
    value: float | None = None
    curve: tuple[tuple[int, float], ...] = ()


def trials_of(events: list[Event]) -> dict[int, Trial]:
    trials: dict[int, Trial] = {}
    for kind, number, *rest in events:
        if kind == "start":
            trials[number] = replace(trials.get(number, Trial(0)), attempt=rest[0])
        elif kind == "report":
            curve = {rest[0]: rest[1]} | dict(trials[number].curve)
            trials[number] = replace(trials[number], curve=tuple(sorted(curve.items())))
        else:
            trials[number] = replace(trials[number], state=rest[0], value=rest[1])
    return trials


class Listener:
    """An observer that writes down what it is told, as events."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def on_start(self, number: int, params: dict[str, Any], attempt: int) -> None:
        self.events.append(("start", number, attempt))

    def on_report(self, number: int, report: EpochReport, time: int) -> None:
        self.events.append(("report", number, report.epoch, report.value))

    def on_wait(self, number: int, reason: str) -> None:
        """Only the searcher's own affair: the record does not change."""

    def on_end(self, number: int, state: str, value: float | None, info: dict[str, Any]) -> None:
        self.events.append(("end", number, state, value))


class SlowRecord:
    """A record whose writes wait until somebody needs them; a kill loses those that wait, from any one on."""

    def __init__(self, record: Any) -> None:
        self.record = record
        self.waiting: list[Callable[[], None]] = []

    def load(self) -> Any:
        self.flush()
        return self.record.load()

    def load_study_attrs(self) -> Any:
        self.flush()
        return self.record.load_study_attrs()

    def flush(self, *words: Any) -> None:
        for write in self.waiting:
            write()
        self.waiting.clear()
        self.record.flush()

    def kill(self, kept: float) -> None:
        del self.waiting[round(kept * len(self.waiting)) :]
        self.flush()

    @property
    def foreign(self) -> tuple[int, ...]:
        return self.record.foreign

    def __getattr__(self, name: str) -> Callable[..., None]:
        method = getattr(self.record, name)
        return lambda *words: self.waiting.append(lambda: method(*words))


@dataclass
class Live:
    """A trial in a worker: epoch that it trains next."""

    number: int
    next: int


class SearcherMachine(RuleBasedStateMachine):
    templates: dict[str, Path]
    folder: Path
    pairs = PAIRS

    @initialize(pair=st.integers(0, 10**6), budget=st.integers(2, 9))
    def begin(self, pair: int, budget: int) -> None:
        sampler, self.space = self.pairs[pair % len(self.pairs)]
        event(sampler)
        self.budget = budget
        self.root = Path(tempfile.mkdtemp(dir=self.folder))
        shutil.copytree(self.templates[self.space], self.root / "s")
        manifest = self.root / "s" / MANIFEST
        manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"sampler": sampler, "trials": budget}))
        self.study = Study.open(self.root, "s")
        self.events: list[Event] = []
        self.flushed = 0
        self.counter = 0
        self.ids = 0
        self.open()

    def open(self) -> None:
        """A new launch. The connection stays, which takes most of the time to make; the searcher reads all again."""
        study = self.study
        self.record = SlowRecord(study.record)
        self.listener = Listener()
        self.told: list[Event] = []
        space = study.manifest.build_space()
        self.controller = TrialController(study.manifest, space, self.record, [self.listener])
        self.searcher = StudySearcher(self.controller)
        self.live: dict[str, Live] = {}
        self.gone: list[str] = []
        self.losses: Counter[int] = Counter()
        self.stopping = self.finished = False
        self.waiting = [number for number, trial in trials_of(self.events).items() if trial.state == "RUNNING"]

    def tell(self, *event: Any) -> None:
        self.events.append(event)
        self.told.append(event)
        assert self.listener.events == self.told

    def some(self, choice: int) -> str:
        return sorted(self.live)[choice % len(self.live)]

    def result(self, epoch: int) -> dict[str, Any]:
        self.counter += 1
        return result(epoch, 0.5 + self.counter / 10**4, EPOCHS)

    def ended_well(self) -> bool:
        return any(trial.state in ("COMPLETE", "PRUNED") for trial in trials_of(self.events).values())

    @rule(seed=st.integers(0, 10**6), length=st.integers(1, 12))
    def work(self, seed: int, length: int) -> None:
        """What happens between two ends of launches; suggestions and epochs mostly."""
        rng = random.Random(seed)
        for _ in range(length):
            if not self.live or (not self.finished and rng.random() < 0.3):
                self.suggest()
            if not self.live:
                return
            kind = rng.choices(["train", "prune", "lose", "late", "fail"], [8, 2, 1, 1, 1])[0]
            choice = rng.randrange(100)
            if kind == "train":
                self.train(choice, rng.randint(1, EPOCHS))
            elif kind == "prune":
                self.prune(choice)
            elif kind == "lose":
                self.lose_worker(choice)
            elif kind == "late":
                self.late(choice)
            else:
                self.fail(choice)

    def suggest(self) -> None:
        self.ids += 1
        trials = trials_of(self.events)
        config = self.searcher.suggest(str(self.ids))
        size = SIZES[self.space]
        if self.stopping or (not self.waiting and len(trials) >= min(self.budget, size or self.budget)):
            # a running trial may yet have to be started again
            self.finished = self.stopping or not self.live
            assert config == (Searcher.FINISHED if self.finished else None)
            exhausted = not self.stopping and len(trials) < self.budget
            assert self.controller.exhausted == (
                f"space exhausted after {len(trials)} of {self.budget}" if exhausted else None
            )
            return
        assert isinstance(config, dict)
        number = self.waiting.pop(0) if self.waiting else len(trials)
        before = trials.get(number, Trial(0))
        assert (config["number"], config["attempt"]) == (number, before.attempt + 1)
        # it goes on from its last checkpoint or an earlier one, and tells that epoch again
        last = max(dict(before.curve), default=1)
        self.live[str(self.ids)] = Live(number, random.Random(self.counter).randint(1, last))
        self.tell("start", number, config["attempt"])
        if before.attempt:
            # the attempt is the fence of its checkpoints: no two launches may have the same
            self.flushed = len(self.events)

    def train(self, choice: int, times: int) -> None:
        """Epochs of one trial, to its end if they get as far."""
        trial_id = self.some(choice)
        trial = self.live[trial_id]
        for _ in range(times):
            result = self.result(trial.next)
            if trial.next == EPOCHS:
                self.searcher.on_trial_complete(trial_id, result)
                value = self.reported(trial.number, trial.next, result)
                self.tell("end", trial.number, "COMPLETE", value)
                self.gone.append(trial_id)
                del self.live[trial_id]
                return
            self.searcher.on_trial_result(trial_id, result)
            self.reported(trial.number, trial.next, result)
            assert self.listener.events == self.told
            trial.next += 1

    def reported(self, number: int, epoch: int, result: dict[str, Any]) -> float:
        """The value of an epoch; one that is repeated stays as it was first told, and is not told again."""
        known = dict(trials_of(self.events)[number].curve)
        if epoch in known:
            return known[epoch]
        value: float = result[VALUE]
        self.events.append(("report", number, epoch, value))
        self.told.append(("report", number, epoch, value))
        return value

    def prune(self, choice: int) -> None:
        trial_id = self.some(choice)
        trial = self.live[trial_id]
        if trial.next < EPOCHS and not self.stopping:
            result = self.result(trial.next)
            self.searcher.on_trial_complete(trial_id, result)
            self.tell("end", trial.number, "PRUNED", self.reported(trial.number, trial.next, result))
            self.gone.append(trial_id)
            del self.live[trial_id]

    def fail(self, choice: int) -> None:
        if not self.ended_well():
            return
        trial_id = self.some(choice)
        self.searcher.on_trial_complete(trial_id, failure("NonFiniteError", "loss is nan"))
        self.tell("end", self.live.pop(trial_id).number, "FAIL", None)
        self.gone.append(trial_id)

    def lose_worker(self, choice: int) -> None:
        """Ray says that a worker ended: its trial is suggested again, until it has taken too many down."""
        trial_id = self.some(choice)
        number = self.live[trial_id].number
        fails = self.losses[number] >= faults.MAX_WORKER_LOSSES
        if fails and not self.ended_well():
            return
        self.searcher.on_error(trial_id, "The actor died.\nThe process was killed.")
        self.searcher.on_trial_complete(trial_id, None, error=True)
        del self.live[trial_id]
        self.gone.append(trial_id)
        self.losses[number] += 1
        if fails:
            self.tell("end", number, "FAIL", None)
        elif not self.stopping:
            self.waiting.append(number)

    def late(self, choice: int) -> None:
        """Something arrives for a trial that is over: told again, it changes nothing."""
        if not self.gone:
            return
        trial_id = self.gone[choice % len(self.gone)]
        self.searcher.on_trial_result(trial_id, self.result(1))
        self.searcher.on_trial_complete(trial_id, self.result(EPOCHS), error=bool(choice % 2))
        assert self.listener.events == self.told

    @precondition(lambda self: self.live)
    @rule(choice=st.integers(0, 99))
    def trouble_of_a_node(self, choice: int) -> None:
        trial_id = self.some(choice)
        self.searcher.on_trial_complete(trial_id, failure("ClusterError", "other data"))
        self.stopping = True
        assert self.controller.end == End(EndReason.ABORTED, "other data")
        self.gone.append(trial_id)
        del self.live[trial_id]

    @precondition(lambda self: self.live)
    @rule(seed=st.integers(0, 10**6))
    def end(self, seed: int) -> None:
        # drawn by a seed, as hypothesis would take the first of a list most of the time
        kept = random.Random(seed + 7919 * self.counter).choice([None, 0.0, 0.3, 0.5, 0.8, 1.0])
        if kept is None:
            self.stop()
        else:
            self.kill(kept)

    def stop(self) -> None:
        """A clean stop: Ray ends the running trials with their last result; the next launch goes on with them."""
        stop(self.searcher)
        for trial_id, trial in sorted(self.live.items()):
            same_launch = [told for told in self.told if told[:2] == ("report", trial.number)]
            last = same_launch[-1] if same_launch else None
            known = last is not None and last[2] == trial.next - 1
            latest = result(trial.next - 1, last[3], EPOCHS) if known and last else {}
            self.searcher.on_trial_complete(trial_id, latest)
        assert self.listener.events == self.told
        self.check()
        self.open()

    def kill(self, kept: float) -> None:
        self.record.kill(kept)
        stored = stored_trials(self.study)
        # the longest beginning first: writes that changed nothing leave it open where the driver was
        lengths = range(len(self.events), self.flushed - 1, -1)
        length = next((n for n in lengths if trials_of(self.events[:n]) == stored), None)
        assert length is not None, (stored, self.events[self.flushed :])
        event(f"{min(len(self.events) - length, 3)} events lost")
        del self.events[length:]
        self.flushed = length
        self.open()

    def check(self) -> None:
        """The record, and the searcher's own view, say what happened."""
        self.record.flush()
        self.flushed = len(self.events)
        expected = trials_of(self.events)
        assert stored_trials(self.study) == expected
        stored = self.study.record.load()
        assert [trial.number for trial in stored] == list(range(len(expected)))
        assert len(stored) <= self.budget
        keys = [self.controller.space.key(trial.user_attrs["params"]) for trial in stored]
        assert len(set(keys)) == len(keys)
        for trial in stored:
            assert list(reports_of(trial)) == sorted(trial.intermediate_values)
            assert ("failure" in trial.user_attrs) == (trial.state.name == "FAIL")
        in_memory = {trial.number: (trial.state, trial.value) for trial in self.controller.suggester.trials()}
        assert in_memory == {trial.number: (trial.state, trial.value) for trial in stored}
        history = self.controller.history
        assert len({(number, epoch) for number, epoch, _ in history}) == len(history)
        assert {number: dict(trial.curve) for number, trial in expected.items() if trial.curve} == curves_of(history)

    def teardown(self) -> None:
        if hasattr(self, "record"):
            self.check()
            self.study.record.close()
            shutil.rmtree(self.root)


def curves_of(history: list[tuple[int, int, float]]) -> dict[int, dict[int, float]]:
    curves: dict[int, dict[int, float]] = {}
    for number, epoch, value in history:
        curves.setdefault(number, {})[epoch] = value
    return curves


def stored_trials(study: Study) -> dict[int, Trial]:
    """The record as the model has it."""
    return {
        trial.number: Trial(
            trial.user_attrs["attempt"],
            trial.state.name,
            trial.value,
            tuple(sorted(trial.intermediate_values.items())),
        )
        for trial in study.record.load()
    }


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[type[SearcherMachine]]:
    """The machine with an empty study per space to copy, since making a database takes a second."""
    memory = Path("/dev/shm")
    # a database on a disk would take most of the time
    folder = Path(tempfile.mkdtemp(dir=memory if memory.is_dir() else None))
    templates = {}
    for name, parameters in SPACES.items():
        space = make_space(tmp_path_factory.mktemp("space"), parameters=parameters, set=ANYWHERE)
        study = Study.create(folder / name, make_manifest(space, trials=1))
        study.record.close()
        templates[name] = study.folder
    yield type("Machine", (SearcherMachine,), {"templates": templates, "folder": folder})
    shutil.rmtree(folder)


def run(machine: type[SearcherMachine], pairs: list[tuple[str, str]], examples: int, **more: Any) -> None:
    chosen = type("Chosen", (machine,), {"pairs": pairs})
    config = settings(
        max_examples=examples, deadline=None, stateful_step_count=12, suppress_health_check=list(HealthCheck), **more
    )
    run_state_machine_as_test(chosen, settings=config)


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faults, "RETRY_PAUSES_S", (0.0,))


@pytest.mark.timeout(300)
def test_any_course_of_launches_keeps_the_record_true(machine: type[SearcherMachine]) -> None:
    run(machine, PAIRS, 20, derandomize=True)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_over_many_courses(machine: type[SearcherMachine], sampler: str) -> None:
    run(machine, [pair for pair in PAIRS if pair[0] == sampler], 60)

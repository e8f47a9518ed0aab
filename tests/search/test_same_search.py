"""The same search twice is the same search: whatever runs when, on however many workers, over kills."""

from __future__ import annotations

import hashlib
import heapq
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from optuna.trial import FrozenTrial
from ray.tune.search import Searcher

from sctune.errors import ConfigError
from sctune.metrics.objective import AUROC
from sctune.report import OBJECTIVE, REPORT, EpochReport, Origin
from sctune.search.plan.options import SearchOptions
from sctune.search.plan.order import check_order, default_behind, in_order
from sctune.search.plan.plan import make_plan
from sctune.search.rules.base import Decision, Rule
from sctune.search.rules.registry import make_rule
from sctune.search.run.controller import TrialController
from sctune.search.run.searcher import StudySearcher
from sctune.search.run.slots import FREE, Slots
from sctune.search.study.full_runs import FullRuns
from sctune.search.study.manifest import SchedulerSpec, StudyManifest
from sctune.search.study.paired import compare
from sctune.search.study.replay import curves_of
from sctune.search.study.replayed import as_it_was, differing
from sctune.search.study.scheduling import rule_of
from sctune.search.study.study import Study
from sctune.search.suggest.beliefs import Centre, Prior
from tests.builders import ANYWHERE, FLAT, make_manifest, make_space
from tests.search.searching import result

EPOCHS = 6
LABELS = [0] * 8 + [1] * 6


def drawn(*key: object) -> float:
    """In [0, 1), by the key alone."""
    return int.from_bytes(hashlib.sha256(repr(key).encode()).digest()[:8], "big") / 2**64


def merit(params: dict[str, Any], number: int, epoch: int) -> float:
    return 0.9 - (params["augment.threshold"] - 0.35) ** 2 + 0.01 * epoch + 0.1 * drawn("noise", number, epoch)


class Capricious:
    """Slots of a cluster whose size and company change all the time."""

    held, most = False, None

    def __init__(self) -> None:
        self.asked = self.gave_way = 0

    def __enter__(self) -> Capricious:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def room(self, live: int, running: int, startable: int) -> bool:
        self.asked += 1
        return live == 0 or drawn("room", self.asked) < 0.6

    def gives_way(self) -> bool:
        self.asked += 1
        yes = drawn("way", self.asked) < 0.15
        self.gave_way += yes
        return yes


class Driver:
    """Trials on workers of which each takes its own time; the clock is virtual. kill: before each so many reports."""

    slots: Slots = FREE

    def __init__(self, folder: Path, workers: int, kill: int | None = None, speed: int = 0, **fields: Any) -> None:
        parameters = fields.pop("space", FLAT)
        space = make_space(folder, parameters=parameters, set={**ANYWHERE, "budget.epochs": EPOCHS})
        asked: dict[str, Any] = {"sampler": "tpe", "trials": 24, "look_behind": 3}
        self.root = folder / f"studies-{workers}-{kill}-{speed}"
        self.study = Study.create(self.root, make_manifest(space, **asked | fields))
        self.workers, self.kill, self.speed = workers, kill, speed
        self.told: dict[int, int] = {}
        self.now = self.busy = 0.0
        self.waits = 0

    def open(self) -> StudySearcher:
        study = Study.open(self.root, self.study.name)
        self.study = study
        manifest, rule = study.manifest, rule_of(study.manifest, EPOCHS)
        runs = FullRuns({"seed42": LABELS}, AUROC, manifest.look_behind) if manifest.tells_noise else None
        return StudySearcher(
            TrialController(manifest, manifest.build_space(), study.record, rule=rule, runs=runs, slots=self.slots)
        )

    def run(self) -> list[tuple[Any, ...]]:
        """Number, parameters, state, value and last epoch of each trial."""
        searcher, live, reports, ids = self.open(), [], 0, 0
        while True:
            while len(live) < self.workers:
                ids += 1
                config = searcher.suggest(str(ids))
                if config is None or config == Searcher.FINISHED:
                    break
                assert isinstance(config, dict)
                heapq.heappush(live, (self.now + self.seconds(config["number"]), config["number"], str(ids), config))
            if not live:
                break
            self.now, number, trial_id, config = heapq.heappop(live)
            reports += 1
            self.busy += self.seconds(number)
            if self.report(searcher, number, trial_id, config):
                heapq.heappush(live, (self.now + self.seconds(number), number, trial_id, config))
            if self.kill is not None and reports % self.kill == 0:
                searcher.controller.record.flush()
                searcher, live = self.open(), []
        trials = searcher.controller.record.load()
        searcher.controller.record.close()
        return [
            (one.number, one.user_attrs["params"], one.state.name, one.value, max(one.intermediate_values))
            for one in trials
        ]

    def seconds(self, number: int) -> float:
        """Of an epoch: the slowest trial takes three times as long as the fastest."""
        return 1 + 2 * drawn("seconds", self.speed, number)

    def report(self, searcher: StudySearcher, number: int, trial_id: str, config: dict[str, Any]) -> bool:
        """Whether the trial goes on."""
        epoch = self.told[number] = self.told.get(number, 0) + 1
        value = merit(config["params"], number, epoch)
        scores = [label * value + drawn("score", number, epoch, place) for place, label in enumerate(LABELS)]
        told = {
            **result(epoch, value, EPOCHS),
            REPORT: EpochReport(epoch, EPOCHS, {OBJECTIVE: value}, {"seed42": scores}, origin=Origin(kept=epoch)),
        }
        ends = epoch == EPOCHS or searcher.controller.decide(number, told[REPORT]) is not Decision.CONTINUE
        (searcher.on_trial_complete if ends else searcher.on_trial_result)(trial_id, told)
        return not ends


@pytest.mark.parametrize(
    ("sampler", "scheduler"), [("tpe", "asha"), ("tpe", "median"), ("random", "hyperband"), ("cmaes", "asha")]
)
def test_workers_speed_and_kills_change_nothing(tmp_path: Path, sampler: str, scheduler: str) -> None:
    fields = {"sampler": sampler, "scheduler": SchedulerSpec(name=scheduler, grace=1, factor=2)}
    ways = [(1, None, 0), (2, None, 1), (4, None, 2), (3, 7, 3)]
    found = [Driver(tmp_path, workers, kill, speed, **fields).run() for workers, kill, speed in ways]
    assert all(one == found[0] for one in found)
    states = {state for _, _, state, _, _ in found[0]}
    # or there is nothing that could have been different
    assert states == {"COMPLETE", "PRUNED"} and len(found[0]) == 24


@pytest.mark.parametrize("scheduler", ["asha", "hyperband"])
def test_nor_does_a_cluster_that_changes_and_is_shared(tmp_path: Path, scheduler: str) -> None:
    fields = {"scheduler": SchedulerSpec(name=scheduler, grace=1, factor=2)}
    quiet, changing = Driver(tmp_path, 1, **fields), Driver(tmp_path, 4, 9, 2, **fields)
    changing.slots = cluster = Capricious()
    assert changing.run() == quiet.run()
    assert cluster.gave_way > 5


def test_with_a_prior_too(tmp_path: Path) -> None:
    """Who proposes a trial is drawn from the record alone, and from no more of it than the sampler may know."""
    centre = Centre(values={"augment.threshold": 0.4}, widths={"augment.threshold": 0.1})
    priors = (Prior(kind="file", name="mine.yaml", centres=(centre,)),)
    fields = {"priors": priors, "scheduler": SchedulerSpec(name="asha", grace=1, factor=2)}
    found = [
        Driver(tmp_path, w, kill, speed, **fields).run() for w, kill, speed in [(1, None, 0), (4, None, 2), (3, 7, 3)]
    ]
    assert all(one == found[0] for one in found)
    assert found[0][0][1]["augment.threshold"] == 0.4
    assert found[0] != Driver(tmp_path, 2, None, 1, **fields | {"priors": ()}).run()


@pytest.mark.parametrize("scheduler", ["asha", "median"])
def test_nor_do_they_where_a_stop_must_be_certain(tmp_path: Path, scheduler: str) -> None:
    """Neither what full runs have gained nor how well they are told apart depends on what else ran when."""
    spec = SchedulerSpec(name=scheduler, grace=1, factor=2, stop_confidence=0.7)
    ways = [(1, None, 0), (4, None, 2), (3, 7, 3)]
    drivers = [Driver(tmp_path, *way, sampler="random", scheduler=spec) for way in ways]
    found = [driver.run() for driver in drivers]
    assert all(one == found[0] for one in found)
    plain = Driver(tmp_path, 1, None, 4, sampler="random", scheduler=spec.model_copy(update={"stop_confidence": None}))
    ends = [[state for _, _, state, _, _ in course] for course in (found[0], plain.run())]
    assert 0 < ends[0].count("PRUNED") < ends[1].count("PRUNED")
    stored = []
    for driver in drivers:
        trials = driver.study.record.load()
        stored.append({trial.number: trial.user_attrs.get("paired_error") for trial in trials})
        scores = {trial.number: trial.user_attrs["scores"] for trial in trials if trial.state.name == "COMPLETE"}
        # those of the latest four full runs that were known to each
        for number in scores:
            known = [one for one in sorted(scores) if one < number - 3][-4:]
            gaps = [compare(number, one, scores, {"seed42": LABELS}, AUROC).error for one in known]
            assert stored[-1][number] == (pytest.approx(np.sqrt(np.mean(np.square(gaps)))) if gaps else None)
        own = curves_of(driver.study.manifest, trials)
        assert differing(own, as_it_was(driver.study.manifest, own)) == []
        # and from the scores alone they are the same
        assert curves_of(driver.study.manifest, [_without(trial) for trial in trials], {"seed42": LABELS}) == own
        driver.study.record.close()
    assert all(one == stored[0] for one in stored)


def _without(trial: FrozenTrial) -> FrozenTrial:
    trial.user_attrs = {key: value for key, value in trial.user_attrs.items() if key != "paired_error"}
    return trial


def test_free_running_searches_differ(tmp_path: Path) -> None:
    fields = {"look_behind": None, "scheduler": SchedulerSpec(name="asha", grace=1, factor=2)}
    one, other = (Driver(tmp_path, workers, None, workers, **fields).run() for workers in (1, 4))
    assert one != other


@pytest.mark.parametrize("workers", [2, 4, 8])
def test_hardly_a_worker_waits(tmp_path: Path, workers: int) -> None:
    """With the default look-behind, trials that differ by a factor of three, and ASHA, which ends some early."""
    behind = default_behind(workers)
    fields = {"trials": 60, "sampler": "random", "scheduler": SchedulerSpec(name="asha", grace=2, factor=2)}
    shares = []
    for kept in (behind, None):
        driver = Driver(tmp_path, workers, None, 0 if kept else 1, look_behind=kept, **fields)
        driver.run()
        # the last trials leave workers without one, with or without an order
        shares.append(driver.busy / (workers * driver.now))
    assert shares[0] >= 0.9 * shares[1]


def test_a_trial_is_judged_by_those_well_before_it_alone() -> None:
    rule = make_rule("asha", EPOCHS, 1, 2, 0, behind=2)
    assert rule is not None and rule.looks_behind
    told = [rule.decide(number, 1, value) for number, value in ((0, 0.9), (1, 0.5), (2, 0.4))]
    assert told == [Decision.CONTINUE] * 3  # nobody is more than two before trial 2
    assert rule.decide(3, 1, 0.8) is Decision.STOP  # by trial 0
    assert rule.decide(4, 1, 0.71) is Decision.CONTINUE  # by the median of 0.9 and 0.5
    assert rule.decide(5, 1, 0.45) is Decision.STOP  # trial 2 counts now, and 3 and 4 do not
    assert rule.decide(6, 1, 0.65) is Decision.CONTINUE  # by the median of 0.9, 0.5, 0.4 and 0.8
    median = make_rule("median", EPOCHS, 1, 2, 0, behind=1)
    assert median is not None
    for number, value in enumerate((0.9, 0.9, 0.9, 0.1)):
        assert median.decide(number, 2, value) is Decision.CONTINUE  # two others at most are well before
    assert median.decide(4, 2, 0.5) is Decision.STOP
    assert make_rule("asha-promotion", EPOCHS, 1, 2, 0, behind=2).looks_behind is False  # type: ignore[union-attr]


def test_the_order_is_planned(image_folder: Path) -> None:
    def planned(concurrent: int, **more: Any) -> tuple[StudyManifest, tuple[str, ...]]:
        options = SearchOptions(profile="smoke", data=str(image_folder), selection="extra", name="s", **more)
        plan = in_order(make_plan(options, has_gpu=False), options, concurrent)
        return plan.manifest, plan.warnings

    assert [planned(workers)[0].look_behind for workers in (1, 2, 3, 8)] == [2, 2, 4, 14]
    assert planned(2, free_running=True)[0].look_behind is None
    assert planned(2, scheduler="asha-promotion")[0].look_behind is None
    assert planned(2, scheduler="none", sampler="random")[0].look_behind is None
    assert planned(2, scheduler="none", sampler="tpe")[0].look_behind == 2
    manifest, warnings = planned(8, look_behind=2)
    assert manifest.look_behind == 2
    assert any("lets 3 trials run at a time, of 8 that there is room for" in line for line in warnings)
    with pytest.raises(ConfigError, match="--look-behind and --free-running"):
        planned(2, look_behind=2, free_running=True)
    with pytest.raises(ConfigError, match="--look-behind 2: what scheduler asha-promotion decides"):
        planned(2, look_behind=2, scheduler="asha-promotion")
    check_order(SearchOptions(look_behind=2), "none", None)


class Spy(Rule):
    """What a rule is told, in its order."""

    def __init__(self) -> None:
        self.told: list[tuple[Any, ...]] = []

    def decide(self, number: int, epoch: int, value: float) -> Decision:
        self.told.append((number, epoch, value))
        return Decision.CONTINUE

    def completed(self, number: int, value: float, error: float | None) -> None:
        self.told.append((number, "end", value, error))


def test_a_resumed_rule_is_told_of_each_end_in_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spies: list[Spy] = []

    def spy(*_: object) -> Spy:
        spies.append(Spy())
        return spies[-1]

    monkeypatch.setattr(f"{__name__}.rule_of", spy)
    fields = {"trials": 9, "look_behind": None, "scheduler": SchedulerSpec(name="asha", stop_confidence=0.9)}
    driver = Driver(tmp_path, 3, **fields)
    driver.run()
    searcher = driver.open()
    searcher.controller.record.close()
    live, again = (one.told for one in spies)
    assert live == again
    ends = [told for told in live if told[1] == "end"]
    assert sorted(number for number, *_ in ends) == list(range(9))
    # the first has nothing to be compared with
    assert [error is None for *_, error in ends] == [True] + [False] * 8

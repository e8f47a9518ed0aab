"""The same search twice is the same search: whatever runs when, on however many workers, over kills."""

from __future__ import annotations

import hashlib
import heapq
from pathlib import Path
from typing import Any

import pytest
from ray.tune.search import Searcher

from sctune.errors import ConfigError
from sctune.report import REPORT
from sctune.search.plan.options import SearchOptions
from sctune.search.plan.order import check_order, default_behind, in_order
from sctune.search.plan.plan import make_plan
from sctune.search.rules.base import Decision
from sctune.search.rules.registry import make_rule
from sctune.search.run.controller import TrialController
from sctune.search.run.searcher import StudySearcher
from sctune.search.study.manifest import SchedulerSpec, StudyManifest
from sctune.search.study.scheduling import rule_of
from sctune.search.study.study import Study
from sctune.search.suggest.beliefs import Centre, Prior
from tests.builders import ANYWHERE, FLAT, make_manifest, make_space
from tests.search.searching import result

EPOCHS = 6


def drawn(*key: object) -> float:
    """In [0, 1), by the key alone."""
    return int.from_bytes(hashlib.sha256(repr(key).encode()).digest()[:8], "big") / 2**64


def merit(params: dict[str, Any], number: int, epoch: int) -> float:
    return 0.9 - (params["augment.threshold"] - 0.35) ** 2 + 0.01 * epoch + 0.1 * drawn("noise", number, epoch)


class Driver:
    """Trials on workers of which each takes its own time; the clock is virtual. kill: before each so many reports."""

    def __init__(self, folder: Path, workers: int, kill: int | None = None, speed: int = 0, **fields: Any) -> None:
        space = make_space(folder, parameters=FLAT, set={**ANYWHERE, "budget.epochs": EPOCHS})
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
        rule = rule_of(study.manifest, EPOCHS)
        return StudySearcher(TrialController(study.manifest, study.manifest.build_space(), study.record, rule=rule))

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
        told = result(epoch, merit(config["params"], number, epoch), EPOCHS)
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

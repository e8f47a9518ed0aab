"""The searcher's promises without Ray: states, repeats, resumes; every sampler, no cluster."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import optuna
import pytest
from ray._private.dict import flatten_dict
from ray.tune.search import Searcher

from sctune.config import load_profile
from sctune.errors import ConfigError
from sctune.metrics.objective import FPR95
from sctune.report import OBJECTIVE, REPORT, VALUE, EpochReport, Origin, TrialFailure
from sctune.search.cluster.resources import TrialResources
from sctune.search.rules.base import Decision
from sctune.search.rules.stopping import SuccessiveHalving
from sctune.search.run import faults
from sctune.search.run.controller import End, EndReason, TrialController
from sctune.search.run.searcher import StudySearcher, read_failure, read_report
from sctune.search.space.definition import load_space
from sctune.search.study.driver import study_launches
from sctune.search.study.record import reports_of
from sctune.search.study.study import Study
from sctune.search.suggest.samplers import SAMPLERS, make_sampler
from tests.builders import ANYWHERE, FEW, FLAT, make_manifest, make_space
from tests.search.searching import EPOCHS, failure, make_study, open_searcher, result, run_whole, stop, suggest


class Listener:
    """Writes down what an observer is told."""

    def __init__(self) -> None:
        self.events: list[tuple[Any, ...]] = []

    def on_start(self, number: int, params: dict[str, Any], attempt: int) -> None:
        self.events.append(("start", number, attempt))

    def on_report(self, number: int, report: EpochReport, time: int) -> None:
        assert report.value == report.metrics[OBJECTIVE]
        self.events.append(("report", number, report.epoch, report.value))

    def on_wait(self, number: int, reason: str) -> None:
        self.events.append(("wait", number, reason))

    def on_end(self, number: int, state: str, value: float | None, info: dict[str, Any]) -> None:
        self.events.append(("end", number, state, value, info["stop_reason"]))


def test_states_are_told_once_and_truthfully(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faults, "RETRY_PAUSES_S", (0.0,))
    listener = Listener()
    searcher = open_searcher(make_study(tmp_path, FLAT, 4), listener)
    for trial in "abcd":
        suggest(searcher, trial)
    run_whole(searcher, "a", 0.8)
    searcher.on_trial_result("b", result(1, 0.6))
    searcher.on_trial_complete("b", result(2, 0.5))
    searcher.on_trial_result("c", result(1, 0.6))
    searcher.on_trial_complete("c", failure("nonfinite", "loss is nan"))
    # the fourth loses its worker again and again
    for trial, result_of_ray in zip("dfgh", ({}, None, None, None), strict=True):
        if trial != "d":
            assert suggest(searcher, trial)["number"] == 3
        searcher.on_error(trial, "The actor died\nThe process was killed by a signal.")
        searcher.on_trial_complete(trial, result_of_ray, error=True)
    searcher.on_trial_complete("a", result(EPOCHS, 0.1))
    stored = searcher.controller.record.load()
    assert [trial.state.name for trial in stored] == ["COMPLETE", "PRUNED", "FAIL", "FAIL"]
    assert [trial.value for trial in stored] == [0.8, 0.5, None, None]
    assert stored[3].user_attrs["attempt"] == 4
    assert stored[0].intermediate_values == {1: 0.8, 2: 0.8, 3: 0.8}
    assert stored[1].intermediate_values == {1: 0.6, 2: 0.5}
    assert stored[1].user_attrs["stop_reason"] == "stopped by asha at epoch 2"
    assert stored[2].user_attrs["failure"] == {"kind": "nonfinite", "message": "loss is nan"}
    assert stored[3].user_attrs["failure"]["kind"] == "lost"
    assert "4 times, the last time: The process was killed" in stored[3].user_attrs["failure"]["message"]
    assert searcher.suggest("z") == Searcher.FINISHED
    assert searcher.controller.exhausted is None
    assert [event for event in listener.events if event[1] == 1] == [
        ("start", 1, 1),
        ("report", 1, 1, 0.6),
        ("report", 1, 2, 0.5),
        ("end", 1, "PRUNED", 0.5, "stopped by asha at epoch 2"),
    ]
    assert sum(event[0] == "end" for event in listener.events) == 4
    assert [event[1] for event in listener.events if event[0] == "wait"] == [3, 3, 3]


def test_a_killed_launch_is_continued_with_the_same_numbers(tmp_path: Path) -> None:
    study = make_study(tmp_path, FLAT, 5)
    first = open_searcher(study)
    asked = {trial: suggest(first, trial) for trial in "abc"}
    run_whole(first, "a", 0.7)
    first.on_trial_result("b", result(1, 0.5))
    first.on_trial_result("b", result(2, 0.6))
    first.controller.record.flush()
    # no close, no stop: the driver is gone

    listener = Listener()
    second = open_searcher(study, listener)
    assert second.controller.history == [(0, 1, 0.7), (0, 2, 0.7), (0, 3, 0.7), (1, 1, 0.5), (1, 2, 0.6)]
    again = [suggest(second, trial) for trial in ("x", "y")]
    assert again == [asked["b"] | {"attempt": 2}, asked["c"] | {"attempt": 2}]
    new = suggest(second, "z")
    assert (new["number"], new["attempt"]) == (3, 1)
    # b goes on from its checkpoint after epoch 1 and repeats epoch 2
    moments = {epoch: report["time"] for epoch, report in reports_of(second.controller.record.load()[1]).items()}
    second.on_trial_result("x", result(2, 0.6))
    second.on_trial_complete("x", result(3, 0.65))
    stored = second.controller.record.load()[1]
    assert stored.state.name == "COMPLETE"
    assert stored.intermediate_values == {1: 0.5, 2: 0.6, 3: 0.65}
    assert reports_of(stored)[2]["time"] == moments[2]
    assert stored.user_attrs["attempt"] == 2
    run_whole(second, "y", 0.2)
    run_whole(second, "z", 0.3)
    run_whole(second, "w", 0.4)  # never suggested: ignored
    suggest(second, "w")
    # the budget is spent, but a running trial may have to be started again
    assert second.suggest("v") is None
    run_whole(second, "w", 0.4)
    assert second.suggest("v") == Searcher.FINISHED
    assert [trial.number for trial in second.controller.record.load()] == [0, 1, 2, 3, 4]


def test_a_stop_leaves_unfinished_trials_running_for_the_next_launch(tmp_path: Path) -> None:
    study = make_study(tmp_path, FLAT, 4)
    first = open_searcher(study)
    for trial in "abc":
        suggest(first, trial)
    first.on_trial_result("a", result(1, 0.5))
    first.on_trial_result("b", result(2, 0.5))
    stop(first)
    first.on_trial_complete("a", result(1, 0.5))
    first.on_trial_complete("b", result(3, 0.6))
    first.on_trial_complete("c", error=True)
    assert first.suggest("d") == Searcher.FINISHED
    assert [trial.state.name for trial in first.controller.record.load()] == ["RUNNING", "COMPLETE", "RUNNING"]
    first.controller.record.close()
    second = open_searcher(study)
    assert [suggest(second, trial)["number"] for trial in "abc"] == [0, 2, 3]


def test_a_repeated_epoch_stays_as_it_was_first_told(tmp_path: Path) -> None:
    """On a GPU it may come out a little differently, and its seconds always do; MLflow would hold both."""
    study = make_study(tmp_path, FLAT, 1)
    first = open_searcher(study)
    suggest(first, "a")
    first.on_trial_result("a", result(1, 0.5))
    first.on_trial_result("a", result(2, 0.6))
    first.controller.record.flush()
    before = reports_of(first.controller.record.load()[0])
    listener = Listener()
    second = open_searcher(study, listener)
    suggest(second, "b")
    second.on_trial_result("b", result(2, 0.61))
    second.on_trial_complete("b", result(3, 0.7))
    (stored,) = second.controller.record.load()
    assert stored.intermediate_values == {1: 0.5, 2: 0.6, 3: 0.7}
    assert {epoch: report for epoch, report in reports_of(stored).items() if epoch in before} == before
    assert [event for event in listener.events if event[0] == "report"] == [("report", 0, 3, 0.7)]
    assert (stored.state.name, stored.value) == ("COMPLETE", 0.7)


def test_an_epoch_that_a_kill_left_half_written_is_told_again(tmp_path: Path) -> None:
    study = make_study(tmp_path, FLAT, 1)
    first = open_searcher(study)
    suggest(first, "a")
    first.on_trial_result("a", result(1, 0.5))
    first.controller.record.flush()
    storage = optuna.storages.RDBStorage(study.record_url)
    trial_id = storage.get_all_trials(storage.get_study_id_from_name("s"))[0]._trial_id
    storage.set_trial_user_attr(trial_id, "report:2", {"metrics": {OBJECTIVE: 0.6}, "time": 1})
    listener = Listener()
    second = open_searcher(study, listener)
    suggest(second, "b")
    second.on_trial_result("b", result(2, 0.61))
    second.on_trial_complete("b", result(3, 0.7))
    (stored,) = second.controller.record.load()
    assert stored.intermediate_values == {1: 0.5, 2: 0.61, 3: 0.7}
    assert [report["metrics"][OBJECTIVE] for report in reports_of(stored).values()] == [0.5, 0.61, 0.7]
    assert [event[2] for event in listener.events if event[0] == "report"] == [2, 3]


def test_pruned_value_is_that_of_the_epoch_it_stopped_at(tmp_path: Path) -> None:
    study = make_study(tmp_path, FLAT, 1)
    first = open_searcher(study)
    suggest(first, "a")
    first.on_trial_result("a", result(1, 0.5))
    first.on_trial_result("a", result(2, 0.9))
    first.controller.record.flush()
    second = open_searcher(study)
    suggest(second, "b")
    second.on_trial_complete("b", result(1, 0.5))
    (stored,) = second.controller.record.load()
    assert (stored.state.name, stored.value) == ("PRUNED", 0.5)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_small_space_is_visited_once_each_across_launches(tmp_path: Path, sampler: str) -> None:
    study = make_study(tmp_path, FEW, 50, sampler, start=[{"augment.threshold": 0.4, "model.patch_count": 3}])
    first = open_searcher(study)
    for trial in "abc":
        suggest(first, trial)
        run_whole(first, trial, 0.5)
    first.controller.record.close()
    second = open_searcher(study)
    for trial in "def":
        suggest(second, trial)
        run_whole(second, trial, 0.6)
    assert second.suggest("g") == Searcher.FINISHED
    assert second.controller.exhausted == "space exhausted after 6 of 50"
    stored = second.controller.record.load()
    assert [trial.number for trial in stored] == list(range(6))
    points = [tuple(trial.user_attrs["params"].values()) for trial in stored]
    assert points[0] == (0.4, 3)
    assert set(points) == {(threshold, count) for threshold in (0.2, 0.4, 0.6) for count in (2, 3)}
    if sampler == "grid":
        assert points[1:] == sorted(set(points) - {(0.4, 3)})


# gp returns to the edges, nsga2 recombines: both may give a number again, though never a point
@pytest.mark.parametrize("sampler", ["tpe", "cmaes", "qmc", "random"])
def test_resumed_study_does_not_repeat_its_draws(tmp_path: Path, sampler: str) -> None:
    study = make_study(tmp_path, FLAT, 40, sampler)
    thresholds = []
    for launch in range(2):
        searcher = open_searcher(study)
        for index in range(12):
            config = suggest(searcher, f"{launch}-{index}")
            thresholds.append(config["params"]["augment.threshold"])
            run_whole(searcher, f"{launch}-{index}", config["params"]["augment.threshold"])
        searcher.controller.record.close()
    assert len(set(thresholds)) == 24


@pytest.mark.parametrize("sampler", ["random", "tpe", "qmc"])
def test_resumed_study_draws_what_an_undisturbed_one_draws(tmp_path: Path, sampler: str) -> None:
    drawn: dict[int, list[Any]] = {}
    for n_launches in (1, 3):
        (tmp_path / str(n_launches)).mkdir()
        start = [{"augment.threshold": 0.4, "model.patch_count": 4}, {"augment.threshold": 0.5}]
        study = make_study(tmp_path / str(n_launches), FLAT, 40, sampler, start=start)
        drawn[n_launches] = []
        for launch in range(n_launches):
            searcher = open_searcher(study)
            for index in range(15 // n_launches):
                config = suggest(searcher, f"{launch}-{index}")
                drawn[n_launches].append(config["params"])
                run_whole(searcher, f"{launch}-{index}", config["params"]["augment.threshold"])
            searcher.controller.record.flush()
    assert drawn[1] == drawn[3]


@pytest.mark.parametrize("sampler", [name for name in SAMPLERS if name != "grid"])
def test_same_seed_gives_the_same_proposals(tmp_path: Path, sampler: str) -> None:
    drawn = []
    for copy in ("one", "two"):
        (tmp_path / copy).mkdir()
        searcher = open_searcher(make_study(tmp_path / copy, FLAT, 15, sampler))
        drawn.append([])
        for index in range(14):
            config = suggest(searcher, str(index))
            drawn[-1].append(config["params"])
            run_whole(searcher, str(index), config["params"]["augment.threshold"])
    assert drawn[0] == drawn[1]


def test_nothing_that_is_stored_holds_a_pickle(tmp_path: Path) -> None:
    searcher = open_searcher(
        make_study(tmp_path, FLAT | {"optim.lr": {"type": "float", "low": 0.1, "high": 1}}, 20, "cmaes")
    )
    for index in range(20):
        suggest(searcher, str(index))
        run_whole(searcher, str(index), 0.5)
    in_memory = [key for trial in searcher.controller.suggester.trials() for key in trial.system_attrs]
    assert any(key.startswith("cma:optimizer") for key in in_memory)
    stored = [trial.system_attrs for trial in searcher.controller.record.load()]
    assert any("cma:state" in attrs for attrs in stored)
    assert not any(key.startswith("cma:optimizer") for attrs in stored for key in attrs)


def test_searcher_pickles_without_its_live_parts(tmp_path: Path) -> None:
    searcher = open_searcher(make_study(tmp_path, FLAT, 3), Listener())
    suggest(searcher, "a")
    again = pickle.loads(pickle.dumps(searcher))
    assert not hasattr(again, "controller")
    assert again.metric == VALUE
    assert searcher.set_search_properties(None, None, {})


def test_a_result_holds_a_report_or_a_failure_or_neither() -> None:
    report = EpochReport(
        2, 3, {OBJECTIVE: 0.5, "a/b": 1.0}, {"t": [0.1]}, origin=Origin("n1, process 7", "id", ("a line",))
    )
    told = flatten_dict({VALUE: 0.5, REPORT: report, "done": False})
    assert read_report(told) is report
    assert read_failure(told) is None
    assert read_report({VALUE: float("nan"), "done": True}) is None
    error = failure("oom", "m")
    assert read_failure(flatten_dict(error)) == TrialFailure("oom", "m", "T")
    assert read_report(error) is None


def test_unknown_sampler_and_endless_grid_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean 'cmaes'"):
        make_sampler("cma", 0)
    space = load_space("threshold_patch", load_profile("cpu"))
    with pytest.raises(ConfigError, match=r"augment.threshold is continuous"):
        make_sampler("grid", 0, space=space)


def test_trouble_of_a_node_ends_the_launch_and_no_trial(tmp_path: Path) -> None:
    study = make_study(tmp_path, FLAT, trials=3)
    searcher = open_searcher(study)
    searcher.suggest("a")
    searcher.on_trial_complete("a", failure("ClusterError", "other data"))
    assert searcher.controller.end == End(EndReason.ABORTED, "other data")
    assert searcher.suggest("b") == "FINISHED"
    assert [trial.state.name for trial in searcher.controller.record.load()] == ["RUNNING"]
    searcher.controller.record.close()


def test_a_trial_goes_to_another_node_when_its_own_lacks_the_images(tmp_path: Path) -> None:
    study = make_study(tmp_path, FLAT, trials=3)
    lines: list[str] = []
    one = TrialResources(1.0, 0.0)
    judge = faults.Faults(one, one, lambda _: True, lambda _: {"good", "bad"})
    listener = Listener()
    space = study.manifest.build_space()
    controller = TrialController(study.manifest, space, study.record, [listener], judge, on_left_out=lines.append)
    searcher = StudySearcher(controller)
    assert suggest(searcher, "a")["avoid"] == []
    searcher.on_trial_complete("a", failure("PlaceError", "there is no folder /images", "bad", "host-3, process 7"))
    again = suggest(searcher, "b")
    assert (again["number"], again["attempt"], again["avoid"]) == (0, 2, ["bad"])
    assert suggest(searcher, "c")["avoid"] == ["bad"]
    assert lines == ["node host-3: there is no folder /images; it is left out until the next launch"]
    assert [event[2] for event in listener.events if event[0] == "wait"] == [
        "its node cannot run it (node host-3: there is no folder /images); again on another one"
    ]
    run_whole(searcher, "b", 0.5)
    assert [trial.state.name for trial in study.record.load()] == ["COMPLETE", "RUNNING"]
    assert searcher.controller.end is None
    study.record.close()
    # as the driver tells it
    study.add_launch("2026-01-01T00:00:00+00:00", ("node host-2: too full",))
    study.leave_out(lines[0])
    assert study_launches(study.folder.parent, study.name).lines()[1:] == ["node host-2: too full", *lines]


def test_a_search_whose_first_trials_all_fail_ends(tmp_path: Path) -> None:
    searcher = open_searcher(make_study(tmp_path, FLAT, 20))
    for number in range(faults.FIRST_FAILURES):
        assert searcher.controller.end is None
        suggest(searcher, str(number))
        searcher.on_trial_complete(str(number), failure("ValueError", f"bad {number}"))
    assert searcher.suggest("next") == Searcher.FINISHED
    assert searcher.controller.end == End(EndReason.HOPELESS, "ValueError: bad 0 (4 of 4)")
    assert searcher.controller.record.load()[-1].number == faults.FIRST_FAILURES - 1


def test_failures_after_a_success_or_beside_a_trial_that_trains_do_not_end_a_search(tmp_path: Path) -> None:
    searcher = open_searcher(make_study(tmp_path, FLAT, 30))
    suggest(searcher, "good")
    searcher.on_trial_result("good", result(1, 0.5))
    for number in range(faults.FIRST_FAILURES + 2):
        suggest(searcher, str(number))
        searcher.on_trial_complete(str(number), failure("ValueError", "bad"))
    assert searcher.controller.end is None
    searcher.on_trial_complete("good", result(EPOCHS, 0.6))
    for number in range(10, 10 + 3 * faults.FIRST_FAILURES):
        suggest(searcher, str(number))
        searcher.on_trial_complete(str(number), failure("ValueError", "bad"))
    assert searcher.controller.end is None


def test_an_observer_that_raises_ends_the_search(tmp_path: Path) -> None:
    class Broken(Listener):
        def on_report(self, number: int, report: EpochReport, time: int) -> None:
            raise RuntimeError("a bug")

    rest = Listener()
    searcher = open_searcher(make_study(tmp_path, FLAT, 5), Broken(), rest)
    suggest(searcher, "a")
    searcher.on_trial_result("a", result(1, 0.5))
    end = searcher.controller.end
    assert end is not None and end.reason is EndReason.BUG and str(end.bug) == "a bug"
    assert searcher.suggest("b") == Searcher.FINISHED
    # the others, and the record, know all of it
    assert rest.events[-1] == ("report", 0, 1, 0.5)
    assert searcher.controller.record.load()[0].intermediate_values == {1: 0.5}


def test_a_trial_carries_its_launch_and_the_one_that_began_it(tmp_path: Path) -> None:
    study = make_study(tmp_path, FLAT, 4)
    searcher = open_searcher(study)
    first = suggest(searcher, "a")
    assert (first["launch"], first["first_launch"]) == (1, 1)
    searcher.controller.record.close()
    study.add_launch("2026-01-01T00:00:00+00:00")
    later = open_searcher(study)
    again, new = suggest(later, "b"), suggest(later, "c")
    assert (again["number"], again["launch"], again["first_launch"]) == (0, 2, 1)
    assert (new["number"], new["launch"], new["first_launch"]) == (1, 2, 2)
    later.controller.record.close()


def test_where_lower_is_better_the_rule_keeps_the_lower_ones(tmp_path: Path) -> None:
    space = make_space(tmp_path, parameters={"optim.lr": {"type": "float", "low": 0.1, "high": 0.9}}, set=ANYWHERE)
    study = Study.create(tmp_path / "root", make_manifest(space, trials=4, objective="fpr95"))
    controller = open_searcher(study, rule=SuccessiveHalving(4, 1, 2)).controller
    answers = []
    for value in (0.4, 0.1, 0.3, 0.05):
        assignment = controller.next()
        assert assignment is not None
        report = EpochReport(1, 4, {FPR95.metric: value}, objective="fpr95")
        answers.append(controller.decide(assignment.number, report))
        controller.reported(assignment.number, report)
    # the bar is the median of those before: only trial 2 lies on the wrong side of it
    assert answers == [Decision.CONTINUE, Decision.CONTINUE, Decision.STOP, Decision.CONTINUE]


class Joined(SuccessiveHalving):
    """Writes down what it is told, in order."""

    def __init__(self) -> None:
        super().__init__(EPOCHS, 1, 2)
        self.told: list[tuple[Any, ...]] = []

    def join(self, number: int, group: str) -> None:
        self.told.append(("join", number, group))

    def decide(self, number: int, epoch: int, value: float) -> Decision:
        self.told.append(("decide", number, epoch))
        return super().decide(number, epoch, value)


def test_a_rule_hears_of_each_trial_s_method_before_its_first_report(tmp_path: Path) -> None:
    points = [{"variant": "one", "model.top_k": 0.1}, {"variant": "other"}]
    variants = {"one": {"method.name": "deviation"}, "other": {"method.name": "gaussian"}}
    study = make_study(tmp_path, {"model.top_k": {"values": [0.1, 0.2]}}, 4, variants=variants, start=points)
    first = Joined()
    searcher = open_searcher(study, rule=first)
    for trial_id, value in (("a", 0.5), ("b", 0.6)):
        number = suggest(searcher, trial_id)["number"]
        report = result(1, value)[REPORT]
        searcher.controller.decide(number, report)
        searcher.controller.reported(number, report)
    expected = [("join", 0, "deviation"), ("decide", 0, 1), ("join", 1, "gaussian"), ("decide", 1, 1)]
    assert first.told == expected
    searcher.controller.record.close()
    # a resume tells it anew, methods first
    again = Joined()
    open_searcher(study, rule=again).controller.record.close()
    assert again.told == [expected[0], expected[2], expected[1], expected[3]]

"""Trials that a rule pauses and promotes: without Ray first, then in a real one, over resumes and lost nodes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import ray
from optuna.trial import FrozenTrial
from ray.cluster_utils import Cluster
from ray.tune.search import Searcher

from sctune.config import load_profile
from sctune.report import REPORT, EpochReport
from sctune.search.cluster.connection import RAY_ENVIRONMENT, Resources
from sctune.search.rules.base import Decision, Rule, RuleSettings
from sctune.search.run import launch
from sctune.search.run.controller import End, EndReason, TrialController
from sctune.search.run.searcher import StudySearcher
from sctune.search.study.manifest import SchedulerSpec
from sctune.search.study.study import Study
from sctune.trial import trainable
from tests.builders import FLAT, make_manifest, make_space
from tests.search.pausing import PromotingHalving
from tests.search.searching import EPOCHS, make_study, open_searcher, result, stop, suggest
from tests.search.test_faults_in_ray import make_trial


def make_rule(epochs: int = EPOCHS) -> Rule:
    """Rungs 1 .. epochs - 1; one of two goes on."""
    return PromotingHalving(RuleSettings(epochs, 1, 2, 0))


class Waits:
    """An observer that writes down who waits and who ends."""

    def __init__(self) -> None:
        self.told: list[tuple[Any, ...]] = []

    def on_start(self, number: int, params: dict[str, Any], attempt: int) -> None:
        self.told.append((number, "start", attempt))

    def on_report(self, number: int, report: EpochReport, time: int) -> None:
        self.told.append((number, "epoch", report.epoch))

    def on_wait(self, number: int, reason: str) -> None:
        self.told.append((number, "wait", reason))

    def on_end(self, number: int, state: str, value: float | None, info: dict[str, Any]) -> None:
        self.told.append((number, state, info["stop_reason"]))

    def of(self, number: int) -> list[tuple[Any, ...]]:
        return [rest for first, *rest in self.told if first == number]  # type: ignore[misc]


def train(searcher: StudySearcher, trial_id: str, config: dict[str, Any], value: float, since: int = 1) -> int:
    """What Ray does with a trial from epoch `since` on, until it ends or the rule takes its worker; the last epoch."""
    for epoch in range(since, EPOCHS):
        told = result(epoch, value)
        if searcher.controller.decide(config["number"], told[REPORT]) is not Decision.CONTINUE:
            searcher.on_trial_complete(trial_id, told)
            return epoch
        searcher.on_trial_result(trial_id, told)
    searcher.on_trial_complete(trial_id, result(EPOCHS, value))
    return EPOCHS


def test_paused_trials_give_their_worker_to_others_and_go_on_when_promoted(tmp_path: Path) -> None:
    waits = Waits()
    searcher = open_searcher(make_study(tmp_path, FLAT, 4), waits, rule=make_rule())
    values = {0: 0.6, 1: 0.9, 2: 0.7, 3: 0.5}
    order = []
    for step in range(20):
        config = searcher.suggest(str(step))
        if config == Searcher.FINISHED:
            break
        assert isinstance(config, dict)
        number = config["number"]
        # a worker goes on from its checkpoint, and tells again what it holds
        order.append((number, config["attempt"], train(searcher, str(step), config, values[number])))
    assert order == [(0, 1, 1), (1, 1, 1), (1, 2, 2), (2, 1, 1), (3, 1, 1), (2, 2, 2), (1, 3, 3)]
    assert searcher.controller.end == End(EndReason.DONE)
    stored = searcher.controller.record.load()
    assert [trial.state.name for trial in stored] == ["PRUNED", "COMPLETE", "PRUNED", "PRUNED"]
    assert [trial.value for trial in stored] == [0.6, 0.9, 0.7, 0.5]
    assert [trial.user_attrs["stop_reason"] for trial in stored] == [
        "paused by asha at epoch 1 and not promoted",
        "all epochs done",
        "paused by asha at epoch 2 and not promoted",
        "paused by asha at epoch 1 and not promoted",
    ]
    # an epoch that is told again is told to nobody
    assert waits.of(2) == [
        ["start", 1], ["epoch", 1], ["wait", "paused by asha after epoch 1"],
        ["start", 2], ["epoch", 2], ["wait", "paused by asha after epoch 2"],
        ["PRUNED", "paused by asha at epoch 2 and not promoted"],
    ]  # fmt: skip
    searcher.controller.record.close()


@pytest.mark.parametrize("stopped", [False, True])
def test_a_resume_keeps_paused_trials_and_their_promotions(tmp_path: Path, stopped: bool) -> None:
    study = make_study(tmp_path, FLAT, 4)
    first = open_searcher(study, rule=make_rule())
    for trial_id, value in (("a", 0.6), ("b", 0.9)):
        train(first, trial_id, suggest(first, trial_id), value)
    # trial 1 is promoted, and trains when the driver ends
    assert suggest(first, "c")["number"] == 1
    if stopped:
        stop(first)
        first.on_trial_complete("c")
        first.controller.record.close()
    else:
        # killed
        first.controller.record.flush()

    second = open_searcher(study, rule=make_rule())
    assert second.controller.paused == (0,)
    again = suggest(second, "d")
    assert (again["number"], again["attempt"]) == (1, 3)
    # it was promoted past epoch 1 before: told again that epoch does not pause it
    assert train(second, "d", again, 0.9) == 2
    assert second.controller.paused == (0, 1)
    assert suggest(second, "e")["number"] == 2
    assert [trial.state.name for trial in second.controller.record.load()] == ["RUNNING"] * 3
    second.controller.record.close()


def test_a_pause_that_did_not_reach_the_record_is_decided_again(tmp_path: Path) -> None:
    study = make_study(tmp_path, FLAT, 4)
    first = open_searcher(study, rule=make_rule())
    config = suggest(first, "a")
    told = result(1, 0.5)
    assert first.controller.decide(0, told[REPORT]) is Decision.PAUSE
    first.on_trial_result("a", told)
    first.controller.record.flush()
    second = open_searcher(study, rule=make_rule())
    again = suggest(second, "b")
    assert (again["number"], again["attempt"]) == (config["number"], 2)
    assert train(second, "b", again, 0.5) == 1
    assert second.controller.paused == (0,)
    second.controller.record.close()


def test_a_rule_that_raises_ends_the_launch_and_no_trial(tmp_path: Path) -> None:
    class Broken(PromotingHalving):
        def promote(self) -> list[int]:
            raise RuntimeError("a bug of the rule")

    searcher = open_searcher(make_study(tmp_path, FLAT, 4), rule=Broken(RuleSettings(EPOCHS, 1, 2, 0)))
    train(searcher, "a", suggest(searcher, "a"), 0.5)
    assert searcher.suggest("b") == Searcher.FINISHED
    end = searcher.controller.end
    assert end is not None and end.reason is EndReason.BUG and str(end.bug) == "a bug of the rule"
    assert [trial.state.name for trial in searcher.controller.record.load()] == ["RUNNING"]


THRESHOLDS = [0.1, 0.2, 0.3, 0.4]


def search(root: Path, monkeypatch: pytest.MonkeyPatch, rule: Rule, log: Path) -> list[FrozenTrial]:
    """Four trials of three epochs in a real Ray; the larger the threshold the better."""

    def write(trial: Any, epoch: int) -> None:
        with open(log, "a") as file:
            file.write(f"{trial.number} {trial.attempt} {epoch} {trial._node}\n")

    monkeypatch.setattr(trainable, "SaliencyCutTrainable", make_trial(write))
    base = load_profile("cpu").override({"budget.epochs": 3, "runtime.device": "cpu"})
    space = make_space(
        root, base, parameters={"augment.threshold": {"values": THRESHOLDS}}, set={"model.weights": "random"}
    )
    manifest = make_manifest(
        space,
        name="pausing",
        sampler="grid",
        scheduler=SchedulerSpec(name="pausing"),
        trials=len(THRESHOLDS),
        storage_path=str(root / "store"),
        # at rungs only
        checkpoint_interval=1e6,
    )
    study = Study.create(root / "studies", manifest)
    controller = TrialController(manifest, study.manifest.build_space(), study.record, rule=rule)
    launch.tune_trials(study, space, {}, Resources(2.0, 0.0, 1.0, 0.0, 2, 2), controller)
    assert controller.end == End(EndReason.DONE)
    stored = study.record.load()
    study.record.close()
    return stored


@pytest.fixture
def two_nodes() -> Iterator[Cluster]:
    """A head that takes no trials, and two nodes for one trial each."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in RAY_ENVIRONMENT.items():
            patch.setenv(name, value)
        # three of them start at once, perhaps on a busy machine
        patch.setenv("RAY_raylet_start_wait_time_s", "120")
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        for _ in range(2):
            cluster.add_node(num_cpus=1)
        ray.init(cluster.address, log_to_driver=False, logging_level="CRITICAL")
        yield cluster
        ray.shutdown()
        cluster.shutdown()


@pytest.mark.timeout(180)
def test_a_promoted_trial_goes_on_from_its_checkpoint_on_another_node(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, two_nodes: Cluster
) -> None:
    """The node that trained the best trial's first epoch is gone when the promotions begin."""
    log = tmp_path / "log"

    def trained() -> list[tuple[int, int, str]]:
        rows = [line.split() for line in log.read_text().splitlines()]
        return [(int(number), int(epoch), node) for number, _, epoch, node in rows]

    class Moving(PromotingHalving):
        removed = ""

        def promote(self) -> Sequence[int]:
            if len(self._values[1]) < len(THRESHOLDS):
                return []
            if not self.removed:
                self.removed = next(node for number, _, node in trained() if number == 3)
                (gone,) = (node for node in two_nodes.worker_nodes if node.node_id == self.removed)
                two_nodes.remove_node(gone, allow_graceful=False)
                # its workers outlive it for a moment, in which one could train another epoch
                two_nodes.wait_for_nodes()
            return super().promote()

    rule = Moving(RuleSettings(3, 1, 2, 0))
    stored = search(tmp_path, monkeypatch, rule, log)
    assert [trial.state.name for trial in stored] == ["PRUNED", "PRUNED", "PRUNED", "COMPLETE"]
    # no epoch was trained twice
    epochs = [(number, epoch) for number, epoch, _ in trained()]
    assert sorted(epochs) == [(0, 1), (1, 1), (2, 1), (2, 2), (3, 1), (3, 2), (3, 3)]
    nodes = [node for number, _, node in trained() if number == 3]
    assert nodes[0] == rule.removed and rule.removed not in nodes[1:]

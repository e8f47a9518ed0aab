"""How many trials of a launch run at a time: as a cluster grows and shrinks, beside others, and by the controller."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sctune.report import REPORT, Origin
from sctune.search.cluster.board import BEAT_S, STALE_S, Board
from sctune.search.cluster.shares import TURN_S, Claim
from sctune.search.rules.base import Decision
from sctune.search.run.controller import EndReason, TrialController
from sctune.search.run.searcher import StudySearcher
from sctune.search.run.slots import FREE, PATIENCE_S, ClusterSlots
from tests.builders import FEW, FLAT
from tests.search.searching import make_study, reason, result, run_whole, suggest
from tests.search.test_shares import Shelf


class World:
    """A cluster of one-CPU slots, its key-value store and its clock; drivers in it are slots and what they are told."""

    def __init__(self, cpus: int) -> None:
        self.cpus, self.now, self.shelf = cpus, 0.0, Shelf()
        self.drivers: dict[str, ClusterSlots] = {}
        self.state: dict[str, tuple[int, int, int]] = {}
        self.lines: list[str] = []

    def join(self, key: str, weight: float, asked: int | None = None, startable: int = 1000) -> ClusterSlots:
        clock = lambda: self.now  # noqa: E731
        slots = ClusterSlots(
            Board(self.shelf, clock),
            Claim(key, key, "u@h", weight, 1.0, 0.0, since=f"{len(self.drivers)}"),
            lambda: [{"CPU": float(self.cpus)}],
            asked,
            asked or self.cpus,
            self.lines.append,
            clock=clock,
        )
        self.drivers[key], self.state[key] = slots, (0, 0, startable)
        return slots

    def leave(self, key: str) -> None:
        self.drivers.pop(key).__exit__(None, None, None)

    def step(self, seconds: float = BEAT_S) -> None:
        """Time goes on; each driver looks, and then starts what it may while there is room in the cluster."""
        self.now += seconds
        for key, slots in self.drivers.items():
            slots.room(*self.state[key])
            slots.look()
        for key, slots in self.drivers.items():
            while slots.room(*self.state[key]) and self.state[key][2] and self.running < self.cpus:
                live, running, startable = self.state[key]
                self.state[key] = (live + 1, running + 1, startable - 1)

    def end_one(self, key: str) -> None:
        live, running, startable = self.state[key]
        self.state[key] = (live - 1, running - 1, startable)

    @property
    def running(self) -> int:
        return sum(running for _, running, _ in self.state.values())

    def of(self, key: str) -> int:
        return self.state[key][1]


def test_alone_a_search_has_all_and_follows_the_cluster() -> None:
    world = World(4)
    slots = world.join("a", 1.0)
    world.step()
    assert world.of("a") == 4 and slots.held
    world.cpus = 7
    world.step()
    assert world.of("a") == 7
    # two nodes go, and their trials with them: one more waits in Ray's queue, where an autoscaler sees it
    world.cpus = 2
    world.state["a"] = (2, 2, 1000)
    world.step()
    assert slots.allowed == 3 and slots.room(2, 2, 5) and not slots.room(3, 2, 5)
    world.cpus = 0
    world.step()
    assert slots.allowed == 1, "a cluster that begins with no worker gets its first by this"
    assert [line.split(" now")[0] for line in world.lines] == [
        f"the cluster has room for {number} trial(s) of this search" for number in (7, 2, 0)
    ]


def test_a_number_that_was_asked_for_stays() -> None:
    world = World(4)
    slots = world.join("a", 0.0, asked=6)
    world.step()
    assert slots.allowed == slots.most == 6, "more than fit: the cluster may grow by demand"
    world.cpus = 9
    world.step()
    assert slots.allowed == 6


def test_a_newcomer_gets_its_part_as_trials_end() -> None:
    world = World(6)
    world.join("a", 1.0)
    world.step()
    assert world.of("a") == 6
    world.join("b", 2.0)
    world.step()
    world.step()
    assert (world.of("a"), world.of("b")) == (6, 0), "nothing is taken from a trial in the middle"
    for _ in range(6):
        world.end_one("a" if world.of("a") > 2 else "b")
        world.step()
    assert (world.of("a"), world.of("b")) == (2, 4)
    # what the newcomer has no use for goes back
    world.state["b"] = (1, 1, 0)
    world.step()
    world.step()
    assert (world.of("a"), world.of("b")) == (5, 1)
    world.leave("b")
    world.state["b"] = (0, 0, 0)
    world.step()
    world.step()
    assert world.of("a") == 6
    assert world.lines[-1] == "no other search is on the cluster any more"


def test_a_driver_that_was_killed_leaves_its_part() -> None:
    world = World(4)
    world.join("a", 1.0)
    world.join("b", 1.0)
    world.step()
    world.step()
    assert (world.of("a"), world.of("b")) == (4, 0) or (world.of("a"), world.of("b")) == (2, 2)
    world.state["a"] = world.state["b"] = (2, 2, 1000)
    world.step()
    del world.drivers["b"]
    world.state["b"] = (0, 0, 0)
    world.step()
    assert world.of("a") == 2, "it may only be slow"
    for _ in range(int(STALE_S / BEAT_S) + 2):
        world.step()
    assert world.of("a") == 4


def test_one_slot_for_two_goes_round_at_the_ends_of_trials() -> None:
    world, had = World(1), {"a": 0.0, "b": 0.0}
    world.join("a", 1.0)
    world.join("b", 1.0)
    for step in range(3000):
        world.step()
        for key in had:
            had[key] += BEAT_S * world.of(key)
        if step % 20 == 0:
            # a trial takes forty seconds
            for key in had:
                if world.of(key):
                    world.end_one(key)
    assert had["a"] + had["b"] > 0.85 * world.now
    assert abs(had["a"] - had["b"]) <= 2 * TURN_S


def test_a_trial_gives_way_only_while_somebody_waits_and_after_a_while() -> None:
    world = World(2)
    slots = world.join("a", 1.0)
    world.step()
    assert world.of("a") == 2 and not slots.gives_way()
    world.join("b", 1.0, startable=3)
    for _ in range(int(PATIENCE_S / BEAT_S) - 1):
        world.step()
        assert not slots.gives_way(), "its trials may end by themselves"
    for _ in range(4):
        world.step()
    assert slots.gives_way() and not slots.gives_way(), "one trial is too many, not both"
    world.end_one("a")
    world.step()
    assert (world.of("a"), world.of("b")) == (1, 1)
    assert not slots.gives_way()


def test_nobody_gives_way_where_nobody_waits() -> None:
    world = World(4)
    slots = world.join("a", 1.0)
    world.join("b", 1.0)
    world.state = {"a": (2, 2, 1000), "b": (2, 2, 0)}
    # a node drains, and what runs there comes to its end
    world.cpus = 2
    for _ in range(int(2 * PATIENCE_S / BEAT_S)):
        world.step()
    assert slots.allowed < 2 and not slots.gives_way()


def test_without_share_a_search_takes_what_it_gets_and_those_with_it_the_rest() -> None:
    world = World(4)
    free = world.join("a", 0.0)
    world.state["a"] = (3, 3, 0)
    world.join("b", 1.0)
    world.join("c", 1.0)
    for _ in range(3):
        world.step()
    assert free.allowed == 4
    assert world.of("b") + world.of("c") == 1
    # the two have a part each even where it puts trials without end into Ray's queue
    world.end_one("a")
    world.end_one("a")
    world.state["a"] = (99, 1, 1000)
    world.step()
    world.step()
    assert (world.of("b"), world.of("c")) in ((1, 1), (2, 1), (1, 2))
    assert any(line.endswith("without --share this search takes what Ray gives it") for line in world.lines)


def test_a_cluster_that_is_away_changes_nothing() -> None:
    def broken() -> Any:
        raise RuntimeError("failed to connect to GCS")

    slots = ClusterSlots(Board(Shelf()), Claim("a", "a", "o", 1.0, 1.0, 0.0), broken, None, 3, pytest.fail)
    with slots:
        assert slots.room(2, 2, 9) and not slots.room(3, 3, 9)


class Gate:
    """Slots by hand."""

    def __init__(self, allowed: int) -> None:
        self.allowed, self.held, self.most, self.way = allowed, False, 99, False
        self.told: list[tuple[int, int, int]] = []

    def __enter__(self) -> Gate:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def room(self, live: int, running: int, startable: int) -> bool:
        self.told.append((live, running, startable))
        return live < self.allowed

    def gives_way(self) -> bool:
        return self.way


def searcher_with(tmp_path: Path, gate: Gate, trials: int, parameters: dict[str, Any] = FLAT) -> StudySearcher:
    study = make_study(tmp_path, parameters, trials, sampler="random")
    controller = TrialController(study.manifest, study.manifest.build_space(), study.record, slots=gate)
    return StudySearcher(controller)


def test_the_controller_starts_no_more_than_it_may(tmp_path: Path) -> None:
    gate = Gate(2)
    searcher = searcher_with(tmp_path, gate, 3)
    assert [suggest(searcher, str(index))["number"] for index in range(2)] == [0, 1]
    assert searcher.suggest("2") is None
    searcher.controller.began(0)
    assert searcher.suggest("2") is None
    assert gate.told == [(0, 0, 3), (1, 0, 2), (2, 0, 1), (2, 1, 1)]
    run_whole(searcher, "0", 0.5)
    assert suggest(searcher, "2")["number"] == 2
    run_whole(searcher, "1", 0.5)
    # nothing is left to start: the end is not held back by others
    gate.allowed = 0
    run_whole(searcher, "2", 0.5)
    assert searcher.suggest("3") == "FINISHED" and reason(searcher) is EndReason.DONE
    assert gate.told[-1] == (0, 0, 0)


def test_what_may_be_started_follows_the_space_and_the_look_behind(tmp_path: Path) -> None:
    gate = Gate(99)
    study = make_study(tmp_path, FEW, 100, sampler="tpe")
    manifest = study.manifest.model_copy(update={"look_behind": 2})
    searcher = StudySearcher(TrialController(manifest, manifest.build_space(), study.record, slots=gate))
    for index in range(4):
        searcher.suggest(str(index))
    # six points; the fourth trial waits for the first
    assert [startable for _, _, startable in gate.told] == [3, 2, 1, 0]
    run_whole(searcher, "0", 0.5)
    suggest(searcher, "3")
    assert gate.told[-1] == (2, 0, 1)


def test_a_trial_that_gives_way_goes_on_from_there_and_is_the_same_trial(tmp_path: Path) -> None:
    gate = Gate(1)
    searcher = searcher_with(tmp_path, gate, 2)
    first = suggest(searcher, "x")
    controller = searcher.controller

    def told(epoch: int, kept: int) -> dict[str, Any]:
        made = result(epoch, 0.5)
        return made | {REPORT: replace(made[REPORT], origin=Origin("w", "n", (), kept))}

    gate.way = True
    assert controller.decide(0, told(1, 0)[REPORT]) is Decision.CONTINUE, "that epoch would be lost"
    searcher.on_trial_result("x", told(1, 0))
    assert controller.decide(0, told(2, 2)[REPORT]) is Decision.PAUSE
    searcher.on_trial_complete("x", told(2, 2))
    gate.allowed, gate.way = 0, False
    assert searcher.suggest("y") is None
    assert gate.told[-1] == (0, 0, 2)
    gate.allowed = 1
    again = suggest(searcher, "y")
    assert (again["number"], again["params"], again["attempt"]) == (0, first["params"], 2)
    # its last epoch is its own, whoever waits
    gate.way = True
    assert controller.decide(0, told(3, 3)[REPORT]) is Decision.CONTINUE
    searcher.on_trial_complete("y", told(3, 3))
    stored = controller.record.load()[0]
    assert stored.state.name == "COMPLETE" and sorted(stored.intermediate_values) == [1, 2, 3]


def test_without_a_cluster_nothing_is_held_back() -> None:
    assert FREE.room(10**6, 0, 1) and not FREE.gives_way() and not FREE.held

"""Tasks whose node lacks what they need go to another one, while there is one; Ray itself is played."""

from __future__ import annotations

from typing import Any

import pytest

from sctune.search.cluster.connection import Resources
from sctune.search.run import remote
from sctune.search.run.remote import RemoteTasks
from sctune.trial.remote import FAILED, NODE


class PlayedRay:
    """Runs a task at once on the first node that its label selector allows; nodes: id -> why tasks fail there."""

    class exceptions:  # noqa: N801 (Ray's name)
        RayError = ValueError

    def __init__(self, nodes: dict[str, str | None]) -> None:
        self.nodes, self.ran, self._given = nodes, [], iter(range(1000))
        self._answers: dict[int, dict[str, Any]] = {}
        self._where: dict[str, Any] = {}

    def remote(self, function: Any) -> Any:
        outer = self

        class Task:
            def options(self, num_cpus: float, num_gpus: float, max_retries: int, **where: Any) -> Any:
                outer._where = where
                return self

            def remote(self, *given: Any) -> int:
                left_out = outer._where.get("label_selector", {}).get("ray.io/node-id", "!in()")[4:-1].split(",")
                node = next(node for node in outer.nodes if node not in left_out)
                outer.ran.append(node)
                kind = outer.nodes[node]
                answer = function(*given) if kind is None else {FAILED: {"kind": kind, "message": "m"}, NODE: node}
                name = next(outer._given)
                outer._answers[name] = answer
                return name

        return Task()

    def wait(self, tasks: list[int], timeout: float) -> tuple[list[int], list[int]]:
        return tasks, []

    def get(self, name: int) -> dict[str, Any]:
        return self._answers[name]


def run(monkeypatch: pytest.MonkeyPatch, nodes: dict[str, str | None], tasks: int = 1) -> tuple[list[Any], list[str]]:
    played = PlayedRay(nodes)
    monkeypatch.setattr(remote, "ray", played)
    monkeypatch.setattr(remote, "nodes_for", lambda cpus, gpus: set(nodes))
    made = RemoteTasks[int](Resources(2.0, 0.0, 1.0, 0.0, 4, 2, {"refused": "lacks versions"}))
    ended = []
    for number in range(tasks):
        made.start(number, lambda value: {"value": value}, number)
        while made.keys:
            ended += made.take()
    return ended, played.ran


def test_it_goes_on_elsewhere_and_the_next_one_does_not_try(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = {"refused": None, "full": "PlaceError", "fine": None}
    ended, ran = run(monkeypatch, nodes, tasks=2)
    assert ended == [(0, {"value": 0}), (1, {"value": 1})]
    assert ran == ["full", "fine", "fine"]


def test_without_another_node_the_failure_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    ended, ran = run(monkeypatch, {"refused": None, "full": "PlaceError", "other": "WeightsError"})
    assert [answer[FAILED]["kind"] for _, answer in ended] == ["WeightsError"]
    assert ran == ["full", "other"]


def test_a_failure_of_its_own_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    ended, ran = run(monkeypatch, {"refused": None, "first": "ValueError", "fine": None})
    assert [answer[FAILED]["kind"] for _, answer in ended] == ["ValueError"] and ran == ["first"]

"""What becomes of a troubled trial, decided without Ray."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sctune.report import Origin, TrialFailure
from sctune.search.cluster.resources import TrialResources
from sctune.search.run.faults import (
    MAX_STORAGE_FAILURES,
    MAX_WORKER_LOSSES,
    RETRY_PAUSES_S,
    Faults,
    WaitingTrials,
    common_cause,
)

KILLED = "The actor died unexpectedly before finishing this task.\n\tpid: 7\nThe worker process was killed by SIGKILL."
NODE_LOST = "The actor died unexpectedly before finishing this task.\nThe actor died because its node has died."
HEARTBEATS = "The actor's node was terminated unexpectedly: health check failed due to missing too many heartbeats"
HOST_MEMORY = "Task was killed due to the node running low on memory."
NODE = TrialResources(8.0, 0.0)


def faults(alive: set[str] | None = None) -> Faults:
    return Faults(TrialResources(1.0, 0.0), NODE, lambda node: alive is None or node in alive)


def failure(kind: str, node: str = "", where: str = "") -> TrialFailure:
    return TrialFailure(kind, "no luck", "T", Origin(where, node))


def test_a_node_that_is_taken_away_costs_nothing_and_is_named() -> None:
    text = "ray.exceptions.RayTaskError(NodeLeavingError): the node is being drained (host, process 7): it goes on"
    judge = faults(alive={"here"})
    for _ in range(MAX_WORKER_LOSSES + 1):
        action = judge.lost(3, text, "here", NODE)
        assert (action.failure, action.reason) == (None, "its node is being taken away")


def test_a_deterministic_error_fails_at_once() -> None:
    action = faults().told(3, failure("NonFiniteError"), TrialResources(1.0, 0.0))
    assert action.failure == failure("NonFiniteError")
    assert action.reason == "failed: NonFiniteError"


def test_lost_workers_cost_retries_with_longer_pauses() -> None:
    judge = faults()
    waits = [judge.lost(3, KILLED, None, NODE).wait_s for _ in range(MAX_WORKER_LOSSES)]
    assert waits == list(RETRY_PAUSES_S)
    # of another trial
    assert judge.lost(4, KILLED, None, NODE).failure is None
    last = judge.lost(3, KILLED, None, NODE)
    assert last.failure is not None
    assert last.failure.kind == "lost"
    assert "killed by SIGKILL" in last.failure.message


@pytest.mark.parametrize(
    ("text", "node"), [(NODE_LOST, None), (HEARTBEATS, None), ("Connection reset by peer", "gone")]
)
def test_lost_nodes_cost_nothing(text: str, node: str | None) -> None:
    judge = faults(alive={"here"})
    for _ in range(20):
        action = judge.lost(3, text, node, NODE)
        assert action.failure is None
        assert action.reason == "its node was lost"
    assert [judge.lost(3, KILLED, "here", NODE).failure is None for _ in range(4)] == [True, True, True, False]


def test_out_of_memory_takes_the_next_larger_share_until_there_is_none() -> None:
    judge = Faults(TrialResources(2.0, 0.3), TrialResources(16.0, 4.0), lambda _: True)
    share, seen = TrialResources(2.0, 0.3), []
    while (action := judge.told(1, failure("out of memory"), share)).resources is not None:
        assert action.failure is None
        share = action.resources
        seen.append(share)
    assert seen == [TrialResources(2.0, 0.6), TrialResources(2.0, 1.0)]
    assert action.failure is not None
    assert "1 GPU, the most that one trial can have: no luck" in action.failure.message


def test_memory_of_a_machine_without_gpus_is_shared_among_fewer() -> None:
    action = faults().lost(1, HOST_MEMORY, None, TrialResources(3.0, 0.0))
    assert action.resources == TrialResources(6.0, 0.0)
    assert faults().lost(1, HOST_MEMORY, None, TrialResources(6.0, 0.0)).resources == NODE
    assert faults().lost(1, HOST_MEMORY, None, NODE).failure is not None


@given(cpus=st.floats(0.01, 64), gpus=st.sampled_from([0.0, 0.05, 0.25, 0.5, 1.0, 2.0]), node=st.floats(1, 128))
def test_shares_grow_and_come_to_an_end(cpus: float, gpus: float, node: float) -> None:
    share: TrialResources | None = TrialResources(cpus, gpus)
    for _ in range(20):
        assert share is not None
        more = share.larger(TrialResources(node, 8.0))
        if more is None:
            break
        assert (more.cpus, more.gpus) > (share.cpus, share.gpus)
        assert more.gpus <= max(1.0, gpus)
        assert more.cpus <= max(node, cpus)
        share = more
    else:
        pytest.fail("no end")


@pytest.mark.parametrize("kind", ["disk full", "storage away"])
def test_a_storage_that_takes_nothing_is_waited_for(kind: str) -> None:
    judge = faults()
    for _ in range(MAX_STORAGE_FAILURES - 1):
        action = judge.told(1, failure(kind), NODE)
        assert action.failure is None and action.abort is None
        assert action.storage
        assert action.wait_s > 0
    last = judge.told(1, failure(kind, where="node-3, process 7"), NODE)
    assert last.failure is None
    assert last.abort is not None and "trial 1 could not keep" in last.abort and "node-3" in last.abort
    assert judge.told(2, failure(kind), NODE).storage


@pytest.mark.parametrize("kind", ["PlaceError", "ClusterError", "WeightsError"])
def test_what_a_node_lacks_costs_that_node_and_no_trial(kind: str) -> None:
    judge = Faults(TrialResources(1.0, 0.0), NODE, lambda _: True, lambda _: {"a", "b", "c"}, left_out={"c"})
    told = failure(kind, "a", "host-a, process 7, cpu")
    first = judge.told(1, told, NODE)
    assert first.failure is None and first.abort is None and first.wait_s == 0
    assert first.left_out == "node host-a: no luck; it is left out until the next launch"
    assert "node host-a: no luck" in first.reason
    assert judge.left_out == {"a", "c"}
    # one that was on its way there already
    again = judge.told(2, told, NODE)
    assert again.failure is None and again.abort is None and again.left_out is None
    last = judge.told(2, failure(kind, "b", "host-b, process 8"), NODE)
    assert last.abort == "no node is left; node host-b: no luck"
    assert last.failure is None


def test_the_only_node_ends_the_launch() -> None:
    judge = Faults(
        TrialResources(1.0, 0.0), NODE, lambda _: True, lambda share: {"a"} if share.cpus > 4 else {"a", "b"}
    )
    told = failure("PlaceError", "a", "host-a, process 7")
    # the other one is too small for this trial
    assert judge.told(1, told, TrialResources(8.0, 0.0)).abort == "node host-a: no luck"
    assert judge.told(1, told, TrialResources(1.0, 0.0)).abort is None
    # where it ran is not known
    assert faults().told(1, failure("PlaceError"), TrialResources(1.0, 0.0)).abort == "no luck"


def test_who_waits_starts_in_order() -> None:
    now = [0.0]
    waiting = WaitingTrials([4, 5], lambda: now[0])
    waiting.park(9)
    waiting.delay(7, 10)
    assert [waiting.next_ready() for _ in range(3)] == [4, 5, None]
    assert len(waiting) == 2
    now[0] = 11
    assert [waiting.next_ready(), waiting.next_parked(), waiting.next_parked(), len(waiting)] == [7, 9, None, 0]


def test_the_common_cause_ignores_numbers_that_differ() -> None:
    rows = [TrialFailure("ValueError", f"bad value at 0x{n}") for n in (11, 12, 13)]
    rows.append(TrialFailure("KeyError", "x"))
    assert common_cause(rows) == "ValueError: bad value at 0x11 (3 of 4)"
    assert common_cause([]) == "no cause is known"


class Launch:
    """The faults of a launch on nodes of one kind, and what befalls its trials."""

    def __init__(self, *nodes: str) -> None:
        self.nodes = set(nodes)
        self.judge = Faults(ONE, NODE, lambda node: node in self.nodes, lambda _: self.nodes)

    def fails(self, number: int, node: str, kind: str = "AcceleratorError") -> bool:
        """Whether the trial is tried again."""
        return self.judge.told(number, failure(kind, node, f"host-{node}, process 7"), ONE).failure is None

    def gets_on(self, number: int, node: str) -> str | None:
        return self.judge.got_on(number, Origin(f"host-{node}, process 8", node))

    def avoided(self, number: int) -> tuple[str, ...]:
        return self.judge.avoid(number, ONE)


ONE = TrialResources(1.0, 0.0)


def test_a_node_that_fails_trials_which_get_on_elsewhere_is_left_out_and_named() -> None:
    launch = Launch("a", "b", "c")
    assert launch.gets_on(0, "a") is None, "nothing was wrong with it"
    assert launch.fails(1, "a")
    assert (launch.avoided(1), launch.avoided(2)) == (("a",), ())
    assert launch.gets_on(1, "b") is None, "once may be chance"
    assert launch.fails(2, "a") and launch.gets_on(2, "a") is None, "there again it proves nothing"
    line = launch.gets_on(2, "c")
    assert line is not None and line.startswith("node host-a: trials 1 and 2 failed there and got on elsewhere (Accel")
    assert line.endswith("it is left out until the next launch")
    assert launch.judge.left_out == {"a"} and launch.avoided(9) == ("a",)
    # the last node is never left out, and a failure there is one
    launch.nodes = {"a", "b"}
    assert not launch.fails(3, "b") and not launch.fails(4, "b")
    assert launch.judge.left_out == {"a"}


def test_what_fails_everywhere_is_the_trials_own_fault() -> None:
    launch = Launch("a", "b", "c")
    for number in range(6):
        assert launch.fails(number, "a") and launch.avoided(number) == ("a",)
        assert not launch.fails(number, "b"), "not on a third one"
    assert launch.judge.left_out == set()


@pytest.mark.parametrize("kind", ["NonFiniteError", "DataError", "ValueError"])
def test_what_no_machine_causes_is_not_tried_elsewhere(kind: str) -> None:
    assert not Launch("a", "b").fails(1, "a", kind)


def test_a_machine_alone_has_nobody_to_compare_with() -> None:
    launch = Launch("a")
    assert not launch.fails(1, "a")
    assert launch.judge.lost(2, KILLED, "a", ONE).failure is None and launch.avoided(2) == ()


def test_a_node_that_loses_workers_which_live_elsewhere_is_left_out() -> None:
    launch = Launch("a", "b")
    for number in (1, 2):
        launch.gets_on(9, "a")
        assert launch.judge.lost(number, KILLED, "a", ONE).failure is None
        assert launch.avoided(number) == ("a",)
    assert launch.gets_on(1, "b") is None
    line = launch.gets_on(2, "b")
    assert line is not None and line.startswith("node host-a: trials 1 and 2") and "SIGKILL" in line


def test_a_trial_that_failed_on_every_node_may_go_anywhere() -> None:
    launch = Launch("a", "b")
    for node in ("a", "b"):
        launch.judge.lost(1, KILLED, node, ONE)
    assert launch.avoided(1) == ()
    launch.nodes.add("c")
    assert launch.avoided(1) == ("a", "b")

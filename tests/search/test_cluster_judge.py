"""What is good and bad about a node's answer, and what a search does about it: each fault alone, all pairs, none."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest

from sctune.data.place import Needs
from sctune.errors import ClusterError
from sctune.search.cluster import node_check, security
from sctune.search.cluster.asking import Answer, Clock
from sctune.search.cluster.facts import NodeFacts
from sctune.search.cluster.findings import Finding, Node, State
from sctune.search.cluster.judge import judge
from sctune.search.cluster.machine import Gpu, Listener
from sctune.search.cluster.node_check import decide
from sctune.search.cluster.table import lines_of, table_of, verdict
from sctune.search.cluster.wanted import FileSet, Wanted, Weights

GIB = 2**30
VERSIONS = {"python": "3.11.7", "ray": "2.60.0", "sctune": "0.1.0", "torch": "2.15.0"}
WANTED = Wanted(
    storage="/shared/studies/mine",
    versions=VERSIONS,
    needs=Needs(("/images/a.png",), "/cache", 1000),
    data=(FileSet("/images", ("a.png", "b.png"), "d1", 10),),
    weights={"resnet18": Weights(None, "w1")},
    cpus=2.0,
    gpus=1.0,
)
FACTS = NodeFacts(
    versions=VERSIONS,
    cache_free=50 * GIB,
    digests=("d1",),
    weights={"resnet18": "w1"},
    storage_read=True,
    gpus=(Gpu("H", 70 * GIB, 72 * GIB), Gpu("H", 71 * GIB, 72 * GIB)),
    memory_free=60 * GIB,
    memory_total=64 * GIB,
    temporary="/tmp",
    temporary_free=40 * GIB,
    shared_memory=8 * GIB,
    token=True,
    listeners=(Listener("raylet", "::", 4000), Listener("dashboard", "127.0.0.1", 8265)),
    page="127.0.0.1:8265",
)


def node(number: int = 1, cpus: float = 4.0, gpus: float = 2.0) -> Node:
    return Node(f"id{number}", f"w{number}", f"10.0.0.{number}", cpus, gpus, head=False)


def answer(number: int = 1) -> Answer:
    return Answer(node(number), FACTS, Clock(0.001, 0.0005), returned=True)


def facts(**changes: Any) -> Callable[[Answer], Answer]:
    def plant(healthy: Answer) -> Answer:
        assert healthy.facts is not None
        problems = {**healthy.facts.problems, **changes.get("problems", {})}
        return replace(healthy, facts=replace(healthy.facts, **{**changes, "problems": problems}))

    return plant


def clock(offset: float, bound: float = 0.001) -> Callable[[Answer], Answer]:
    return lambda healthy: replace(healthy, clock=Clock(offset, bound))


FAULTS: dict[str, tuple[str, str, str, Callable[[Answer], Answer]]] = {
    "another version": (
        *("versions", "refuse", "has torch 2.14.0 (driver 2.15.0); install the same"),
        facts(versions={**VERSIONS, "torch": "2.14.0"}),
    ),
    "a package is missing": (
        *("versions", "refuse", "has sctune None (driver 0.1.0)"),
        facts(versions={name: text for name, text in VERSIONS.items() if name != "sctune"}),
    ),
    "clock ahead": ("clock", "leave out", "its clock is +400.0 s ± 1.0 ms off the driver's", clock(400.0)),
    "clock behind": ("clock", "leave out", "its clock is -301.0 s", clock(-301.0)),
    "no images": (
        *("data", "leave out", "cannot read /images/a.png: No such file; mount the images there"),
        facts(lacks="cannot read /images/a.png: No such file; mount the images there", digests=None),
    ),
    "other images": ("data", "leave out", "hold something else than the driver's; give every", facts(digests=("d2",))),
    "a mount that hangs": (
        *("data", "leave out", "no answer within 60 s; look at the mount"),
        facts(digests=None, problems={"data": "no answer within 60 s"}),
    ),
    "other weights": (
        *("weights", "leave out", "weights of resnet18 differ from the driver's; copy"),
        facts(weights={"resnet18": "w2"}),
    ),
    "no storage": (
        *("storage", "refuse", "does not see /shared/studies; give --storage-path a folder or s3:// URI"),
        facts(storage_read=False),
    ),
    "storage that cannot be written": (
        *("storage", "refuse", "reads /shared/studies but cannot write to it (Permission denied); let the user"),
        facts(storage_problem="Permission denied"),
    ),
    "another folder of the same name": (
        *("storage", "refuse", "writes to /shared/studies what the driver does not see there"),
        lambda healthy: replace(healthy, returned=False),
    ),
    "storage that hangs": (
        *("storage", "refuse", "no answer within 60 s; give --storage-path"),
        facts(problems={"storage": "no answer within 60 s"}),
    ),
    "GPUs that torch does not see": (
        *("GPUs", "leave out", "Ray counts on 2 GPUs, and torch sees 1; look at nvidia-smi"),
        facts(gpus=(Gpu("H", 70 * GIB, 72 * GIB),)),
    ),
    "a full GPU": (
        *("GPUs", "tell", "0.5 GiB of 72.0 GiB of a GPU are free; end what else runs"),
        facts(gpus=(Gpu("H", 70 * GIB, 72 * GIB), Gpu("H", GIB // 2, 72 * GIB))),
    ),
    "too little memory": (
        "memory",
        "tell",
        "0.5 GiB of 64.0 GiB free; a trial needs 1.0 GiB",
        facts(memory_free=GIB // 2),
    ),
    "a full disk": ("disk", "tell", "0.1 GiB free in /tmp; Ray keeps logs", facts(temporary_free=GIB // 10)),
    "no token": ("token", "refuse", "Ray runs without a token; start every node", facts(token=False)),
    "a dashboard for everybody": (
        *("ports", "tell", "the dashboard listens at 0.0.0.0:8265, without a token"),
        facts(token=False, listeners=(Listener("dashboard", "0.0.0.0", 8265),), page="10.0.0.1:8265"),
    ),
}
"""Name -> the check that must fail, what a search does, a part of the line, and how it is planted."""

WARNINGS: dict[str, tuple[str, str, Callable[[Answer], Answer]]] = {
    "clock": ("clock", "its clock is +3.0 s", clock(3.0)),
    "weights that can be downloaded": ("weights", "are not here yet", facts(weights={"resnet18": None})),
    "a GPU that others use": (
        *("GPUs", "something else uses a GPU"),
        facts(gpus=(Gpu("H", 50 * GIB, 72 * GIB), Gpu("H", 70 * GIB, 72 * GIB))),
    ),
    "memory for one trial of two": ("memory", "for 2 trials", facts(memory_free=GIB + 1)),
    "a container's shared memory": ("disk", "/dev/shm has 0.1 GiB", facts(shared_memory=2**26)),
    "a dashboard with a token": (
        *("ports", "unencrypted"),
        facts(listeners=(Listener("dashboard", "0.0.0.0", 8265),), page="10.0.0.1:8265"),
    ),
}


def found(changed: Answer, state: State, wanted: Wanted = WANTED) -> dict[str, Finding]:
    """Check -> finding of this state, beside a healthy node in which nothing is wrong."""
    changed_report, healthy = judge(wanted, [changed, answer(2)])
    assert all(one.state in (State.OK, State.SKIPPED) for one in healthy.findings)
    return {one.check: one for one in changed_report.findings if one.state is state}


def test_nothing_is_wrong_with_a_healthy_cluster() -> None:
    reports = judge(WANTED, [answer(1), answer(2)])
    assert {one.state for report in reports for one in report.findings} == {State.OK}
    assert decide(reports).lines == ()
    assert lines_of((), reports) == [] and verdict((), reports) == "healthy: 2 nodes"


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_found_named_and_acted_upon(name: str) -> None:
    check, effect, text, plant = FAULTS[name]
    faults = found(plant(answer()), State.FAILED)
    also = {"token"} if name == "a dashboard for everybody" else set()
    assert set(faults) == {check} | also
    one = faults[check]
    assert text in one.text and one.effect.value == effect
    assert one.advice, "every failure has a way out"
    reports = judge(WANTED, [plant(answer()), answer(2)])
    (line,) = [line for line in lines_of((), reports) if line.startswith(f"FAILED {check}")]
    assert line.startswith(f"FAILED {check}, node w1 (10.0.0.1): ") and "\n" not in line
    assert verdict((), reports) == "not healthy: 1 of 2 nodes failed"
    if effect == "refuse" or also:
        with pytest.raises(ClusterError, match=r"^node w1 \(10.0.0.1\) "):
            decide(reports)
        return
    checked = decide(reports)
    assert set(checked.left_out) == ({"id1"} if effect == "leave out" else set())
    assert len(checked.lines) == 1 and "node w1 (10.0.0.1)" in checked.lines[0] and text in checked.lines[0]


def test_two_faults_are_both_found() -> None:
    for (_, first), (_, second) in itertools.combinations(FAULTS.items(), 2):
        if first[0] == second[0] or "token" in first[2] + second[2]:
            continue
        faults = found(second[3](first[3](answer())), State.FAILED)
        assert set(faults) == {first[0], second[0]}


@pytest.mark.parametrize("name", WARNINGS)
def test_what_is_worth_a_warning_stops_nothing(name: str) -> None:
    check, text, plant = WARNINGS[name]
    assert not found(plant(answer()), State.FAILED)
    warnings = found(plant(answer()), State.WARNING)
    assert set(warnings) == {check} and text in warnings[check].text and warnings[check].advice
    checked = decide(judge(WANTED, [plant(answer()), answer(2)]))
    assert not checked.left_out and len(checked.warnings) == 1


def test_a_clock_counts_only_beyond_what_the_round_trip_explains() -> None:
    assert not found(clock(3.0, bound=1.5)(answer()), State.WARNING)
    assert not found(clock(301.0, bound=2.0)(answer()), State.FAILED)
    assert found(clock(303.0, bound=2.0)(answer()), State.FAILED)


def test_a_node_that_does_not_answer_is_left_out() -> None:
    silent = Answer(node(1), problem="no answer within 120 s")
    (one,) = judge(WANTED, [silent, answer(2)])[0].findings
    assert (one.check, one.state) == ("answer", State.FAILED)
    left_out = decide(judge(WANTED, [silent, answer(2)])).left_out
    assert list(left_out) == ["id1"]
    assert left_out["id1"].startswith("node w1 (10.0.0.1): cannot run sctune: no answer within 120 s; ")
    assert left_out["id1"].endswith("it is left out until the next launch")
    with pytest.raises(ClusterError, match=r"^no node can run trials: node w1 .*; node w2 "):
        decide(judge(WANTED, [silent, Answer(node(2), problem="no answer within 120 s")]))


def test_a_head_without_cpus_needs_no_images_gpus_or_memory() -> None:
    bare = replace(FACTS, digests=None, weights={}, gpus=None, memory_free=GIB // 2)
    head = replace(answer(1), node=node(1, cpus=0.0, gpus=0.0), facts=bare)
    assert not found(head, State.FAILED) and not found(head, State.WARNING)
    # it counts for nothing where no other node is left
    with pytest.raises(ClusterError, match="no node can run trials"):
        decide(judge(WANTED, [head, facts(digests=("d2",))(answer(2))]))


def test_gpus_that_no_node_has_are_missed_and_those_of_one_node_are_enough() -> None:
    without = replace(facts(gpus=None)(answer(1)), node=node(1, gpus=0.0))
    other = replace(without, node=node(2, gpus=0.0))
    reports = judge(WANTED, [without, other])
    assert all(
        "has 0 GPUs, and a trial takes 1; start Ray there with --num-gpus" in r.findings[6].text for r in reports
    )
    assert "it gets no trials" in found(without, State.SKIPPED)["GPUs"].detail
    # nobody asked for any: one each where there are some, none at all where there are none
    by_default = replace(WANTED, gpus=None)
    assert "it gets no trials" in found(without, State.SKIPPED, by_default)["GPUs"].detail
    assert {one.state for one in judge(by_default, [without, other])[0].findings} == {State.OK, State.SKIPPED}


def test_equal_nodes_of_many_share_a_column_and_a_line() -> None:
    ill = {7, 11, 12, 13, 40}
    answers = [facts(digests=("d2",))(answer(n)) if n in ill else answer(n) for n in range(1, 51)]
    reports = judge(WANTED, answers)
    own = (Finding("MLflow", State.OK, "http://mlflow:5000"),)
    table = table_of("head", own, reports)
    assert table.header == (
        "check",
        "driver\nhead",
        "45 nodes\nw1, w2, w3 and 42 more",
        "5 nodes\nw7, w11, w12 and 2 more",
    )
    rows = {row[0]: row[1:] for row in table.rows}
    assert rows["data"] == ("", "2 images", "FAILED")
    assert rows["MLflow"] == ("http://mlflow:5000", "", "")
    assert all(len(row) == len(table.header) for row in table.rows)
    (line,) = lines_of(own, reports)
    assert line.startswith(
        "FAILED data, node w7 (10.0.0.7), node w11 (10.0.0.11), node w12 (10.0.0.12) and 2 more: the "
    )
    assert verdict(own, reports) == "not healthy: 5 of 50 nodes failed"
    down = Finding("MLflow", State.FAILED, "cannot be reached", "start it")
    assert verdict((down,), judge(WANTED, [answer()])) == "not healthy: 1 of the driver's own checks failed"


def test_a_few_nodes_have_a_column_each_with_their_own_figures() -> None:
    reports = judge(WANTED, [answer(1), clock(-0.5)(answer(2))])
    table = table_of("head", (), reports)
    rows = {row[0]: row[1:] for row in table.rows}
    assert rows["clock"] == ("", "+1.0 ms ± 0.5 ms", "-500.0 ms ± 1.0 ms")
    many = judge(WANTED, [answer(1), clock(-0.5)(answer(2)), *(answer(n) for n in range(3, 7))])
    assert {row[0]: row[2] for row in table_of("head", (), many).rows}["clock"] == "ok"


@pytest.mark.parametrize(("asked", "begins"), [(True, True), (None, True), (False, False)])
def test_a_search_does_not_begin_where_ray_answers_strangers(
    monkeypatch: pytest.MonkeyPatch, asked: bool | None, begins: bool
) -> None:
    monkeypatch.setattr(node_check, "ask_nodes", lambda wanted, limit_s: [answer(1), answer(2)])
    monkeypatch.setattr(node_check, "token_asked", lambda: nullcontext(lambda: asked))
    monkeypatch.setattr(security, "dashboard_address", lambda: None)
    if begins:
        assert node_check.check_nodes(WANTED).lines == ()
        return
    with pytest.raises(ClusterError, match=r"^Ray's head answers without a token; start every node of Ray with "):
        node_check.check_nodes(WANTED)

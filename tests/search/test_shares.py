"""Who may have how many trials of a shared cluster: by hand for small cases, by its properties for many."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sctune.search.cluster.board import PREFIX, STALE_S, Board
from sctune.search.cluster.shares import TURN_S, Claim, shares

Nodes = Sequence[Mapping[str, float]]
FOUR = [{"CPU": 4.0}, {"CPU": 4.0}]


def claim(
    key: str, weight: float = 1.0, wanted: int = 99, cpus: float = 1.0, gpus: float = 0.0, **more: float
) -> Claim:
    return Claim(key, f"study-{key}", "u@h", weight, cpus, gpus, wanted=wanted, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("claims", "expected"),
    [
        ([claim("a")], {"a": 8}),
        ([claim("a"), claim("b")], {"a": 4, "b": 4}),
        ([claim("a"), claim("b", 3.0)], {"a": 2, "b": 6}),
        # what one leaves idle the others take, by their weights
        ([claim("a", wanted=1), claim("b"), claim("c")], {"a": 1, "b": 4, "c": 3}),
        ([claim("a", wanted=0), claim("b")], {"a": 0, "b": 8}),
        # half of the cluster each: four trials of one CPU, two of two
        ([claim("a"), claim("b", cpus=2.0)], {"a": 4, "b": 2}),
        # who does not share keeps what it has, even all; then one may wait in Ray's queue
        ([claim("a"), claim("b", 0.0, running=5)], {"a": 3, "b": 5}),
        ([claim("a"), claim("b", 0.0, running=8), claim("c")], {"a": 1, "b": 8, "c": 0}),
        # and gets an equal part of what others have, but no more for all that it has put into Ray's queue
        ([claim("a"), claim("b", 0.0, running=1, live=8)], {"a": 4, "b": 4}),
        # a trial of five CPUs fits nowhere; the others have all
        ([claim("a"), claim("b", cpus=5.0)], {"a": 8, "b": 0}),
    ],
)
def test_eight_slots_on_two_nodes(claims: list[Claim], expected: dict[str, int]) -> None:
    assert shares(FOUR, claims) == expected


def test_the_scarcer_resource_counts() -> None:
    """Ghodsi et al. 2011, section 4.1, with GPUs for memory: <9 CPU, 18 GPU>, A takes <1, 4>, B <3, 1>: 3 and 2."""
    nodes = [{"CPU": 9.0, "GPU": 18.0}]
    assert shares(nodes, [claim("a", cpus=1.0, gpus=4.0), claim("b", cpus=3.0, gpus=1.0)]) == {"a": 3, "b": 2}


def test_parts_of_a_gpu_do_not_span_two() -> None:
    """.4 of a GPU fits twice on each of two."""
    assert shares([{"CPU": 99.0, "GPU": 2.0}], [claim("a", gpus=0.4)]) == {"a": 4}
    assert shares([{"CPU": 99.0, "GPU": 2.0}], [claim("a", gpus=0.4), claim("b", gpus=1.0)]) == {"a": 2, "b": 1}


def test_a_slot_that_cannot_be_divided_goes_round() -> None:
    """Two searches and one slot, steps of a second: each has it half of the time, in turns of minutes."""
    one, now = [{"CPU": 1.0}], {"a": 0.0, "b": 0.0}
    turns = []
    for _ in range(4000):
        given_now = shares(one, [claim("a", served=now["a"]), claim("b", served=now["b"])])
        (holder,) = [key for key, number in given_now.items() if number]
        now[holder] += 1.0
        turns.append(holder)
    assert abs(now["a"] - now["b"]) <= TURN_S
    changes = sum(one != other for one, other in pairwise(turns))
    assert 4000 / (2 * TURN_S) - 1 <= changes <= 4000 / TURN_S + 1


def test_a_weight_of_three_has_the_one_slot_for_three_quarters_of_the_time() -> None:
    served, had = {"a": 0.0, "b": 0.0}, {"a": 0, "b": 0}
    weight = {"a": 3.0, "b": 1.0}
    for _ in range(12000):
        now = shares([{"CPU": 1.0}], [claim(key, weight[key], served=served[key]) for key in weight])
        (holder,) = [key for key, number in now.items() if number]
        served[holder] += 1.0 / weight[holder]
        had[holder] += 1
    assert had["a"] / 12000 == pytest.approx(0.75, abs=0.06)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.integers(0, 6), min_size=1, max_size=4),
    st.lists(st.tuples(st.integers(0, 4), st.integers(0, 12), st.integers(0, 9)), min_size=1, max_size=5),
)
def test_nothing_is_given_twice_or_left_idle(cpus: list[int], drivers: list[tuple[int, int, int]]) -> None:
    """Trials of one CPU: all are given while somebody wants one; equal weights differ by one at most; no more than
    wanted.
    """
    nodes = [{"CPU": float(count)} for count in cpus]
    claims = [
        claim(str(index), weight, wanted if weight else max(wanted, running), running=running)
        for index, (weight, wanted, running) in enumerate(drivers)
    ]
    given_now = shares(nodes, claims)
    sharing = [one for one in claims if one.weight]
    total, there = sum(given_now.values()), sum(cpus)
    wanted = sum(one.wanted for one in claims)
    alone = total > there
    assert not alone or (total == there + 1 and sum(given_now[one.key] for one in sharing) == 1)
    assert alone or total == min(there, wanted)
    for one in sharing:
        assert given_now[one.key] <= one.wanted
        for other in sharing:
            hungry = given_now[one.key] < one.wanted
            if hungry and one.weight == other.weight:
                assert given_now[other.key] <= given_now[one.key] + 1


class Shelf(dict[str, bytes]):
    """A dictionary in the place of the cluster's key-value store."""

    def key_value(self, key: str) -> bytes | None:
        return self.get(key)

    def set_key_value(self, key: str, value: bytes) -> None:
        self[key] = value

    def keys_with(self, prefix: str) -> list[str]:
        return sorted(key for key in self if key.startswith(prefix))

    def remove_key(self, key: str) -> None:
        self.pop(key, None)


def test_a_driver_that_dies_is_gone_by_itself() -> None:
    now, shelf = 1000.0, Shelf()
    board = Board(shelf, lambda: now)
    board.put(claim("a", beat=1))
    board.put(claim("b", beat=1))
    assert [one.key for one in board.read()] == ["a", "b"]
    for beat in range(2, 12):
        now += STALE_S / 8
        board.put(claim("a", beat=beat))
        board.read()
    assert [one.key for one in board.read()] == ["a"], "b has not moved for longer than STALE_S"
    now += 4 * STALE_S
    board.put(claim("a", beat=12))
    assert [one.key for one in board.read()] == ["a"] and list(shelf) == [f"{PREFIX}a"], "and is cleared away"
    board.remove("a")
    assert board.read() == []


def test_what_another_version_wrote_says_nothing() -> None:
    shelf = Shelf({f"{PREFIX}x": b"not json", f"{PREFIX}y": b'{"key": "y"}', f"{PREFIX}z": b"[1]"})
    assert Board(shelf).read() == []
    assert len(shelf) == 3, "it may be alive"


def test_who_looks_once_waits_until_the_living_have_moved() -> None:
    now, shelf = 0.0, Shelf()
    board = Board(shelf, lambda: now)
    board.put(claim("dead", beat=7))

    def wait(seconds: float) -> None:
        nonlocal now
        now += seconds
        board.put(claim("alive", beat=int(now)))

    wait(1)
    assert [one.key for one in board.living(wait)] == ["alive"]
    assert now == pytest.approx(STALE_S, abs=2)

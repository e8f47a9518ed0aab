"""Before a search with `--gpus-per-trial auto`: Ray tasks try each class of configurations on each kind of card."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sctune.config import TrialConfig
from sctune.errors import ClusterError
from sctune.search.cluster.connection import Resources, nodes_for
from sctune.search.plan.dearest import epoch_cost
from sctune.search.run.card_probe import TOO_SMALL, asked_of, look, try_class
from sctune.search.run.packing import Cards, MemoryClass
from sctune.search.space.definition import Space
from sctune.search.study.manifest import CardNeed
from sctune.trial.remote import FAILED

MOST_CLASSES = 12
"""Classes that are tried, those with the longest epochs first; what they do not cover, its first trial measures."""

NEAR = 1.5
"""A class goes by the measure of a larger one whose steps see up to so many times its pixels."""

LOOK_S = 120.0
"""Seconds in which a node must say which card it has; another search may hold it."""

TRY_S = 600.0
"""Seconds for all classes on all kinds of card together."""


@dataclass(frozen=True)
class Workers:
    """How a worker answers; tests put cards of their own in."""

    look: Callable[[], dict[str, Any]] = look
    try_class: Callable[[Mapping[str, Any]], dict[str, Any]] = try_class


IN_RAY = Workers()


@dataclass(frozen=True)
class Measured:
    """needs: known and new ones; cards: of the nodes that answered; lines: about what was not measured."""

    needs: tuple[CardNeed, ...]
    cards: Cards
    lines: tuple[str, ...] = ()


@dataclass(frozen=True)
class Trials:
    """What is to be tried. tasks: that a trial trains at a time; images: of the largest; objective: its name."""

    space: Space
    tasks: int
    images: int
    objective: str


def measure(
    trials: Trials, resources: Resources, known: Sequence[CardNeed] = (), workers: Workers = IN_RAY
) -> Measured:
    """Look at the cards of all nodes, and try on each kind what is not known of it yet; call it when connected.

    known: needs that the study has already. A class that could not be tried is told, and has no need.
    """
    cards, lines = _cards(resources, workers)
    classes = largest_points(trials.space)
    wanted = [
        (one, card)
        for card in sorted(set(cards.values()))
        for one in classes
        if not any(MemoryClass.of_need(need) == one and need.card == card[0] for need in known)
    ]
    found, problems = _tried(trials, resources, {key: classes[key[0]] for key in wanted}, cards, workers)
    return Measured((*known, *found), cards, (*lines, *problems))


def largest_points(space: Space) -> dict[MemoryClass, TrialConfig]:
    """Class -> the extreme point of it whose epoch takes longest; at most `MOST_CLASSES`, the longest epochs first.

    A class that is nearly as large as another one is left out: it goes by that one's measure.
    """
    found: dict[MemoryClass, tuple[tuple[Any, ...], TrialConfig]] = {}
    for point in space.probe_points():
        config = space.config(point)
        one, cost = MemoryClass.of(config), epoch_cost(config)
        if one not in found or cost > found[one][0]:
            found[one] = cost, config
    chosen: list[MemoryClass] = []
    for one in sorted(found, key=lambda one: found[one][0], reverse=True):
        if not any(other.covers(one) and other.pixels <= NEAR * one.pixels for other in chosen):
            chosen.append(one)
    return {one: found[one][1] for one in chosen[:MOST_CLASSES]}


def _cards(resources: Resources, workers: Workers) -> tuple[Cards, list[str]]:
    nodes = sorted(nodes_for(resources.cpus, 1.0) - set(resources.left_out))
    answers, late = _run({node: (node, workers.look, ()) for node in nodes}, resources.cpus, LOOK_S)
    lines = [
        f"node {node[:8]}: no GPU was free within {LOOK_S:.0f} s; its cards are taken to be like others"
        for node in late
    ]
    cards: dict[str, tuple[str, int]] = {}
    for node, answer in answers.items():
        if FAILED in answer:
            lines.append(f"node {node[:8]}: its cards are unknown: {answer[FAILED]['message']}")
        else:
            cards[node] = f"{answer['name']}, {answer['total'] / 2**30:.0f} GiB", int(answer["total"])
    return _alike(cards), lines


def _alike(cards: Mapping[str, tuple[str, int]]) -> Cards:
    """Each kind with the least memory that any of it told: cards of one name may differ by a few pages."""
    least: dict[str, int] = {}
    for name, total in cards.values():
        least[name] = min(total, least.get(name, total))
    return {node: (name, least[name]) for node, (name, _) in cards.items()}


Key = tuple[MemoryClass, tuple[str, int]]


def _tried(
    trials: Trials, resources: Resources, wanted: Mapping[Key, TrialConfig], cards: Cards, workers: Workers
) -> tuple[list[CardNeed], list[str]]:
    threads = max(1, round(resources.cpus))
    nodes = {card: sorted(node for node, own in cards.items() if own == card) for card in set(cards.values())}
    tasks: dict[Key, Task] = {}
    for place, ((one, card), config) in enumerate(wanted.items()):
        asked = asked_of(config, trials.tasks, trials.images, trials.objective, threads)
        tasks[one, card] = nodes[card][place % len(nodes[card])], workers.try_class, (asked,)
    answers, late = _run(tasks, resources.cpus, TRY_S)
    needs, lines = [], [f"{_where(key)}: not tried within {TRY_S:.0f} s{_UNKNOWN}" for key in late]
    for key, answer in answers.items():
        if FAILED in answer:
            lines.append(f"{_where(key)}: could not be tried: {answer[FAILED]['message']}{_UNKNOWN}")
        else:
            needs.append(_need(key, answer))
    return needs, lines


_UNKNOWN = "; its first trial gets a whole GPU and measures it"


def _where(key: Key) -> str:
    return f"{key[0].text} on {key[1][0]}"


def _need(key: Key, answer: Mapping[str, Any]) -> CardNeed:
    one, (card, total) = key
    if answer.get(TOO_SMALL):
        return CardNeed(**asdict(one), card=card, card_bytes=total)
    return CardNeed(
        **asdict(one),
        card=card,
        card_bytes=total,
        peak_bytes=int(answer["peak"]),
        context_bytes=int(answer["context"]),
        step_seconds=float(answer["step"]),
        epoch_seconds=float(answer["epoch"]),
    )


Task = tuple[str, Callable[..., dict[str, Any]], tuple[Any, ...]]
"""Node, function, and its arguments."""


def _run(tasks: Mapping[Any, Task], cpus: float, limit_s: float) -> tuple[dict[Any, dict[str, Any]], list[Any]]:
    """Answers by key, of tasks that each have a whole GPU of their node; keys of those that were not done in time.

    A lost worker is an answer too (`FAILED`).
    """
    import ray
    from ray.exceptions import RayError

    running = {}
    for key, (node, function, arguments) in tasks.items():
        where = {"ray.io/node-id": node}
        # a process of its own for each: what one leaves on the card would count for the next
        remote = ray.remote(num_cpus=cpus, num_gpus=1, max_retries=0, max_calls=1, label_selector=where)(function)
        running[remote.remote(*arguments)] = key
    end = time.monotonic() + limit_s
    waiting, found = list(running), {}
    while waiting and time.monotonic() < end:
        ended, waiting = ray.wait(waiting, timeout=max(0.0, end - time.monotonic()))
        for reference in ended:
            try:
                found[running[reference]] = ray.get(reference)
            except RayError as problem:
                line = next(iter(str(problem).strip().splitlines()), "its worker was lost")
                found[running[reference]] = {FAILED: {"kind": type(problem).__name__, "message": line[:300]}}
    for reference in waiting:
        ray.cancel(reference, force=True)
    return {key: found[key] for key in tasks if key in found}, [running[reference] for reference in waiting]


def check_auto(config: TrialConfig, gpus: float) -> None:
    """Raises ClusterError where nothing can be measured: no GPU on any node, or trials that are told to use none."""
    if config.runtime.device == "cpu":
        raise ClusterError("--gpus-per-trial auto: trials with runtime.device=cpu use no GPU; leave one of the two out")
    if not gpus:
        raise ClusterError(
            "--gpus-per-trial auto: no node has a GPU that Ray knows of; leave it out, or start Ray with --num-gpus"
        )

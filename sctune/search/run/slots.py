"""How many trials of a launch may run at a time: what a cluster holds now, and what others on it leave to this one."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from types import TracebackType
from typing import Protocol

from sctune.search.cluster.board import BEAT_S, Board
from sctune.search.cluster.shares import MANY, Claim, shares, slots

_log = logging.getLogger(__name__)

PATIENCE_S = 120.0
"""Seconds that a launch may have more than its share while others wait, before its trials give way at an epoch."""

Nodes = Sequence[Mapping[str, float]]


class Slots(Protocol):
    """Asked before each start, and after each epoch.

    held: whether a start was refused when last asked, so that an idle worker is in the way of others. most: never more
    trials at a time than so many; None: than were planned. A context: of the launch.
    """

    held: bool
    most: int | None

    def __enter__(self) -> object: ...

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def room(self, live: int, running: int, startable: int) -> bool:
        """Whether one more may be started. live: trials handed to Ray; running: those of them with a worker; startable:
        how many more there are.
        """

    def gives_way(self) -> bool:
        """Whether a trial should end at its epoch, to go on when it is this launch's turn again."""


class _Free:
    held = False
    most: int | None = None

    def __enter__(self) -> object:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def room(self, live: int, running: int, startable: int) -> bool:
        return True

    def gives_way(self) -> bool:
        return False


FREE = _Free()
"""As many as Ray takes."""


class ClusterSlots:
    """Of a launch on a cluster. As a context it looks every BEAT_S seconds in its own thread, and tells the others.

    claim: of this launch, as it begins; its weight says whether it shares. nodes: resources of those that can take
    trials now. asked: `--max-concurrent`, None: all that fit. at_start: trials at a time when the launch began.
    say: prints one line for people, from any thread. on_change: told the number whenever it is another one.
    """

    def __init__(
        self,
        board: Board,
        claim: Claim,
        nodes: Callable[[], Nodes],
        asked: int | None,
        at_start: int,
        say: Callable[[str], None],
        on_change: Callable[[int], None] = lambda _number: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._board, self._claim, self._nodes = board, claim, nodes
        self._asked, self._at_start = asked, at_start
        self._say, self._on_change, self._clock = say, on_change, clock
        self._state = (0, 0, 0)
        self._held = at_start
        self._looked: float | None = None
        self._over: float | None = None
        self._others: list[Claim] = []
        self._ended = threading.Event()
        self._away = False
        self.allowed = at_start
        self.held = False
        self.most: int | None = asked or MANY

    def __enter__(self) -> ClusterSlots:
        self._look_if_it_answers()
        threading.Thread(target=self._watch, daemon=True, name="sctune-slots").start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        with suppress(Exception):  # a cluster that is away forgets it by itself
            self._board.remove(self._claim.key)

    def room(self, live: int, running: int, startable: int) -> bool:
        """See `Slots`."""
        self._state = (live, running, startable)
        self.held = startable > 0 and live >= self.allowed
        return live < self.allowed

    def gives_way(self) -> bool:
        """See `Slots`. Once per trial that is too many, and only while somebody waits for it."""
        live, running, startable = self._state
        if self._over is None or self._clock() - self._over < PATIENCE_S or live <= self.allowed:
            return False
        # until the controller tells the next number
        self._state = (live - 1, running - 1, startable + 1)
        return True

    def look(self) -> None:
        """See what the cluster holds and who else is there, and tell the others of this launch."""
        nodes, others = self._nodes(), self._read()
        self._serve(nodes, others)
        live, running, startable = self._state
        most = self._asked or MANY
        wanted = min(live + startable, most)
        self._claim = replace(self._claim, live=live, running=running, wanted=wanted, beat=self._claim.beat + 1)
        self._board.put(self._claim)
        # whoever asks wants one more, whatever was guessed
        mine = replace(self._claim, wanted=max(1, most))
        held = slots(nodes, mine.cpus, mine.gpus)
        share = shares(nodes, [mine, *others])[mine.key] if self._claim.weight and others else None
        self._tell(held, others, share)
        self._allow(min(share, most) if share is not None else self._asked or self._following(held))
        self._note_waiting(others, share)

    def _following(self, held: int) -> int:
        # one waits in Ray's queue where there were more: an autoscaler sees it there
        return held if held >= self._at_start else min(self._at_start, held + 1)

    def _read(self) -> list[Claim]:
        return [claim for claim in self._board.read() if claim.key != self._claim.key]

    def _serve(self, nodes: Nodes, others: Sequence[Claim]) -> None:
        """Count what this launch has had; one that had nothing to start meanwhile is owed nothing for it."""
        now, claim = self._clock(), self._claim
        theirs = [other.served for other in others]
        seconds = 0.0 if self._looked is None else now - self._looked
        _, running, startable = self._state
        served = claim.served + seconds * running * claim.part(nodes) / (claim.weight or 1.0)
        if theirs and (self._looked is None or not startable):
            served = max(served, min(theirs))
        self._claim, self._looked = replace(claim, served=served), now

    def _note_waiting(self, others: Sequence[Claim], share: int | None) -> None:
        """Since when this launch has too many while another one has fewer than it wants."""
        waits = any(other.running < other.wanted for other in others)
        if share is None or not waits or self._state[1] <= self.allowed:
            self._over = None
        elif self._over is None:
            self._over = self._clock()

    def _tell(self, held: int, others: Sequence[Claim], share: int | None) -> None:
        if held != self._held:
            self._say(f"the cluster has room for {held} trial(s) of this search now, {self._held} before")
            self._held = held
        names = {claim.key for claim in others}
        if names == {claim.key for claim in self._others}:
            return
        listed = ", ".join(
            f"{claim.study} of {claim.owner} ({f'--share {claim.weight:g}' if claim.weight else 'without --share'})"
            for claim in others
        )
        if not others:
            self._say("no other search is on the cluster any more")
        elif share is not None:
            self._say(f"the cluster is shared with {listed}")
        else:
            self._say(f"on the cluster is also {listed}; without --share this search takes what Ray gives it")
        self._others = list(others)

    def _allow(self, number: int) -> None:
        if number != self.allowed:
            self.allowed = number
            self._on_change(number)

    def _watch(self) -> None:
        while not self._ended.wait(BEAT_S):
            self._look_if_it_answers()

    def _look_if_it_answers(self) -> None:
        try:
            self.look()
            self._away = False
        except Exception as problem:  # the cluster is away for a while: what was seen last holds
            if not self._away:
                _log.info("the cluster does not say what it holds: %s", " ".join(str(problem).split())[:200])
            self._away = True

"""How a node asks its driver for something, and the driver answers: keys in the key-value store of the Ray cluster.

Each request has a name and a turn: who got something broken asks again with the next turn.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from sctune.errors import PlaceError, StorageError
from sctune.trial.ray_private import key_value, keys_with, remove_key, set_key_value

POLL_S = 0.5
ERROR, KIND = "error", "kind"
AWAY = "StorageError"


@dataclass(frozen=True)
class Request:
    """name: of what is asked for, the same on every node; wanted: what the driver must know of it, as JSON values."""

    name: str
    turn: int
    wanted: Mapping[str, Any]


def ask(key: str, request: Request, pause: Callable[[], None]) -> dict[str, Any]:
    """The driver's answer; pause: called while it is waited for, and may raise. key: the launch's own.

    Raises PlaceError or StorageError where the driver says that it cannot be had.
    """
    suffix = f"{request.name}:{request.turn}"
    while True:
        found = key_value(f"{key}:answer:{suffix}")
        if found is not None:
            break
        if key_value(f"{key}:ask:{suffix}") is None:
            set_key_value(f"{key}:ask:{suffix}", json.dumps(dict(request.wanted)).encode())
        pause()
        time.sleep(POLL_S)
    answer: dict[str, Any] = json.loads(found)
    if ERROR in answer:
        kind = StorageError if answer[KIND] == AWAY else PlaceError
        raise kind(str(answer[ERROR]))
    return answer


def asked(key: str) -> list[Request]:
    """What nodes have asked for and nobody has answered."""
    found = []
    answered = {name.rpartition(":answer:")[2] for name in keys_with(f"{key}:answer:")}
    for name in keys_with(f"{key}:ask:"):
        suffix = name.rpartition(":ask:")[2]
        content = None if suffix in answered else key_value(name)
        if content is not None:
            what, _, turn = suffix.rpartition(":")
            found.append(Request(what, int(turn), json.loads(content)))
    return found


def answer(key: str, request: Request, content: Mapping[str, Any]) -> None:
    set_key_value(f"{key}:answer:{request.name}:{request.turn}", json.dumps(dict(content)).encode())


def refuse(key: str, request: Request, problem: Exception) -> None:
    """Tell those that wait; who asks later is heard again once the answer is forgotten."""
    kind = AWAY if isinstance(problem, StorageError) else type(problem).__name__
    answer(key, request, {ERROR: " ".join(str(problem).split())[:500], KIND: kind})


def forget(key: str, name: str, turn: int) -> None:
    """Remove a request and its answer."""
    for part in ("ask", "answer"):
        remove_key(f"{key}:{part}:{name}:{turn}")


def forget_all(key: str) -> None:
    """Remove what a launch leaves."""
    for part in ("ask", "answer"):
        for name in keys_with(f"{key}:{part}:"):
            remove_key(name)

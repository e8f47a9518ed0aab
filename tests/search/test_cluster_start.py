"""What Ray raises when it does not start is one line with a way out."""

from __future__ import annotations

from typing import Any

import pytest
import ray

from sctune.errors import ClusterError
from sctune.search.cluster import connect

# as ray/_private/node.py raises it, with no class of its own
TIMED_OUT = Exception("The current node timed out during startup. This could happen because some of the raylet failed.")


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        (None, "cannot start Ray on this machine: The current node timed out .*; run the same command again"),
        ("auto", "cannot connect to Ray at auto: The current node timed out .*; start it with `ray start --head`"),
    ],
)
def test_a_start_that_takes_too_long(monkeypatch: pytest.MonkeyPatch, address: str | None, expected: str) -> None:
    def init(*_: Any, **__: Any) -> None:
        raise TIMED_OUT

    monkeypatch.setenv("RAY_AUTH_TOKEN", "x")
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(ClusterError, match=expected) as raised:
        connect(address)
    assert "\n" not in str(raised.value)


def test_an_interrupt_stays_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def init(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setenv("RAY_AUTH_TOKEN", "x")
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(KeyboardInterrupt):
        connect(None)

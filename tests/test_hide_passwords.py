"""Passwords leave the command line; tests/e2e/test_postgres.py sees the real command restart itself without them."""

from __future__ import annotations

import os
import sys

import pytest

from sctune.cli.hide import hide_passwords, without_passwords
from sctune.errors import ConfigError


def test_urls_lose_their_passwords_and_the_environment_gets_them() -> None:
    words = ["search", "--storage", "postgresql://u:p@h/d", "--tracking-uri=http://me:pw@host:5000", "--name", "a:b@c"]
    kept, secrets = without_passwords(words)
    assert kept[1:4] == ["--storage", "postgresql://u@h/d", "--tracking-uri=http://host:5000"]
    assert kept[4:] == words[4:]
    assert secrets == {"SCTUNE_STORAGE": "postgresql://u:p@h/d", "SCTUNE_TRACKING_URI": "http://me:pw@host:5000"}


@pytest.mark.parametrize("url", ["postgresql://u@h/d", "sqlite:////a/b.db", "relative.db"])
def test_nothing_to_hide(url: str) -> None:
    assert without_passwords(["search", "--storage", url]) == (["search", "--storage", url], {})


def test_a_password_that_would_be_cut_is_refused() -> None:
    with pytest.raises(ConfigError, match="%40"):
        without_passwords(["search", "--storage", "postgresql://u:p@q@h/d"])


def test_a_process_that_was_started_otherwise_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that calls main() with words of its own must not be replaced."""
    replaced: list[object] = []
    monkeypatch.setattr(os, "execve", lambda *words: replaced.append(words))
    words = ["search", "--storage", "postgresql://u:p@h/d"]
    monkeypatch.setattr(sys, "argv", ["sctune", *words])
    hide_passwords()
    assert replaced == []
    # the test could fail: started so, it is
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "sctune", *words])
    hide_passwords()
    assert len(replaced) == 1

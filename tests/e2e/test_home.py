"""Where HOME takes no file, where the folder for temporary files is too long, and a name that looks like an option."""

from __future__ import annotations

import shutil
import stat
from typing import Any

import pytest


def test_a_search_with_a_home_that_takes_nothing(
    sctune: Any, smoke: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RAY_AUTH_TOKEN", "MPLCONFIGDIR", "TORCH_HOME", "XDG_CONFIG_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delitem(sctune.env, name, raising=False)
    monkeypatch.setitem(sctune.env, "HOME", "/dev/null/home")
    done = sctune(*smoke, "--name", "homeless", "--trials", 1, "--max-concurrent", 1)
    assert "best model: models:/homeless@candidate" in done.stdout
    assert "Matplotlib" not in done.stderr and "Traceback" not in done.stderr
    token = sctune.home / "ray_auth_token"
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    token.unlink()
    shutil.rmtree(sctune.home / "matplotlib", ignore_errors=True)

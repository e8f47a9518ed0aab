"""The objective of docs/extending.md, from a package that is only on the path: searched by, shown, and missed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from tests.plugins import documented, install_objective

NAME = "outside"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_search_by_another_packages_objective(
    sctune: Any, smoke: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_objective(tmp_path, "misses", "Misses", documented("An objective"))
    before = os.environ.get("PYTHONPATH", "")
    few = ["--trials", "2", "--max-concurrent", "1", "--set", "budget.epochs=2", "--set", "budget.iterations=1"]
    with monkeypatch.context() as patch:
        patch.setitem(sctune.env, "PYTHONPATH", os.pathsep.join(filter(None, [str(tmp_path), before])))
        document = sctune.json(*smoke, "--name", NAME, "--objective", "misses", *few)
        full = [trial["value"] for trial in document["trials"] if trial["state"] == "COMPLETE"]
        assert document["objective"] == "misses" and document["best_value"] == min(full)
        text = sctune("status", NAME).stdout
        assert f"selection_misses {min(full):.4f} +- " in text
        assert "record and MLflow agree" in sctune("status", NAME, "--check").stdout
    # where the package is missing the study says what it lacks
    told = sctune("status", NAME, code=2).stderr
    assert told.startswith("sctune: unknown objective 'misses'") and "install the package that brings it" in told

"""optuna-dashboard opens the record of a study and shows the trials that `sctune status` shows."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

import pytest
from optuna.trial import TrialState
from typer.testing import CliRunner

from sctune.cli import app
from sctune.config import TrialConfig
from tests.pages.studies import drawn_scores, make_study, record_trial

COMMAND = Path(sys.executable).with_name("optuna-dashboard")
STATES = {"Complete": "COMPLETE", "Pruned": "PRUNED", "Fail": "FAIL", "Running": "RUNNING"}
SPACE = {
    "name": "kinds",
    "parameters": {
        "augment.threshold": {"type": "float", "low": 0.1, "high": 0.9},
        "augment.grid_size": {"type": "ordinal", "choices": [4, 8, 16]},
        "model.patch_count": {"type": "int", "low": 2, "high": 4},
        "augment.threshold_mode": {"type": "categorical", "choices": ["value", "area"]},
    },
}


@contextmanager
def dashboard(record: Path) -> Iterator[str]:
    """The real process on the loopback address, on a record."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = [str(COMMAND), "--host", "127.0.0.1", "--port", str(port), f"sqlite:///{record}"]
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()


def asked(url: str) -> Any:
    """The answer as JSON, once the server is up."""
    end = time.monotonic() + 60
    while True:
        try:
            with urlopen(url, timeout=10) as answer:
                return json.loads(answer.read())
        except (URLError, ConnectionError):
            assert time.monotonic() < end, f"{url} did not answer"
            time.sleep(0.2)


@pytest.mark.skipif(shutil.which(str(COMMAND)) is None, reason="no optuna-dashboard")
def test_the_dashboard_shows_what_status_shows(tmp_path: Path, tiny: TrialConfig) -> None:
    study = make_study(tmp_path, tiny.override({"budget.epochs": 4}), space=SPACE)
    states = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL, TrialState.COMPLETE, TrialState.RUNNING)
    for number, state in enumerate(states):
        params = {
            "augment.threshold": 0.2 + number / 10,
            "augment.grid_size": (4, 8, 16)[number % 3],
            "model.patch_count": 2 + number % 3,
            "augment.threshold_mode": ("value", "area")[number % 2],
        }
        failure = {"kind": "DataError", "message": "m", "traceback": "t"} if state is TrialState.FAIL else None
        record_trial(study, number, state, params, 4 - number % 2, drawn_scores(study, number), failure)
    words = ["status", study.name, "--study-root", str(tmp_path), "--json"]
    told = json.loads(CliRunner().invoke(app, words, catch_exceptions=False).stdout)["trials"]
    assert len(told) == len(states)

    with dashboard(study.folder / "record.db") as url:
        (summary,) = asked(f"{url}/api/studies")["study_summaries"]
        assert (summary["study_name"], summary["directions"]) == (study.name, ["maximize"])
        shown = asked(f"{url}/api/studies/{summary['study_id']}?after=0")["trials"]
    assert [trial["number"] for trial in shown] == [trial["number"] for trial in told]
    for one, other in zip(shown, told, strict=True):
        assert STATES[one["state"]] == other["state"]
        ended = other["state"] in ("COMPLETE", "PRUNED")
        assert (one.get("values") or [None])[0] == (other["value"] if ended else None)
        curve = {str(point["step"]): point["value"] for point in one["intermediate_values"]}
        assert curve == other["values"]
        space = study.manifest.build_space().by_name
        params = {
            row["name"]: space[row["name"]].decode(
                space[row["name"]].distribution().to_external_repr(row["param_internal_value"])
            )
            for row in one["params"]
        }
        assert params == other["params"]
        attrs = {row["key"]: json.loads(row["value"]) for row in one["user_attrs"] if row["key"] == "params"}
        assert attrs == {"params": other["params"]}

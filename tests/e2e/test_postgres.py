"""A search on a real PostgreSQL that is restarted, killed and goes on on another machine; its secrets are nowhere."""

from __future__ import annotations

import json
import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import FrozenTrial, TrialState

from sctune.search.study.database import storage_url
from sctune.search.study.record import Record

NAME = "moved"
EPOCHS = 4
AWS_KEY = "canary-aws-51c9"
SPACE = """
parameters: {loss.margin: {values: [1.0e+38, 5.0, 6.0, 7.0]}}
set: {optim.lr: 1.0, optim.clip_norm: 1.0e+30, budget.iterations: 80}
"""


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """Ray puts sockets below it, so pytest's own are too long."""
    folder = Path(tempfile.mkdtemp(prefix="sct", dir="/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def record(postgres: Any) -> list[FrozenTrial]:
    stored = Record(storage_url(postgres.url()), NAME)
    try:
        return stored.load()
    finally:
        stored.close()


def epochs_told(postgres: Any) -> int:
    """Of trials that are still running; asked in one cheap query, for it is asked often."""
    from psycopg.errors import UndefinedTable

    try:
        ((count,),) = postgres.query(
            "SELECT count(*) FROM studies s JOIN trials t USING (study_id) JOIN trial_intermediate_values v "
            f"USING (trial_id) WHERE s.study_name = '{NAME}' AND t.state = 'RUNNING'"
        )
    except UndefinedTable:
        return 0
    return int(count)


def found_in_files(secret: str, folders: list[Path]) -> list[Path]:
    files = (path for folder in folders for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    return [path for path in files if secret.encode() in path.read_bytes()]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_search_moves_to_another_machine_and_leaves_no_secret(
    sctune: Any, smoke: list[str], postgres: Any, short_folder: Path, tmp_path: Path, wait_until: Callable[..., None]
) -> None:
    postgres.create("runs")
    shared, ray = tmp_path / "shared", short_folder / "ray"
    machines = [type(sctune)(tmp_path / name) for name in ("here", "there")]
    for machine in machines:
        machine.home.mkdir()
        machine.env |= {"RAY_TMPDIR": str(ray), "MLFLOW_DEFAULT_ARTIFACT_ROOT": str(shared / "artifacts")}
        machine.env |= {"AWS_ACCESS_KEY_ID": "canary-id", "AWS_SECRET_ACCESS_KEY": AWS_KEY}
    here, there = machines
    space = tmp_path / "space.yaml"
    space.write_text(SPACE)
    places = ["--storage", postgres.url(), "--tracking-uri", postgres.url("runs"), "--storage-path", shared]
    words = [*smoke, "--name", NAME, "--space", space, "--checkpoint-interval", "0", "--time-budget", "1h"]

    output = []
    with here.started(*words, *places) as process:
        wait_until(lambda: process.poll() is not None or epochs_told(postgres) > 0, 200, "an epoch")
        assert process.poll() is None, process.communicate()[1]
        assert postgres.password not in Path(f"/proc/{process.pid}/cmdline").read_text()
        postgres.stop()
        postgres.start()
        refused = there("resume", NAME, "--storage", postgres.url(), code=2)
        assert f"is being run by process {process.pid} on" in refused.stderr
        before = epochs_told(postgres)
        wait_until(lambda: epochs_told(postgres) > before, 120, "an epoch after the restart")
        os.killpg(process.pid, signal.SIGKILL)
        output += list(process.communicate())
    assert "could be read by every user" in output[1]

    killed = {trial.number: dict(trial.intermediate_values) for trial in record(postgres)}
    listed = json.loads(there("list", "--storage", postgres.url(), "--json").stdout)
    assert [study["study"] for study in listed["studies"]] == [NAME]
    nowhere = there("resume", NAME, code=2).stderr
    assert "--storage" in nowhere

    there.env |= {"SCTUNE_STORAGE": postgres.url(), "SCTUNE_TRACKING_URI": postgres.url("runs")}
    done = there("resume", NAME, "--json", timeout=300)
    output += [done.stdout, done.stderr, refused.stdout, refused.stderr]
    document = json.loads(done.stdout)
    assert [trial["state"] for trial in document["trials"]] == ["FAIL", *["COMPLETE"] * 3]
    for trial in record(postgres):
        if trial.state == TrialState.COMPLETE:
            assert sorted(trial.intermediate_values) == list(range(1, EPOCHS + 1))
        assert trial.intermediate_values.items() >= killed.get(trial.number, {}).items()
    for machine in machines:
        manifest = json.loads((machine.study(NAME) / "study.json").read_text())
        assert (manifest["time_budget_s"], manifest["storage_path"]) == (3600, str(shared / NAME))
    first, second = manifest["launches"]
    assert (first["reason"], second["reason"]) == (None, "done")
    assert first["seen"] > first["started"]
    check_runs(postgres, document["parent_run_id"])
    # the first machine sees what the second did
    here.env |= {"SCTUNE_STORAGE": postgres.url()}
    assert len(here.json("status", NAME)["trials"]) == 4

    folders = [here.home, there.home, shared, ray]
    assert found_in_files("launch", folders), "nothing was searched"
    for secret in (postgres.password, AWS_KEY):
        assert not found_in_files(secret, folders)
        assert not [text for text in output if secret in text]
        assert not any(secret in postgres.dump(database) for database in ("studies", "runs"))


def check_runs(postgres: Any, parent: str) -> None:
    """One run of the study and one of each trial, with each epoch once."""
    rows = postgres.query("SELECT value, run_uuid FROM tags WHERE key = 'sctune.trial'", "runs")
    assert sorted(str(value) for value, _ in rows) == ["0", "1", "2", "3"]
    assert len(postgres.query("SELECT 1 FROM runs", "runs")) == 5
    assert postgres.query(f"SELECT status FROM runs WHERE run_uuid = '{parent}'", "runs") == [("FINISHED",)]
    points = postgres.query("SELECT count(*) FROM metrics WHERE key = 'selection_auroc' GROUP BY run_uuid", "runs")
    assert set(points) <= {(EPOCHS,), (1,)}

"""Stopping and deleting a study from outside, with real processes that hold it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState
from typer.testing import CliRunner

from sctune.cli import app
from sctune.errors import StudyError, TrackingError
from sctune.manage.delete import deletion
from sctune.manage.logs import follow, log_path
from sctune.report import OBJECTIVE, EpochReport
from sctune.search.study.database import storage_url
from sctune.search.study.driver import STOP, running_driver, stop, study_launches
from sctune.search.study.process import driver_facts, is_running_here
from sctune.search.study.record import Record
from sctune.search.study.study import Study
from sctune.trial.checkpoint import TrialStore
from tests.builders import make_manifest, make_space

DRIVER = """
import signal, socket, sys, time
from pathlib import Path
if len(sys.argv) > 2:
    socket.gethostname = lambda: sys.argv[2]
from sctune.search.study.database import storage_url
from sctune.search.study.driver import stop_requests
from sctune.search.study.study import Study
study = Study.open(Path(sys.argv[1]).parent, Path(sys.argv[1]).name)
def ended(*_):
    raise SystemExit(3)
with study.lock():
    signal.signal(signal.SIGTERM, ended)
    study.add_launch("2026-01-01T00:00:00+00:00")
    with stop_requests(study):
        print("holds it", flush=True)
        try:
            time.sleep(100)
        finally:
            study.end_launch("2026-01-01T00:00:09+00:00", "stopped")
"""
"""Holds a study until it is asked to stop; a second word is the host that it says it runs on."""


@pytest.fixture
def make_study(tmp_path: Path) -> Callable[..., Study]:
    def make(name: str = "s", **changes: Any) -> Study:
        space = make_space(tmp_path, parameters={"augment.threshold": {"type": "float", "low": 0.1, "high": 0.9}})
        places = {
            "storage_path": str(tmp_path / "root" / name),
            "tracking_uri": f"sqlite:///{tmp_path / 'mlflow.db'}",
        }
        return Study.create(tmp_path / "root", make_manifest(space, name=name, **places | changes))

    return make


@contextmanager
def held(study: Study, *host: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", DRIVER, str(study.folder), *host]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "holds it\n"
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("host", [(), ("elsewhere",)], ids=["by signal", "by request"])
def test_a_running_driver_is_stopped_and_waited_for(host: tuple[str, ...], make_study: Callable[..., Study]) -> None:
    study = make_study()
    with held(study, *host) as process:
        running = study_launches(study.folder.parent, study.name)
        assert running.driver is not None
        assert (running.driver.pid, running.driver.here) == (process.pid, not host)
        assert "running: launch 1" in running.lines()[0]
        driver, end = stop(study)
        assert (driver.pid, end) == (process.pid, "stopped")
        assert process.wait(30) == 3
    assert not (study.folder / STOP).exists()
    with pytest.raises(StudyError, match="'s' is not running"):
        stop(study)


def test_a_request_reaches_a_driver_through_the_record(
    make_study: Callable[..., Study], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where the folder of the study is not shared."""
    study = make_study(storage_url=f"sqlite:///{tmp_path / 'shared.db'}")
    with held(study, "elsewhere") as process:
        # this side's file never arrives
        monkeypatch.setattr(Study, "is_here", False)
        assert stop(study)[0].pid == process.pid
        assert process.wait(30) == 3
    # what was asked of one driver is not meant for the next
    with held(study, "elsewhere") as process, pytest.raises(subprocess.TimeoutExpired):
        process.wait(5)


def test_stop_and_delete_on_a_machine_that_shares_only_the_database(
    postgres: Any, make_study: Callable[..., Study], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SCTUNE_STORAGE", postgres.url())
    url = storage_url(postgres.url())
    study = make_study("distant", storage_url=url)
    here = tmp_path / "another root"
    with held(study, "elsewhere") as process:
        seen = study_launches(here, "distant")
        assert seen.driver is not None and (seen.driver.pid, seen.driver.host) == (process.pid, "elsewhere")
        refused = pytest.raises(StudyError, match=f"is being run by process {process.pid} on elsewhere")
        with refused, deletion(here, "distant", keep_runs=True):
            pass
        assert stop(Study.open(here, "distant")) == (seen.driver, "stopped")
        assert process.wait(30) == 3
    assert study_launches(here, "distant").driver is None
    make_study("near", storage_url=url).record.close()
    with deletion(here, "distant", keep_runs=True) as found:
        assert found.belongings.trials == 0
        found.run()
    assert not (here / "distant").exists()
    assert postgres.query("SELECT study_name FROM studies WHERE study_name IN ('distant', 'near')") == [("near",)]


def test_a_driver_that_does_not_end_is_told_of(make_study: Callable[..., Study]) -> None:
    study = make_study()
    with held(study) as process:
        os.kill(process.pid, signal.SIGSTOP)
        with pytest.raises(StudyError, match=f"process {process.pid} on .* has not ended within 1 s"):
            stop(study, 1)


def test_another_process_with_the_same_id_is_not_signalled(make_study: Callable[..., Study]) -> None:
    study = make_study()
    facts = driver_facts() | {"process_started": "1"}
    (study.folder / "driver.json").write_text(json.dumps(facts))
    assert not is_running_here(facts)
    assert is_running_here(driver_facts())
    # this very process would be the one that gets the signal
    with pytest.raises(StudyError, match="is not running"):
        stop(study)


def test_what_a_killed_driver_leaves_is_no_driver(make_study: Callable[..., Study]) -> None:
    study = make_study()
    with held(study) as process:
        process.kill()
        process.wait()
    assert study.driver() is not None
    assert running_driver(study) is None
    assert "killed" in study_launches(study.folder.parent, study.name).lines()[0]


def test_logs_are_followed_until_nobody_runs_the_study(make_study: Callable[..., Study]) -> None:
    study = make_study()
    (study.folder / "logs").mkdir()
    path = study.folder / "logs" / "trial-00002.log"
    path.write_text("first\n")
    with held(study) as process:
        lines = follow(study, log_path(study, 2))
        assert next(lines) == "first"
        with path.open("a") as stream:
            stream.write("second\nhalf")
        assert next(lines) == "second"
        process.kill()
        process.wait()
        assert list(lines) == ["half"]
    (study.folder / "logs" / "trial-00003.log").touch()
    with pytest.raises(StudyError, match="no log of trial 7; logs are there for trial 2 to 3"):
        log_path(study, 7)


def fill(study: Study) -> None:
    """Two trials in the record, a checkpoint, runs in MLflow."""
    import optuna

    from sctune.tracking.callback import StudyFacts, TrackingCallback
    from sctune.tracking.writer import Writer

    record = study.record
    for number in (0, 1):
        frozen = optuna.trial.create_trial(state=TrialState.RUNNING, user_attrs={"attempt": 1})
        frozen.number = number
        record.start(frozen)
        record.finish(number, TrialState.COMPLETE, 0.5, {})
    record.close()
    TrialStore(study.manifest.storage_path, 0).save(1, 1, {})
    writer = Writer(study.manifest.tracking_uri)
    facts = StudyFacts(study.manifest.study_id, study.name, {}, "0", None, {}, 0, ["t"])
    tracking = TrackingCallback(writer, facts)
    tracking.on_study_start()
    for number in (0, 1):
        tracking.on_start(number, {}, 1)
        tracking.on_report(number, EpochReport(1, 1, {OBJECTIVE: 0.5}), 0)
        tracking.on_end(number, "COMPLETE", 0.5, {})
    tracking.on_study_end("FINISHED", {})
    assert writer.drain(60) == 0
    writer.close()


def runs(study: Study) -> list[str]:
    from sctune.tracking.server import STUDY_TAG, find_experiment, mlflow_client

    uri = study.manifest.tracking_uri
    client = mlflow_client(uri)
    found = client.search_runs([find_experiment(client, uri)], f"tags.`{STUDY_TAG}` = '{study.manifest.study_id}'")
    return [run.info.run_id for run in found]


def test_everything_of_a_study_is_deleted_and_nothing_else(make_study: Callable[..., Study], tmp_path: Path) -> None:
    shared = {"storage_url": f"sqlite:///{tmp_path / 'shared.db'}"}
    studies = [make_study(name, storage_path=str(tmp_path / "far" / name), **shared) for name in ("s", "other")]
    for study in studies:
        fill(study)
    gone, other = studies
    models = register(gone)
    (tmp_path / "far" / "s" / "trials" / "notes.txt").write_text("made by hand")
    with deletion(tmp_path / "root", "s", keep_runs=False) as found:
        what = found.belongings
        assert (what.trials, len(what.runs or ()), what.versions) == (2, 2, ("2",))
        assert what.storage_bytes > 0 and what.folder_bytes > 0
        assert what.kept == ("model s version 1 is champion: it and its run are kept", "registered model s is kept")
        with pytest.raises(StudyError, match="is being run"), gone.lock():
            pass
        found.run()
    assert not gone.folder.exists()
    assert not (tmp_path / "far" / "s").exists()
    # the study's own run is the source of the kept version
    assert len(runs(gone)) == 1
    assert models() == ["1"]
    with pytest.raises(StudyError, match="holds no study"):
        Record(gone.record_url, "s")
    assert len(other.record.load()) == 2
    other.record.close()
    assert len(runs(other)) == 3
    assert TrialStore(other.manifest.storage_path, 0).names()


def register(study: Study) -> Callable[[], list[str]]:
    """Version 1 of the study's run is the champion, version 2 of a trial's the candidate; gives what is there."""
    from sctune.tracking.server import ROLE_TAG, mlflow_client

    client = mlflow_client(study.manifest.tracking_uri)
    of_study = [run for run in runs(study) if client.get_run(run).data.tags[ROLE_TAG] == "study"]
    of_trial = [run for run in runs(study) if run not in of_study]
    client.create_registered_model(study.name)
    for alias, run in (("champion", of_study[0]), ("candidate", of_trial[0])):
        version = client.create_model_version(study.name, "file:///nowhere", run_id=run)
        client.set_registered_model_alias(study.name, alias, version.version)
    return lambda: [str(found.version) for found in client.search_model_versions(f"name = '{study.name}'")]


def test_mlflow_away_leaves_everything_as_it_was(make_study: Callable[..., Study], tmp_path: Path) -> None:
    study = make_study(tracking_uri="http://127.0.0.1:1")
    TrialStore(study.manifest.storage_path, 0).save(1, 1, {})
    with pytest.raises(TrackingError, match=r"127\.0\.0\.1:1"), deletion(tmp_path / "root", "s", keep_runs=False):
        pass
    assert Study.open(tmp_path / "root", "s").record.load() == []
    assert TrialStore(study.manifest.storage_path, 0).names()
    words = ["delete", "s", "--keep-runs", "--study-root", str(tmp_path / "root"), "--json"]
    refused = CliRunner().invoke(app, words)
    assert "there is no terminal to ask; say --yes" in str(refused.exception)
    assert study.folder.exists()
    done = CliRunner().invoke(app, [*words, "--yes"])
    assert json.loads(done.stdout)["mlflow_runs"] is None
    assert not study.folder.exists()


@pytest.mark.parametrize("step", ["_delete_storage", "_empty_folder", "_delete_rows", "_delete_folder"])
def test_a_deletion_that_was_cut_off_is_repeated(
    step: str, make_study: Callable[..., Study], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sctune.manage import delete as operate_delete

    study = make_study(storage_path=str(tmp_path / "far" / "s"), storage_url=f"sqlite:///{tmp_path / 'shared.db'}")
    TrialStore(study.manifest.storage_path, 0).save(1, 1, {})

    def cut(_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(operate_delete, step, cut)
        with pytest.raises(KeyboardInterrupt), deletion(tmp_path / "root", "s", keep_runs=True) as found:
            found.run()
    done = CliRunner().invoke(app, ["delete", "s", "--keep-runs", "--yes", "--study-root", str(tmp_path / "root")])
    assert done.exit_code == 0, done.output
    assert list((tmp_path / "root").iterdir()) == []
    assert not (tmp_path / "far" / "s").exists()
    with pytest.raises(StudyError, match="holds no study"):
        Record(study.record_url, "s")


def test_a_running_study_is_not_deleted(make_study: Callable[..., Study], tmp_path: Path) -> None:
    study = make_study()
    with (
        held(study) as process,
        pytest.raises(StudyError, match=f"is being run by process {process.pid}"),
        deletion(tmp_path / "root", "s", keep_runs=True),
    ):
        pass
    assert study.folder.exists()


def test_a_name_that_leaves_the_study_root_is_refused(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    with pytest.raises(StudyError, match="study name"), deletion(tmp_path / "root", "../precious", keep_runs=True):
        pass

"""A study whose record lies in a shared database: two machines are two study roots, and the database is the truth."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from optuna.distributions import FloatDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from sctune.config import load_profile
from sctune.errors import StudyError
from sctune.files import whole_file
from sctune.report import OBJECTIVE, EpochReport
from sctune.search.plan.locations import check_seen, mark_storage, move, storage_uri
from sctune.search.space.definition import load_space
from sctune.search.study.lock import DatabaseLock
from sctune.search.study.manifest import DataSpec, SchedulerSpec
from sctune.search.study.study import Study, list_stored, local_manifests, write_json
from sctune.trial.building import package_versions
from tests.builders import make_manifest

Begin = Callable[..., Study]


@pytest.fixture
def begin(tmp_path: Path) -> Begin:
    """Makes a study in root `a`; keyword arguments are fields of its manifest."""

    def make(name: str, **changes: Any) -> Study:
        space = load_space("threshold_patch", load_profile("cpu"), {})
        fields: dict[str, Any] = {
            "name": name,
            "sampler": "tpe",
            "scheduler": SchedulerSpec(name="asha", grace=2, factor=2),
            "trials": 12,
            "data": DataSpec(name="elpv", digest="abc"),
            "storage_path": str(tmp_path / "shared" / name),
            "tracking_uri": "http://127.0.0.1:5000",
            "versions": package_versions(),
        }
        return Study.create(tmp_path / "a", make_manifest(space, **fields | changes))

    return make


@pytest.fixture
def url(postgres: Any) -> str:
    from sctune.search.study.database import storage_url

    return storage_url(postgres.url())


def test_the_database_is_the_truth_of_both_machines(begin: Begin, url: str, postgres: Any, tmp_path: Path) -> None:
    first = begin("both", storage_url=url)
    assert "canary" not in (first.folder / "study.json").read_text()
    second = Study.open(tmp_path / "b", "both", postgres.url())
    assert (second.manifest, second.is_here) == (first.manifest, False)
    assert not (tmp_path / "b").exists()
    with first.lock():
        first.with_more_trials(30 - first.manifest.trials)
        first.add_launch("2026-01-01T00:00:00+00:00")
        with pytest.raises(StudyError, match=f"being run by process {os.getpid()} on"), second.lock():
            pass
        assert not (tmp_path / "b" / "both").exists()
        first.end_launch("2026-01-01T00:01:00+00:00", "stopped")
    with second.lock():
        assert second.manifest.trials == 30
        second.add_launch("2026-01-02T00:00:00+00:00")
        second.end_launch("2026-01-02T00:00:30+00:00", "done")
    for root in ("a", "b"):
        again = Study.open(tmp_path / root, "both").manifest
        assert [launch.seconds for launch in again.launches] == [60, 30]
        assert again in local_manifests(tmp_path / root)
    assert again in list_stored(postgres.url())


def test_what_is_not_there_is_told(begin: Begin, url: str, tmp_path: Path) -> None:
    begin("there", storage_url=url)
    with pytest.raises(StudyError, match=r"no study 'their' .*did you mean 'there'"):
        Study.open(tmp_path / "b", "their", url)
    with pytest.raises(StudyError, match=r"no study 'there' .*--storage"):
        Study.open(tmp_path / "b", "there")
    begin("alone")
    with pytest.raises(StudyError, match="leave out --storage"):
        Study.open(tmp_path / "a", "alone", url)


def test_the_environment_names_the_database_too(
    begin: Begin, url: str, postgres: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = begin("by-variable", storage_url=url)
    monkeypatch.setenv("SCTUNE_STORAGE", postgres.url())
    assert Study.open(tmp_path / "b", "by-variable").manifest == first.manifest


def test_another_study_of_the_name_is_not_mistaken(begin: Begin, url: str) -> None:
    study = begin("twice", storage_url=url)
    tree = json.loads((study.folder / "study.json").read_text()) | {"study_id": "0" * 32}
    write_json(study.folder / "study.json", tree)
    with pytest.raises(StudyError, match="another study of the name 'twice'"):
        Study.open(study.folder.parent, "twice")


def test_checkpoints_that_are_not_seen_are_not_forgotten_silently(begin: Begin, url: str, tmp_path: Path) -> None:
    study = begin("far", storage_url=url, storage_path=str(tmp_path / "elsewhere" / "far"))
    with pytest.raises(StudyError, match=r"checkpoints of study far are in .*elsewhere.*--storage-path"):
        check_seen(study)
    with study.lock():
        move(study, str(tmp_path / "shared"), None)
    check_seen(study)
    assert Study.open(tmp_path / "a", "far").manifest.storage_path == str(tmp_path / "shared" / "far")
    stranger = begin("stranger", storage_url=url, storage_path=str(tmp_path / "shared" / "far"))
    with pytest.raises(StudyError, match="not seen from here"):
        check_seen(stranger)


def test_runs_that_are_not_seen_are_not_begun_anew_silently(begin: Begin, url: str, tmp_path: Path) -> None:
    study = begin("runs", storage_url=url, tracking_uri=f"sqlite:///{tmp_path}/gone/mlflow.db")
    mark_storage(study.manifest)
    with pytest.raises(StudyError, match=r"runs of study runs are in .*gone.*--tracking-uri"):
        check_seen(study)


LOSER = """
import signal, sys, time
from pathlib import Path
from sctune.search.study.study import Study
signal.signal(signal.SIGTERM, lambda *_: sys.exit(3))
study = Study.open(Path(sys.argv[1]), "fenced", sys.argv[2])
with study.lock():
    study.add_launch("2026-01-01T00:00:00+00:00")
    print("locked", flush=True)
    try:
        time.sleep(60)
    finally:
        study.end_launch("2026-01-01T01:00:00+00:00", "stopped")
"""


def test_a_driver_that_lost_the_study_stops_and_writes_no_more(begin: Begin, url: str, postgres: Any) -> None:
    study = begin("fenced", storage_url=url)
    command = [sys.executable, "-c", LOSER, str(study.folder.parent), postgres.url()]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "locked\n"
        lock = DatabaseLock(url, "fenced", study.manifest.study_id)
        postgres.query("SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory'")
        lock.acquire()
        _, err = process.communicate(timeout=30)
    assert process.returncode == 3
    assert f"process {os.getpid()} on" in err
    assert err.count("\n") == 1
    lock.release()
    (launch,) = Study.open(study.folder.parent, "fenced").manifest.launches
    assert launch.ended is None


def test_two_roots_over_one_sqlite_file(begin: Begin, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/shared.db"
    first = begin("file", storage_url=url)
    second = Study.open(tmp_path / "b", "file", url)
    with first.lock(), pytest.raises(StudyError, match=f"being run by process {os.getpid()}"), second.lock():
        pass
    with second.lock():
        assert second.is_here


def test_a_killed_launch_counts_up_to_its_last_sign_of_life(begin: Begin, tmp_path: Path) -> None:
    """The budget is remembered, and is spent by launches that never ended too."""
    study = begin("budget", time_budget_s=100.0)
    began = datetime(2026, 1, 1, tzinfo=UTC)
    tree = json.loads((study.folder / "study.json").read_text())
    tree["launches"] = [
        {"started": began.isoformat(), "ended": (began + timedelta(seconds=40)).isoformat(), "reason": "stopped"},
        {"started": began.isoformat(), "seen": (began + timedelta(seconds=70)).isoformat()},
        {"started": began.isoformat()},
    ]
    write_json(study.folder / "study.json", tree)
    study = Study.open(tmp_path / "a", "budget")
    assert [launch.seconds for launch in study.manifest.launches] == [40, 70, None]


def test_a_running_launch_gives_signs_of_life(begin: Begin, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("sctune.search.study.lock.CHECK_S", 0.05)
    monkeypatch.setattr("sctune.search.study.lock.BEAT_S", 0.05)
    study = begin("beats")
    with study.lock():
        study.add_launch("2026-01-01T00:00:00+00:00")
        for _ in range(200):
            (launch,) = Study.open(tmp_path / "a", "beats").manifest.launches
            if launch.seen != launch.started:
                break
            import time

            time.sleep(0.05)
    assert launch.ended is None
    assert launch.seconds is not None and launch.seconds > 0


@pytest.mark.parametrize(
    "uri", ["s3://key:secret@bucket/x", "s3://bucket/x?access_key=secret&region=eu", "s3://bucket/x?secret_key=secret"]
)
def test_keys_in_the_address_of_the_checkpoints_are_refused(uri: str, tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="AWS_PROFILE") as refused:
        storage_uri(uri, tmp_path / "study")
    assert "secret" not in str(refused.value)


def test_a_link_in_the_folder_leads_no_write_out_of_it(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("mine")
    (tmp_path / "study").mkdir()
    with suppress(OSError), whole_file(tmp_path / "study" / "study.json") as staged:
        pass  # only for the name beside the file, by which somebody might put a link
    staged.symlink_to(tmp_path / "victim")
    with pytest.raises(OSError, match="symbolic links"):
        write_json(tmp_path / "study" / "study.json", {"a": 1})
    assert (tmp_path / "victim").read_text() == "mine"


def running_trial() -> FrozenTrial:
    trial = create_trial(
        state=TrialState.RUNNING,
        params={"augment.threshold": 0.4},
        distributions={"augment.threshold": FloatDistribution(0.1, 0.9)},
        user_attrs={"params": {"augment.threshold": 0.4}, "attempt": 1},
    )
    trial.number, trial.datetime_start = 0, datetime(2026, 1, 1)
    return trial


def report_epoch(study: Study, epoch: int) -> None:
    study.record.report(0, EpochReport(epoch, 6, {OBJECTIVE: 0.5}), epoch)


def test_a_driver_that_was_cut_off_writes_nothing_over_its_successor(
    begin: Begin, url: str, postgres: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sctune.search.study.lock.CHECK_S", 3600.0)
    first = begin("cut-off", storage_url=url)
    second = Study.open(tmp_path / "b", "cut-off", postgres.url())
    told: list[str] = []
    with first.lock():
        first.add_launch("2026-01-01T00:00:00+00:00")
        first.record.start(running_trial())
        report_epoch(first, 1)
        first.record.flush()
        # its connection breaks, and somebody else is faster than its next look at the lock
        postgres.query("SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory'")
        with second.lock():
            second.add_launch("2026-01-02T00:00:00+00:00")
            report_epoch(first, 2)
            first.record.then(lambda: told.append("MLflow"))
            with pytest.raises(StudyError, match=f"being run by process {os.getpid()} on .* lost the database"):
                first.record.flush()
            assert first.taken and not told
            first.end_launch("2026-01-03T00:00:00+00:00", "failed")
            second.record.load()
            report_epoch(second, 3)
            (stored,) = second.record.load()
    launches = Study.open(tmp_path / "b", "cut-off", postgres.url()).manifest.launches
    assert sorted(stored.intermediate_values) == [1, 3]
    assert [launch.ended for launch in launches] == [None, None]

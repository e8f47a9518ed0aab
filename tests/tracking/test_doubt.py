"""Events that never arrive, by a full queue, a killed process, a run that was deleted: the record makes up for them."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Event as Flag
from typing import Any

import pytest
from optuna.trial import TrialState

from sctune.errors import TrackingError
from sctune.search.reconcile.check import check_stored, compare
from sctune.search.reconcile.differences import Difference
from sctune.search.reconcile.repair import open_writer, repair
from sctune.search.reconcile.sync import sync
from sctune.search.study.study import Study
from sctune.tracking.server import mlflow_client
from sctune.tracking.stored import find_runs
from sctune.tracking.writer import Apply, Writer

COMPLETE, PRUNED, OPEN = TrialState.COMPLETE, TrialState.PRUNED, TrialState.RUNNING
ROOT = Path(__file__).parents[2]


def wait_for(condition: Callable[[], bool], what: str, timeout: float = 60) -> None:
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end, f"{what} did not happen within {timeout:g} s"
        time.sleep(0.05)


def differences(study: Study) -> Sequence[Difference]:
    """Of a study that runs, and what may be on its way counted in."""
    return compare(study, study.record, running=True).differences


def test_a_full_queue_costs_a_bounded_amount_of_memory_and_the_record_makes_up_for_it_while_idle(
    player: Any, tmp_path: Path, local_uri: str
) -> None:
    study = player.make_study(tmp_path, local_uri)
    writer = Writer(local_uri, lambda apply: repair(study, apply, running=True), queue_limit=8)
    player.play(study, writer, (COMPLETE, PRUNED, TrialState.FAIL, OPEN) * 5)
    assert writer.undelivered <= 8
    assert writer.dropped > 0
    assert writer.in_doubt
    wait_for(lambda: not writer.in_doubt, "a repair")
    assert (writer.undelivered, writer.rejected, writer.last_error) == (0, 0, None)
    assert differences(study) == []
    parent = next(run for run in find_runs(mlflow_client(local_uri), study.manifest.study_id) if not trial(run))
    assert (parent.info.status, parent.data.tags["state"]) == ("RUNNING", "RUNNING"), "the launch goes on"
    writer.close()
    study.record.close()


def trial(run: Any) -> str | None:
    number: str | None = run.data.tags.get("sctune.trial")
    return number


PROGRAM = """
import sys, time
from pathlib import Path
from optuna.trial import TrialState
from sctune.tracking.writer import Writer
from tests.tracking.conftest import make_study, play
root, uri = Path(sys.argv[1]), sys.argv[2]
study = make_study(root, uri)
writer = Writer(uri)
play(study, writer, (TrialState.COMPLETE,), epochs=2)
assert writer.drain(60) == 0
class Slow:
    def put(self, event):
        if event.get("step") == 2:
            print("half", flush=True)
            time.sleep(600)
        writer.put(event)
play(study, Slow(), (TrialState.COMPLETE, TrialState.PRUNED), first=1)
"""


def test_a_process_killed_in_mid_stream(player: Any, tmp_path: Path, local_uri: str) -> None:
    """The record knew more than MLflow; the next launch, which knows nothing of the first, brings it."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(tmp_path), local_uri], stdout=subprocess.PIPE, env=environment, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "half\n"
        process.send_signal(signal.SIGKILL)
    study = Study.open(tmp_path, "played")
    assert len(study.record.load()) >= 2, "more than arrived"
    assert differences(study)
    writer = open_writer(study)
    writer.doubt()
    wait_for(lambda: not writer.in_doubt, "a repair")
    assert differences(study) == []
    player.play(study, writer, (COMPLETE,), first=len(study.record.load()))
    assert writer.drain(60) == 0
    assert differences(study) == []
    writer.close()
    study.record.close()


def test_a_run_deleted_in_mid_search_is_whole_again(player: Any, tmp_path: Path, local_uri: str) -> None:
    study = player.make_study(tmp_path, local_uri)
    writer = open_writer(study)
    player.play(study, writer, (COMPLETE, OPEN))
    assert writer.drain(60) == 0
    client = mlflow_client(local_uri)
    for run in find_runs(client, study.manifest.study_id):
        client.delete_run(run.info.run_id)
    writer.put({"kind": "tags", "study": study.manifest.study_id, "trial": 1, "time": 1, "tags": {"a": "b"}})
    assert writer.drain(60) == 0
    wait_for(lambda: not writer.in_doubt, "a repair")
    assert differences(study) == []
    writer.close()
    study.record.close()


def test_a_run_that_was_half_replaced_keeps_its_files(player: Any, tmp_path: Path, local_uri: str) -> None:
    """Killed while a wrong run was made anew: its successor is there, and holds nothing yet."""
    study = player.played_study(tmp_path / "s", local_uri)
    client = mlflow_client(local_uri)
    old = next(run for run in find_runs(client, study.manifest.study_id) if trial(run) == "0")
    client.log_metric(old.info.run_id, "loss", 5.0, timestamp=1, step=1)
    client.log_text(old.info.run_id, "by hand", "mine.txt")
    kept = ("sctune.study_id", "sctune.role", "sctune.trial", "mlflow.parentRunId")
    client.create_run(old.info.experiment_id, old.info.start_time, tags={name: old.data.tags[name] for name in kept})
    assert sync(study.name, tmp_path / "s", 60).complete
    (now,) = (run for run in find_runs(client, study.manifest.study_id) if trial(run) == "0")
    assert now.info.run_id != old.info.run_id
    assert [file.path for file in client.list_artifacts(now.info.run_id)] == ["mine.txt"]
    assert check_stored(tmp_path / "s", study.name).agrees


def test_an_idle_repair_gives_way_to_the_end_of_a_launch(local_uri: str) -> None:
    begun = Flag()
    tags = {"kind": "tags", "study": "s", "trial": None, "time": 1, "tags": {"a": "b"}}

    def endless(apply: Apply) -> None:
        begun.set()
        while True:
            apply([tags])

    writer = Writer(local_uri, endless)
    writer.doubt()
    assert begun.wait(30)
    writer.put(tags)
    assert writer.drain(60) == 0
    assert writer.in_doubt, "it was not done"
    assert writer.repair(lambda apply: "compared", 60) == "compared"
    assert (writer.in_doubt, writer.doubted) == (False, True)
    writer.close()


def test_nothing_is_repaired_as_of_a_running_study_once_its_end_is_told(local_uri: str) -> None:
    repaired = Flag()
    writer = Writer(local_uri, lambda _apply: repaired.set())
    told = {"study": "s", "trial": None, "time": 1, "status": "KILLED", "tags": {"state": "KILLED"}}
    writer.put({"kind": "study_end", **told})
    writer.doubt()
    assert writer.drain(60) == 0
    assert writer.repair(lambda apply: apply([{"kind": "tags", **told}]), 60) is None
    writer.doubt()
    writer.put({"kind": "tags", **told})
    assert writer.drain(60) == 0
    assert not repaired.is_set()
    assert writer.in_doubt
    writer.close()


def test_a_repair_that_cannot_be_done_says_what_mlflow_said() -> None:
    writer = Writer("http://127.0.0.1:9")

    def work(apply: Apply) -> None:
        apply([{"kind": "tags", "study": "s", "trial": None, "time": 1, "tags": {}}])

    with pytest.raises(TrackingError, match=re.escape("127.0.0.1")):
        writer.repair(work, 60, patience_s=1)
    assert writer.in_doubt
    writer.close()

"""Runs that were tampered with, lost or never delivered: the check names it, `sync` mends it, nothing is twice."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState

from sctune.errors import StudyError
from sctune.report import OBJECTIVE
from sctune.search.reconcile.check import check_stored
from sctune.search.reconcile.differences import Agreement
from sctune.search.reconcile.sync import sync
from sctune.tracking.server import TRIAL_TAG, mlflow_client
from sctune.tracking.stored import find_runs, read_study
from sctune.tracking.writer import Writer

NAME = "played"
LEFT_OPEN = TrialState.RUNNING


class Played:
    def __init__(self, player: Any, root: Path, uri: str, *how: Any) -> None:
        self.player, self.root, self.uri = player, root, uri
        self.study = player.played_study(root, uri, *how)
        self.client = mlflow_client(uri)

    def runs(self) -> dict[int | None, Any]:
        found: dict[int | None, Any] = {}
        for run in find_runs(self.client, self.study.manifest.study_id):
            number = run.data.tags.get(TRIAL_TAG)
            key = None if number is None else int(number)
            assert key not in found, f"two runs of trial {key}"
            found[key] = run
        return found

    def check(self) -> Agreement:
        return check_stored(self.root, NAME)

    def sync(self) -> Agreement:
        result = sync(NAME, self.root, 60)
        assert result.complete, result
        assert result.agreement is not None
        return result.agreement

    def lines(self) -> str:
        return "\n".join(one.line for one in self.check().differences)


@pytest.fixture
def played(player: Any, tmp_path: Path, local_uri: str) -> Played:
    return Played(player, tmp_path / "studies", local_uri)


def test_a_study_that_was_delivered_agrees(played: Played) -> None:
    agreement = played.check()
    assert agreement.differences == ()
    assert (agreement.trials, agreement.points, agreement.driver) == (4, 4 * 3 * 3, None)
    before = {number: run.info.run_id for number, run in played.runs().items()}
    assert played.sync().points == 36
    assert {number: run.info.run_id for number, run in played.runs().items()} == before, "nothing was made anew"


def wrong_point(played: Played) -> str:
    run = played.runs()[3].info.run_id
    played.client.log_metric(run, "loss", 99.0, timestamp=5, step=2)
    return "trial 3: MLflow has 1 other point (loss at epoch 2 2 times)"


def unrecorded_epoch(played: Played) -> str:
    played.client.log_metric(played.runs()[0].info.run_id, OBJECTIVE, 0.9, timestamp=5, step=7)
    return f"trial 0: MLflow has 1 other point ({OBJECTIVE} at epoch 7, which the record does not hold)"


def lost_rows(played: Played) -> str:
    """As a store that was restored from an older backup; MLflow itself lets no row be removed."""
    run = played.runs()[3].info.run_id
    with closing(sqlite3.connect(played.uri.removeprefix("sqlite:///"))) as store, store:
        store.execute("delete from params where run_uuid = ? and key = 'optim.lr'", (run,))
        store.execute("delete from metrics where run_uuid = ? and key = 'loss' and step = 2", (run,))
    return "trial 3: MLflow lacks 1 parameter (optim.lr)\ntrial 3: MLflow lacks 1 point (loss at epoch 2)"


def wrong_state(played: Played) -> str:
    run = played.runs()[1].info.run_id
    played.client.set_tag(run, "state", "COMPLETE")
    played.client.set_terminated(run, "FINISHED")
    return "trial 1: MLflow says COMPLETE (run FINISHED), the record PRUNED"


def still_running(played: Played) -> str:
    played.client.update_run(played.runs()[0].info.run_id, "RUNNING")
    return "trial 0: MLflow says COMPLETE (run RUNNING), the record COMPLETE"


def wrong_value(played: Played) -> str:
    played.client.set_tag(played.runs()[1].info.run_id, "value", "0.1")
    return "trial 1: MLflow says value 0.1, the record 0.5301"


def deleted_run(played: Played) -> str:
    played.client.delete_run(played.runs()[2].info.run_id)
    return "trial 2: MLflow has no run of it"


def second_run(played: Played) -> str:
    run = played.runs()[2]
    played.client.create_run(run.info.experiment_id, start_time=1, tags=run.data.tags)
    return "trial 2: MLflow has 2 runs of it"


def run_of_no_trial(played: Played) -> str:
    run = played.runs()[2]
    made = played.client.create_run(run.info.experiment_id, tags={**run.data.tags, TRIAL_TAG: "17"})
    return f"run {made.info.run_id} belongs to trial 17, which the record does not hold"


def no_parent(played: Played) -> str:
    played.client.delete_run(played.runs()[None].info.run_id)
    return "MLflow has no run of the study"


def parent_running(played: Played) -> str:
    played.client.update_run(played.runs()[None].info.run_id, "RUNNING")
    return "MLflow says FINISHED of the study (run RUNNING), not FINISHED"


def stray_checkpoint(played: Played) -> str:
    played.player.save_checkpoint(played.study, 1)
    return "trial 1: its checkpoints should be gone"


def half_written(played: Played) -> str:
    (Path(played.player.save_checkpoint(played.study, 3).root) / ".epoch-0004-attempt-02.abc").mkdir()
    return "trial 3: 1 half-written checkpoint (.epoch-0004-attempt-02.abc)"


@pytest.mark.parametrize(
    "tampers",
    [
        (wrong_point, unrecorded_epoch, wrong_state, run_of_no_trial, second_run, stray_checkpoint, half_written),
        (lost_rows, still_running, wrong_value, deleted_run, no_parent),
        (parent_running,),
    ],
    ids=["content", "ends", "parent"],
)
def test_what_differs_is_named_and_mended(played: Played, tampers: Sequence[Callable[[Played], str]]) -> None:
    texts = [tamper(played) for tamper in tampers]
    lines = played.lines()
    for text in texts:
        assert text in lines
    assert all(one.repair == "sync" for one in played.check().differences)
    assert played.sync().points == 36
    assert played.check().differences == ()
    runs = played.runs()
    assert runs.keys() == {None, 0, 1, 2, 3}
    assert {run.info.status for run in runs.values()} == {"FINISHED", "KILLED", "FAILED"}
    for run in read_study(played.uri, played.study.manifest.study_id, [OBJECTIVE]):
        if run.trial is not None:
            assert [point.step for point in run.points[OBJECTIVE]] == [1, 2, 3]
            assert run.params["augment.threshold"] == str(0.1 + run.trial / 1000)


def test_a_run_that_is_made_anew_keeps_its_files(played: Played, tmp_path: Path) -> None:
    old = played.runs()[2].info.run_id
    assert played.client.list_artifacts(old)[0].path == "failure.txt"
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "a.txt").write_text("by hand")
    played.client.log_artifacts(old, str(tmp_path / "deep"), "deep")
    played.client.log_metric(old, "loss", 5.0, timestamp=1, step=1)
    played.sync()
    new = played.runs()[2].info.run_id
    assert new != old
    assert {file.path for file in played.client.list_artifacts(new)} == {"failure.txt", "deep"}
    assert Path(played.client.download_artifacts(new, "deep/a.txt", str(tmp_path))).read_text() == "by hand"


def test_unfinished_trials_of_a_stopped_study_are_no_difference(player: Any, tmp_path: Path, local_uri: str) -> None:
    played = Played(player, tmp_path / "studies", local_uri, (TrialState.COMPLETE, LEFT_OPEN), "stopped")
    assert played.check().differences == ()
    assert played.runs()[1].data.tags["state"] == "UNFINISHED"
    # as a killed driver leaves it
    played.client.update_run(played.runs()[1].info.run_id, "RUNNING")
    played.client.set_tag(played.runs()[1].info.run_id, "state", "RUNNING")
    assert played.lines() == "trial 1: MLflow says RUNNING (run RUNNING), the record that it has not ended"
    played.sync()
    assert played.runs()[1].info.status == "KILLED"


def test_a_study_of_which_nothing_arrived(player: Any, tmp_path: Path, local_uri: str) -> None:
    """MLflow was away during the whole launch, and the queue was full; an earlier version left its journal."""
    study = player.make_study(tmp_path, local_uri)
    writer = Writer("http://127.0.0.1:9", queue_limit=3)  # nothing listens there
    player.play(study, writer)
    player.end(study, writer)
    assert (writer.undelivered, writer.dropped > 0, writer.in_doubt) == (3, True, True)
    writer.close()
    (study.folder / "logs").mkdir()
    log = ["t", "2026-01-01T00:00:00Z end: FAIL (failed: E)", "2026-01-01T00:00:00Z E: m", "2026-01-01T00:00:00Z   at"]
    (study.folder / "logs" / "trial-00002.log").write_text("\n".join(log))
    for name in ("tracking.jsonl", "tracking.jsonl.cursor", "tracking.jsonl.owed"):
        (study.folder / name).write_text("{ damaged")
    study.record.close()
    player.save_checkpoint(study, 3)
    assert not check_stored(tmp_path, NAME).agrees
    result = sync(NAME, tmp_path, 60)
    assert result.complete, result
    assert check_stored(tmp_path, NAME).agrees
    assert list(study.folder.glob("tracking*")) == []
    client = mlflow_client(local_uri)
    (failed,) = (run for run in find_runs(client, study.manifest.study_id) if run.info.status == "FAILED")
    kept = client.download_artifacts(failed.info.run_id, "failure.txt", str(tmp_path))
    assert Path(kept).read_text() == "E: m\n  at"


def test_a_study_that_runs_is_left_alone_and_what_is_on_its_way_is_no_difference(
    player: Any, tmp_path: Path, local_uri: str
) -> None:
    study = player.make_study(tmp_path, local_uri)
    with study.lock():
        writer = Writer(local_uri)
        player.play(study, writer, (TrialState.COMPLETE, LEFT_OPEN))
        assert writer.drain(60) == 0
        writer.close()
        writer = Writer("http://127.0.0.1:9")
        tracked = make_more(study, writer)
        agreement = check_stored(tmp_path, NAME)
        assert (agreement.differences, agreement.trials) == ((), 3)
        assert agreement.waiting == 1, tracked
        assert f"process {os.getpid()}" in str(agreement.driver)
        with pytest.raises(StudyError, match=f"process {os.getpid()}"):
            sync(NAME, tmp_path, 5)
        writer.close()
    study.record.close()


def make_more(study: Any, writer: Writer) -> int:
    """A third trial that the record holds and MLflow does not yet."""
    import datetime

    import optuna

    trial = optuna.trial.create_trial(
        state=TrialState.RUNNING, user_attrs={"params": {"augment.threshold": 0.3}, "attempt": 1, "launch": 0}
    )
    trial.number, trial.datetime_start = 2, datetime.datetime(2026, 1, 1, 0, 1)
    study.record.start(trial)
    study.record.flush()
    return writer.undelivered

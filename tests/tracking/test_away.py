"""MLflow gone, hanging or answering 500: the writer ends in time, and `sync` delivers everything once."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState

from sctune.errors import TrackingError
from sctune.search.reconcile.check import check_stored, compare
from sctune.search.reconcile.repair import open_writer
from sctune.search.reconcile.sync import sync
from sctune.tracking import server
from sctune.tracking.stored import find_runs, histories
from sctune.tracking.writer import Writer
from tests.mlflow_gate import Gate

STATES = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.COMPLETE)


@pytest.fixture
def gate(mlflow_server: Any) -> Iterator[Gate]:
    made = Gate(mlflow_server.uri)
    yield made
    made.close()


def check_no_repeats(uri: str, study_id: str) -> None:
    client = server.mlflow_client(uri)
    runs = find_runs(client, study_id)
    numbers = [run.data.tags.get(server.TRIAL_TAG) for run in runs]
    assert len(set(numbers)) == len(numbers), "a trial has two runs"
    for points in histories(client, [run.info.run_id for run in runs], "loss").values():
        assert len({point.step for point in points}) == len(points)


@pytest.mark.timeout(240)
@pytest.mark.parametrize("mode", ["hang", "error"])
def test_a_server_that_hangs_or_fails_costs_nothing_and_gets_everything_later(
    mode: str, player: Any, tmp_path: Path, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "REQUEST_TIMEOUT_S", 2)
    study = player.make_study(tmp_path, gate.uri)
    writer = Writer(gate.uri)
    player.play(study, writer, STATES[:1])
    assert writer.drain(60) == 0
    gate.mode = mode
    player.play(study, writer, STATES[1:], first=1)
    player.end(study, writer)
    began = time.monotonic()
    left = writer.drain(3)
    assert left > 0
    writer.close()
    assert time.monotonic() - began < 30, "bounded, whatever the server does"
    study.record.close()

    with pytest.raises(TrackingError, match=gate.uri):
        check_stored(tmp_path, "played")
    result = sync("played", tmp_path, 4)
    assert not result.complete
    assert result.left[0].startswith("MLflow was not brought to the record: ")

    gate.mode = "pass"
    gate.let_go.set()
    player.save_checkpoint(study, 2)
    result = sync("played", tmp_path, 60)
    assert result.complete, result
    assert check_stored(tmp_path, "played").points == 27
    check_no_repeats(gate.uri, study.manifest.study_id)


@pytest.mark.timeout(300)
def test_a_server_that_was_away_the_whole_time(player: Any, tmp_path: Path, mlflow_server: Any) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    uri = f"http://127.0.0.1:{port}"
    study = player.make_study(tmp_path, uri, "gone")
    writer = Writer(uri)
    player.play(study, writer, STATES)
    player.end(study, writer)
    assert writer.drain(1) > 0
    writer.close()
    study.record.close()
    player.save_checkpoint(study, 2)
    back = Gate(mlflow_server.uri, port)
    try:
        assert len(check_stored(tmp_path, "gone").differences) == 4, "no run of the study, none of its three trials"
        result = sync("gone", tmp_path, 60)
        assert result.complete, result
        check_no_repeats(mlflow_server.uri, study.manifest.study_id)
    finally:
        back.close()


@pytest.mark.timeout(240)
def test_a_server_that_comes_back_with_less_than_it_had(player: Any, tmp_path: Path, gate: Gate) -> None:
    """As one that was restored from a backup: the same driver notices, and brings what is missing."""
    study = player.make_study(tmp_path, gate.uri, "restored")
    writer = open_writer(study)
    player.play(study, writer, STATES[:2])
    assert writer.drain(60) == 0
    gate.mode = "error"
    player.play(study, writer, STATES[2:], first=2)
    end = time.monotonic() + 30
    while writer.last_error is None and time.monotonic() < end:
        time.sleep(0.05)
    assert writer.last_error is not None
    there = server.mlflow_client(gate.target)
    there.delete_run(find_runs(there, study.manifest.study_id)[-1].info.run_id)
    gate.mode = "pass"
    assert writer.drain(60) == 0
    end = time.monotonic() + 60
    while writer.in_doubt and time.monotonic() < end:
        time.sleep(0.05)
    assert not writer.in_doubt
    assert compare(study, study.record, running=True).differences == []
    check_no_repeats(gate.uri, study.manifest.study_id)
    writer.close()
    study.record.close()

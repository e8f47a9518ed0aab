"""The writer against real stores: SQLite, a server that goes away, a port that never answers."""

from __future__ import annotations

import socket
import time
from pathlib import Path
from typing import Any

import pytest

from sctune.report import OBJECTIVE
from sctune.tracking.server import find_experiment, find_parent_run, mlflow_client
from sctune.tracking.writer import Writer

STUDY = "00000000-0000-4000-8000-000000000001"
T0 = 1_700_000_000_000
ENDS = ["COMPLETE", "PRUNED", "FAIL"]
STATUS = {"COMPLETE": "FINISHED", "PRUNED": "KILLED", "FAIL": "FAILED"}


def event(kind: str, trial: int | None = None, offset: int = 0, **content: Any) -> dict[str, Any]:
    return {"kind": kind, "study": STUDY, "trial": trial, "time": T0 + offset, **content}


def study_event(resumed: bool = False) -> dict[str, Any]:
    return event("study", name="demo", params={"a": 1}, tags={"data_digest": "d"}, resumed=resumed)


def report(trial: int, step: int, offset: int = 0) -> dict[str, Any]:
    metrics = {OBJECTIVE: 0.5 + step / 100, "loss": 1.0 / step}
    return event("report", trial, 100 * trial + step + offset, step=step, metrics=metrics)


def trial_events(trial: int, epochs: int) -> list[dict[str, Any]]:
    state = ENDS[trial % 3]
    return [
        event("trial_start", trial, trial, params={"threshold": trial / 10}, tags={"state": "RUNNING"}),
        *(report(trial, step) for step in range(1, epochs + 1)),
        event("trial_end", trial, 100 * trial + 99, status=state, tags={"state": state, "stop_reason": "told"}),
    ]


def children(uri: str, study: str = STUDY) -> dict[int, Any]:
    client = mlflow_client(uri)
    runs = client.search_runs([find_experiment(client, uri)], f"tags.`sctune.study_id` = '{study}'")
    parent = find_parent_run(uri, study)
    found = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent]
    assert len(found) == len(runs) - 1, "one parent, all others its children"
    numbers = [int(run.data.tags["sctune.trial"]) for run in found]
    assert len(set(numbers)) == len(numbers), "no trial has two runs"
    return dict(zip(numbers, found, strict=True))


def check_trials(uri: str, count: int, epochs: int) -> None:
    """Every trial's run exists once, has every point once, and the state that was told."""
    client, runs = mlflow_client(uri), children(uri)
    assert sorted(runs) == list(range(count))
    for number, run in runs.items():
        state = ENDS[number % 3]
        assert (run.info.status, run.data.tags["state"]) == (STATUS[state], state)
        assert run.info.run_name == f"trial-{number:04d}"
        for metric in (OBJECTIVE, "loss"):
            history = client.get_metric_history(run.info.run_id, metric)
            assert sorted((point.step, point.timestamp) for point in history) == [
                (step, T0 + 100 * number + step) for step in range(1, epochs + 1)
            ]


def test_a_study_as_one_parent_and_nested_children(tmp_path: Path, local_uri: str) -> None:
    writer = Writer(local_uri)
    writer.put(study_event())
    for number in range(3):
        for one in trial_events(number, epochs=4):
            writer.put(one)
    writer.put(event("tags", 1, tags={"best": "yes"}))
    writer.put(event("study_end", None, 9000, status="FINISHED", tags={"state": "FINISHED"}))
    assert writer.drain(60) == 0
    assert (writer.rejected, writer.last_error) == (0, None)
    check_trials(local_uri, 3, epochs=4)
    parent = mlflow_client(local_uri).get_run(find_parent_run(local_uri, STUDY))
    assert writer.parent_run_id == parent.info.run_id
    assert (parent.info.status, parent.info.run_name, parent.data.params) == ("FINISHED", "demo", {"a": "1"})
    assert (parent.info.start_time, parent.info.end_time) == (T0, T0 + 9000)
    assert parent.info.artifact_uri.startswith((tmp_path / "mlartifacts").as_uri())
    run = children(local_uri)[1]
    assert (run.data.params["threshold"], run.data.tags["best"], run.data.tags["stop_reason"]) == ("0.1", "yes", "told")
    writer.close()


def test_artifacts_long_parameters_and_a_failure(tmp_path: Path, local_uri: str) -> None:
    (tmp_path / "plots" / "deep").mkdir(parents=True)
    (tmp_path / "plots" / "deep" / "a.html").write_text("<p>")
    (tmp_path / "one.csv").write_text("1")
    writer = Writer(local_uri)
    writer.put(study_event())
    writer.put(event("trial_start", 0, params={"long": "x" * 7000, "list": [1, 2]}, tags={}))
    writer.put(event("trial_end", 0, status="FAIL", tags={"state": "FAIL"}, error="Traceback\nValueError: é"))
    writer.put(event("artifact", None, path=str(tmp_path / "plots"), artifact_path="plots"))
    writer.put(event("artifact", 0, path=str(tmp_path / "one.csv"), artifact_path=None))
    writer.put(event("artifact", 0, path=str(tmp_path / "gone.csv"), artifact_path=None))
    assert writer.drain(60) == 0
    assert writer.rejected == 1, "the file that is gone"
    run = children(local_uri)[0]
    folder = Path(run.info.artifact_uri.removeprefix("file://"))
    assert (folder / "failure.txt").read_text(encoding="utf-8") == "Traceback\nValueError: é"
    assert (folder / "params" / "long.txt").read_text() == "x" * 7000
    assert (folder / "one.csv").read_text() == "1"
    assert run.data.params == {"long": "7000 characters, see artifact params/long.txt", "list": "[1, 2]"}
    parent = mlflow_client(local_uri).get_run(find_parent_run(local_uri, STUDY))
    assert (Path(parent.info.artifact_uri.removeprefix("file://")) / "plots" / "deep" / "a.html").is_file()
    writer.close()


def test_what_mlflow_refuses_is_left_out_alone(tmp_path: Path, local_uri: str) -> None:
    writer = Writer(local_uri)
    writer.put(study_event())
    writer.put(event("trial_start", 0, params={f"p{n}": n for n in range(60)}, tags={}))
    assert writer.drain(60) == 0
    # parameters cannot change in MLflow; the rest of the same request must arrive all the same
    writer.put(event("trial_start", 0, params={"p7": "other", "q": 1}, tags={"t": "1"}))
    writer.put({"kind": "nonsense", "study": STUDY})
    writer.put(event("report", 0, step=1, metrics={OBJECTIVE: "high"}))
    circle: dict[str, Any] = {}
    circle["circle"] = circle
    writer.put(event("tags", 0, tags=circle))
    writer.put(report(0, 2))
    assert writer.drain(60) == 0
    assert writer.rejected == 4
    assert writer.in_doubt
    data = children(local_uri)[0].data
    assert (data.params["p7"], data.params["q"], data.tags["t"], data.metrics[OBJECTIVE]) == ("7", "1", "1", 0.52)
    writer.close()


def test_a_stopped_study_leaves_no_run_running_and_resumes_in_the_same_runs(tmp_path: Path, local_uri: str) -> None:
    writer = Writer(local_uri)
    for one in [study_event(), *trial_events(0, 2), event("trial_start", 1, params={"x": 1}, tags={}), report(1, 1)]:
        writer.put(one)
    writer.put(event("study_end", None, 500, status="KILLED", tags={"state": "KILLED"}))
    assert writer.drain(60) == 0
    writer.close()
    runs = children(local_uri)
    assert (runs[0].info.status, runs[1].info.status) == ("FINISHED", "KILLED")
    assert runs[1].data.tags["state"] == "UNFINISHED"

    writer = Writer(local_uri)
    writer.put(study_event(resumed=True))
    writer.put(event("trial_start", 1, params={"x": 1}, tags={"state": "RUNNING"}, resumed=True))
    writer.put(report(1, 1, offset=5000))  # repeated from the checkpoint: the first point stays
    writer.put(report(1, 2))
    assert writer.drain(60) == 0
    assert children(local_uri)[1].info.status == "RUNNING"
    parent = mlflow_client(local_uri).get_run(find_parent_run(local_uri, STUDY))
    assert parent.info.status == "RUNNING"
    writer.put(event("trial_end", 1, 900, status="PRUNED", tags={"state": "PRUNED"}))
    writer.put(event("study_end", None, 901, status="FINISHED", tags={}))
    assert writer.drain(60) == 0
    writer.close()
    check_trials(local_uri, 2, epochs=2)


def test_events_sent_twice_change_nothing(tmp_path: Path, local_uri: str) -> None:
    """What a killed process had sent is told again by the next one, and the runs stay as they are."""
    events = [study_event(), *(one for number in range(3) for one in trial_events(number, 3))]
    for _ in range(2):
        writer = Writer(local_uri)
        for one in events:
            writer.put(one)
        assert writer.drain(60) == 0
        writer.close()
    check_trials(local_uri, 3, epochs=3)


def test_two_runs_of_one_trial_become_one(tmp_path: Path, local_uri: str) -> None:
    """A "create run" whose answer was lost and that was repeated leaves two; the older one stays."""
    writer = Writer(local_uri)
    writer.put(study_event())
    writer.put(event("trial_start", 0, params={}, tags={}))
    assert writer.drain(60) == 0
    writer.close()
    client, run = mlflow_client(local_uri), children(local_uri)[0]
    client.create_run(run.info.experiment_id, start_time=T0 + 1, tags=run.data.tags)
    writer = Writer(local_uri)
    writer.put(report(0, 1))
    assert writer.drain(60) == 0
    assert children(local_uri)[0].info.run_id == run.info.run_id
    writer.close()


@pytest.mark.timeout(240)
def test_a_server_killed_in_mid_stream(tmp_path: Path, mlflow_server: Any) -> None:
    writer = Writer(mlflow_server.uri)
    writer.put(study_event())
    for one in trial_events(0, 5):
        writer.put(one)
    assert writer.drain(60) == 0
    second = trial_events(1, 5)
    for one in second[:3]:
        writer.put(one)
    mlflow_server.stop()
    for one in second[3:]:
        writer.put(one)
    end = time.monotonic() + 30
    while writer.last_error is None and time.monotonic() < end:
        assert writer.drain(0.2) > 0
    assert writer.last_error is not None
    assert writer.in_doubt
    mlflow_server.start()
    for one in trial_events(2, 5):
        writer.put(one)
    assert writer.drain(60) == 0
    assert (writer.last_error, writer.rejected) == (None, 0)
    (tmp_path / "a.txt").write_text("by way of the server")
    writer.put(event("artifact", 0, path=str(tmp_path / "a.txt"), artifact_path="x"))
    assert writer.drain(60) == 0
    assert writer.rejected == 0
    files = mlflow_client(mlflow_server.uri).list_artifacts(children(mlflow_server.uri)[0].info.run_id, "x")
    assert [file.path for file in files] == ["x/a.txt"]
    writer.close()
    check_trials(mlflow_server.uri, 3, epochs=5)


def test_a_port_that_never_answers(tmp_path: Path) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(16)
        writer = Writer(f"http://127.0.0.1:{silent.getsockname()[1]}")
        for number in range(1000):
            writer.put(report(0, number + 1))
        silent.settimeout(60)
        connection, _ = silent.accept()  # the sender hangs in its first request from here on
        writer.put(report(0, 1001))
        assert writer.drain(1.0) == 1001
        assert (writer.undelivered, writer.dropped) == (1001, 0)
        writer.close()
        connection.close()


def test_small_requests_while_a_search_runs_and_large_ones_for_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []

    class Slow:
        rejected, parent_run_id = 0, None

        def apply(self, events: list[Any]) -> None:
            sizes.append(len(events))
            # it rests nine times as long
            time.sleep(0.3)

    monkeypatch.setattr("sctune.tracking.writer.Runs", lambda _uri: Slow())
    writer = Writer("unused")
    for step in range(1, 351):
        writer.put(report(0, step))
    while not sizes:
        time.sleep(0.01)
    assert writer.drain(20) == 0
    writer.close()
    assert sum(sizes) == 350
    assert sizes[0] <= 100 < sizes[1]

"""Servers, and studies as a launch leaves them, without Ray: record, runs in MLflow and checkpoints."""

from __future__ import annotations

import datetime
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from optuna.trial import TrialState

from sctune.config import Task, load_profile
from sctune.report import OBJECTIVE, EpochReport
from sctune.search.reconcile.recorded import tracking_of
from sctune.search.space.definition import load_space
from sctune.search.study.manifest import DataSpec, SchedulerSpec
from sctune.search.study.record import AfterRecord
from sctune.search.study.study import Study
from sctune.tracking.server import default_tracking_uri
from sctune.tracking.writer import Writer
from sctune.trial.checkpoint import TrialStore
from tests.builders import make_manifest
from tests.mlflow_server import MlflowServer


@pytest.fixture
def local_uri(tmp_path: Path, empty_store: Path) -> str:
    shutil.copyfile(empty_store, tmp_path / "mlflow.db")
    return default_tracking_uri(tmp_path)


@pytest.fixture(scope="session")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> Iterator[MlflowServer]:
    folder = tmp_path_factory.mktemp("mlflow-server")
    shutil.copyfile(empty_store, folder / "server.db")
    server = MlflowServer(folder, f"sqlite:///{folder / 'server.db'}")
    server.start()
    yield server
    server.stop()


STARTED = "2026-01-01T00:00:00+00:00"
STATES = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL, TrialState.COMPLETE)


def make_study(root: Path, uri: str, name: str = "played", keep_best: int = 1) -> Study:
    # images that are not here: nothing is trained
    base = load_profile("cpu").override({"data.source": str(root / "images")})
    space = load_space("threshold_patch", base, {"optim.lr": 1e-3})
    manifest = make_manifest(
        space,
        name=name,
        created=STARTED,
        tasks=(Task(source=str(root / "images")),),
        scheduler=SchedulerSpec(name="none"),
        trials=12,
        data=DataSpec(name="images", digest="abc"),
        storage_path=str(root / name),
        tracking_uri=uri,
        keep_best=keep_best,
    )
    study = Study.create(root, manifest)
    study.add_launch(STARTED)
    return study


def play(study: Study, sink: Any, states: tuple[TrialState, ...] = STATES, epochs: int = 3, first: int = 0) -> None:
    """Trials as the searcher records and tells them, numbered from `first`."""
    tracking = tracking_of(study, AfterRecord(study.record, sink))
    tracking.on_study_start()
    for number, state in enumerate(states, first):
        params = {"augment.threshold": 0.1 + number / 1000, "model.patch_count": 4}
        trial = optuna.trial.create_trial(
            state=TrialState.RUNNING,
            params={"augment.threshold": params["augment.threshold"]},
            distributions={"augment.threshold": optuna.distributions.FloatDistribution(0.1, 0.9)},
            user_attrs={"params": params, "attempt": 1, "launch": 0},
        )
        trial.number, trial.datetime_start = number, datetime.datetime(2026, 1, 1, 0, 0, number % 60, number // 60)
        study.record.start(trial)
        tracking.on_start(number, params, 1)
        for epoch in range(1, epochs + 1):
            value = 0.5 + epoch / 100 + number / 10000
            metrics = {OBJECTIVE: value, "loss": 1 / (epoch + number), "seconds": 2.0}
            report = EpochReport(epoch, epochs, metrics)
            moment = 1_700_000_000_000 + 1000 * number + epoch
            study.record.report(number, report, moment)
            tracking.on_report(number, report, moment)
        if state is TrialState.RUNNING:
            continue
        failure = {"kind": "NonFiniteError", "message": "m", "traceback": "Traceback: m"}
        told = None if state is TrialState.FAIL else value
        reason = {"stop_reason": "told"}
        failed = {"failure": failure} if state is TrialState.FAIL else {}
        kept = {name: {key: one[key] for key in ("kind", "message")} for name, one in failed.items()}
        study.record.finish(number, state, told, {**reason, **kept})
        tracking.on_end(number, state.name, told, {**reason, **failed})
    study.record.flush()


def end(study: Study, sink: Any, reason: str = "done") -> None:
    """The end of the launch, in the tracking and in the manifest."""
    tracking_of(study, sink).on_study_end({"done": "FINISHED", "stopped": "KILLED"}[reason], {})
    study.end_launch(STARTED, reason)


def save_checkpoint(study: Study, number: int) -> TrialStore:
    store = TrialStore(study.manifest.storage_path, number)
    store.save(3, 1, {"task": ({"w": torch.zeros(1)}, {})})
    return store


def played_study(
    root: Path, uri: str, states: tuple[TrialState, ...] = STATES, reason: str = "done", epochs: int = 3
) -> Study:
    """A study that is over and delivered; the best full run, the last one, has its checkpoint."""
    study = make_study(root, uri)
    writer = Writer(uri)
    play(study, writer, states, epochs)
    end(study, writer, reason)
    assert writer.drain(60) == 0, writer.last_error
    writer.close()
    study.record.close()
    study = Study.open(root, study.name)
    best = max(number for number, state in enumerate(states) if state is TrialState.COMPLETE)
    save_checkpoint(study, best)
    return study


class Player:
    """The functions above, for tests."""

    make_study = staticmethod(make_study)
    play = staticmethod(play)
    end = staticmethod(end)
    save_checkpoint = staticmethod(save_checkpoint)
    played_study = staticmethod(played_study)


@pytest.fixture(scope="session")
def player() -> Player:
    return Player()

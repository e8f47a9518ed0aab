"""What other programs put into a record, and files that are none: named, left out, and not written to."""

from __future__ import annotations

import shutil
import sqlite3
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState, create_trial

from sctune.cli.studies import best
from sctune.errors import StudyError
from sctune.search.reconcile.check import check_stored
from sctune.search.study.database import check_free, read_attrs, stored_manifests
from sctune.search.study.record import Record
from sctune.search.study.result import summary_lines
from sctune.search.study.stored import load_result
from sctune.search.study.study import Study
from tests.builders import FLAT
from tests.search.searching import make_study, open_searcher, run_whole, suggest


def put(study: Study, *states: TrialState) -> None:
    """Trials of other parameters with values that no real one reaches, as user code or a dashboard adds them."""
    other = optuna.load_study(study_name=study.name, storage=study.record_url)
    for state in states:
        if state is TrialState.WAITING:
            other.enqueue_trial({"x": 1.0, "augment.threshold": 0.3})
        elif state is TrialState.RUNNING:
            other.ask({"x": FloatDistribution(0, 1)})
        else:
            params: dict[str, Any] = {"x": 0.5, "kind": "high", "augment.threshold": 4.0}
            kinds = {
                "x": FloatDistribution(0, 1),
                "kind": CategoricalDistribution(["high", "low"]),
                "augment.threshold": FloatDistribution(3, 5),
            }
            value = None if state is TrialState.FAIL else 2.0
            other.add_trial(create_trial(state=state, value=value, params=params, distributions=kinds))


@pytest.fixture
def study(tmp_path: Path) -> Study:
    """Two full runs, then five trials of another program."""
    study = make_study(tmp_path, FLAT, 5)
    first = open_searcher(study)
    for name, value in {"a": 0.7, "b": 0.8}.items():
        suggest(first, name)
        run_whole(first, name, value)
    first.controller.record.close()
    put(study, TrialState.COMPLETE, TrialState.FAIL, TrialState.PRUNED, TrialState.RUNNING, TrialState.WAITING)
    return study


NOTE = "trials 2, 3, 4, 5, 6 of the record were put there by another program and are left out"


def test_a_result_leaves_them_out_and_names_them(study: Study, capsys: pytest.CaptureFixture[str]) -> None:
    root = study.folder.parent
    result = load_result(root, study.name, noise=False)
    assert [(row.number, row.value) for row in result.rows] == [(1, 0.8), (0, 0.7)]
    assert result.notes == (NOTE,) and summary_lines(result)[-1] == NOTE
    best(study.name, study_root=root)
    out, err = capsys.readouterr()
    assert out.startswith("# study s, trial 1, selection AUROC 0.8000\n") and err == NOTE + "\n"


def test_the_check_names_them_and_finds_no_fault(tmp_path: Path, study: Study, empty_store: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    shutil.copyfile(empty_store, tmp_path / "mlflow.db")
    study.with_places(str(tmp_path / "s"), uri)
    found = check_stored(tmp_path / "root", study.name)
    assert found.trials == 2 and NOTE in found.notes
    assert {one.kind for one in found.differences} <= {"run", "parent", "checkpoint", "data"}


def test_a_resume_goes_on_beside_them(study: Study) -> None:
    """They cost nothing of the number of trials, and their numbers are not given again."""
    again = open_searcher(study)
    numbers = []
    for name in "cdefg":
        config = again.suggest(name)
        if isinstance(config, dict):
            numbers.append(config["number"])
            assert set(config["params"]) == set(FLAT)
            run_whole(again, name, 0.6)
    assert numbers == [7, 8, 9]
    assert [trial.number for trial in again.controller.record.load()] == [0, 1, 7, 8, 9]
    again.controller.record.close()
    # and what they hold is as it was
    stored = optuna.load_study(study_name=study.name, storage=study.record_url).trials
    assert [trial.state.name for trial in stored[2:7]] == ["COMPLETE", "FAIL", "PRUNED", "RUNNING", "WAITING"]


@pytest.mark.parametrize("sampler", ["random", "tpe", "gp", "nsga2", "qmc", "cmaes"])
def test_samplers_learn_nothing_from_them(tmp_path: Path, sampler: str) -> None:
    study = make_study(tmp_path, FLAT, 16, sampler=sampler)
    put(study, TrialState.COMPLETE)
    searcher = open_searcher(study)
    for number in range(16):
        assert suggest(searcher, f"t{number}")["number"] == number + 1
        run_whole(searcher, f"t{number}", 0.5 + number / 100)
    searcher.controller.record.close()


@pytest.fixture(params=["missing", "empty", "tables", "text"])
def no_record(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / "a #file.db"
    if request.param == "empty":
        path.write_bytes(b"")
    elif request.param == "tables":
        base = sqlite3.connect(path)
        base.execute("CREATE TABLE other (x)")
        base.commit()
        base.close()
    elif request.param == "text":
        path.write_text("notes\n" * 100)
    return path


def test_a_file_that_is_no_record_is_refused_and_left_alone(no_record: Path) -> None:
    before = no_record.read_bytes() if no_record.exists() else None
    url = f"sqlite:///{no_record}"
    for use in (lambda: Record(url, "s"), lambda: read_attrs(url, "s"), lambda: stored_manifests(url)):
        with pytest.raises(StudyError, match=r"no record( at)?") as caught:
            use()
        assert str(no_record) in str(caught.value) and "\n" not in str(caught.value)
    if before != b"notes\n" * 100:
        check_free(url, "s")
    assert (no_record.read_bytes() if no_record.exists() else None) == before
    assert [path.name for path in no_record.parent.glob("*.db*")] == ([no_record.name] if before is not None else [])


def test_an_empty_file_becomes_a_record_when_a_study_begins(tmp_path: Path) -> None:
    (tmp_path / "new.db").write_bytes(b"")
    url = f"sqlite:///{tmp_path / 'new.db'}"
    Record(url, "s", create=True).close()
    assert Record(url, "s").load() == []
    with pytest.raises(StudyError, match="holds a study 's' already"):
        check_free(url, "s")

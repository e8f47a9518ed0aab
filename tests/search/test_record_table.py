"""Recording a table: which configurations, what of it is whole, and a small one that is really trained."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from sctune.config import Task, load_profile
from sctune.errors import DataError
from sctune.search.simulate.on_table import TableSearch, Way
from sctune.search.simulate.table import load_table
from sctune.search.space.definition import load_space
from sctune.search.study.manifest import SchedulerSpec
from sctune.train.trainer import Trainer
from tests.conftest import TINY


@pytest.fixture
def recording(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    return importlib.import_module("record_table")


def test_more_configurations_go_on_where_fewer_ended(recording: ModuleType) -> None:
    for name in ("full", "pseudo", "threshold_patch"):
        space = load_space(name, load_profile("cpu"))
        few, many = recording.draw(space, 6), recording.draw(space, 14)
        assert many[:6] == few and len({space.key(values) for values in many}) == 14
    # the published one comes first
    assert many[0] == {"augment.threshold": 0.4, "model.patch_count": 4}
    drawn = np.array([values["augment.threshold"] for values in recording.draw(space, 33)[1:]])
    # a Sobol sequence has its points in every part: at most a hole of two sixteenths
    assert np.diff(np.sort(np.r_[0.1, drawn, 0.9])).max() < 0.8 / 8
    small = load_space("grid_size", load_profile("cpu"))
    assert len(recording.draw(small, 40)) == 7


def row(number: int, seed: int, failed: str | None = None) -> dict[str, Any]:
    return {"number": number, "seed": seed, "failed": failed}


def test_what_is_whole_of_what_was_trained(recording: ModuleType) -> None:
    rows = [row(number, seed) for seed in (101, 102) for number in range(4)]
    assert recording.rectangle(rows) == ([0, 1, 2, 3], [101, 102])
    # the third seed is through with three of four: nine trainings instead of eight
    assert recording.rectangle([*rows, *(row(number, 103) for number in (0, 1, 3))]) == ([0, 1, 3], [101, 102, 103])
    assert recording.rectangle([*rows, row(0, 103), row(2, 103)]) == ([0, 1, 2, 3], [101, 102])
    assert recording.rectangle([*rows, row(2, 103, "the loss is nan")]) == ([0, 1, 3], [101, 102])
    assert recording.rectangle([]) == ([], [])


def test_a_table_is_recorded_bit_by_bit(
    recording: ModuleType, image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trained, cut off in the middle of a line, gone on with, packed, read, searched on."""
    # in this process: another one takes seconds to start
    monkeypatch.setattr(
        "measure_common.run_jobs", lambda work, jobs, _workers, path: _one_by_one(recording, work, jobs, path)
    )
    rows, table, space = (tmp_path / name for name in ("rows.jsonl", "table.npz", "space.yaml"))
    space.write_text("parameters:\n  augment.threshold: {type: float, low: 0.1, high: 0.9}\n")
    fixed = [f"{name}={value}" for name, value in TINY.items() if not name.startswith("data.n")]
    train = [
        "train", "--name", "stripes", "--data", str(image_folder), "--n-anomalies", "4", "--selection", "extra",
        "--rows", str(rows), "--space", str(space), *(word for one in fixed for word in ("--set", one)),
    ]  # fmt: skip
    recording.main([*train, "--configurations", "2", "--seeds", "101"])
    with pytest.raises(SystemExit, match="there are not two configurations with the same two seeds"):
        recording.main(["pack", "--name", "stripes", "--rows", str(rows), "--to", str(table)])
    assert not table.exists()
    with rows.open("a") as stream:
        stream.write('{"key": "1:102:')
    before = rows.read_text()
    recording.main([*train, "--configurations", "2", "--seeds", "101", "102"])
    # a line each, what was there stays, and it tells no place
    assert rows.read_text().startswith(before.rpartition("\n")[0]) and rows.read_text().count("\n") == 5
    assert str(image_folder) not in rows.read_text()
    with pytest.raises(SystemExit, match="holds trainings of another space"):
        recording.main([*train, "--configurations", "2", "--seeds", "101", "102", "--space", "top_k"])
    recording.main(["pack", "--name", "stripes", "--rows", str(rows), "--to", str(table), "--scores", "all"])
    found = load_table(table)
    assert found.values.shape == (2, 2, 2) and found.about.seeds == [101, 102]
    assert found.about.configurations[0] == {"augment.threshold": 0.4}
    config = found.space.config(found.about.configurations[1]).override({"data.source": str(image_folder)})
    trainer = Trainer(config, Task(source=str(image_folder), seed=102))
    reports = list(trainer.fit())
    assert found.values[1, 1].tolist() == [report.value for report in reports]
    np.testing.assert_allclose(found.scores["seed102"][1], reports[-1].scores["seed102"], rtol=1e-6)
    np.testing.assert_allclose(found.earlier["seed102"][1, 0], reports[0].scores["seed102"], rtol=2e-3)
    assert found.labels["seed102"].tolist() == trainer.selection.labels.tolist()
    assert (found.seconds > 0).all() and (found.memory_mb > 1).all()
    run = TableSearch(found, Way("tpe", SchedulerSpec(name="race", grace=1), 2, 2)).run(0)
    assert {trial.place for trial in run.trials} == {0, 1}
    recording.main(["pack", "--name", "stripes", "--rows", str(rows), "--to", str(table), "--scores", "none"])
    assert not load_table(table).scores and not load_table(table).earlier


def _one_by_one(recording: ModuleType, work: Any, jobs: Any, path: Path) -> None:
    for job in jobs:
        recording.append_row(path, work(job))


def test_nothing_is_packed_of_nothing(recording: ModuleType) -> None:
    with pytest.raises(DataError, match="train on"):
        recording.table_of([], "all")

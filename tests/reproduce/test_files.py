"""Writing that leaves nothing half-done, and errors of the disk in one line."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest

from sctune.errors import ConfigError
from sctune.files import replace_files
from sctune.reproduce import pictures, run
from sctune.reproduce.cells import Asked
from sctune.reproduce.plan import ReproduceOptions, TablePlan, make_plan
from sctune.reproduce.scores import ScoreFolder
from sctune.reproduce.studies import write_space


def full_disk(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def fill_and_fail(path: Path) -> None:
    path.write_text("half")
    full_disk()


@pytest.fixture
def plan(carpet: Path) -> TablePlan:
    asked = Asked(categories=("carpet",), anomalies=(1,))
    return make_plan(ReproduceOptions("table1", asked, ("dra",), (42,), "smoke", carpet, out=carpet.parent / "out"))


def test_all_files_or_none(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    first.write_text("old")
    with pytest.raises(ConfigError, match=f"cannot write {second}: No space left on device; .* another --out"):
        replace_files({first: lambda path: path.write_text("new"), second: fill_and_fail})
    assert [path.name for path in tmp_path.iterdir()] == ["first"] and first.read_text() == "old"
    replace_files({first: lambda path: path.write_text("new"), second: lambda path: path.write_text("new")})
    assert first.read_text() == second.read_text() == "new" and len(list(tmp_path.iterdir())) == 2


def test_a_full_disk_while_the_table_is_written(plan: TablePlan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "_train", lambda *_: False)
    monkeypatch.setattr(pictures, "picture", lambda header, results, path: fill_and_fail(path))
    with pytest.raises(ConfigError, match=r"cannot write .*table.png: No space left on device"):
        run.run_table(plan, lambda lines: None)
    assert list(plan.out.iterdir()) == []


@pytest.mark.parametrize("name", ["table.csv", "table.md", "table.png"])
def test_a_folder_in_the_place_of_a_table_is_seen_before_training(
    plan: TablePlan, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def train(*_: object) -> bool:
        pytest.fail("trained before it was seen")

    monkeypatch.setattr(run, "_train", train)
    (plan.out / name).mkdir(parents=True)
    with pytest.raises(ConfigError, match=f"cannot write {plan.out / name}: it is a folder; remove it"):
        run.run_table(plan, lambda lines: None)


def test_scores_and_spaces_that_cannot_be_written(plan: TablePlan, monkeypatch: pytest.MonkeyPatch) -> None:
    (study,) = plan.studies
    plan.out.mkdir()
    (plan.out / "spaces").touch()
    with pytest.raises(ConfigError, match=f"cannot write {plan.out / 'spaces' / study.name}.yaml: File exists"):
        write_space(study, plan.out / "spaces")
    folder = ScoreFolder(plan.out / "scores", study, "one")
    rows: Any = [("x.png", 0, 1.0), ("y.png", 1, 2.0)]
    folder.write(study.columns[0], study.cells[0], 42, rows)
    monkeypatch.setattr("sctune.files.os.replace", full_disk)
    with pytest.raises(ConfigError, match=r"cannot write .*carpet-seed43.csv: No space left on device"):
        folder.write(study.columns[0], study.cells[0], 43, rows)
    assert len(list(folder.folder.iterdir())) == 1

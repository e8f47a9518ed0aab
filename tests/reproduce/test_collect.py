"""What a table takes from its studies: one that cannot be read, or has failed, is a gap with its reason."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest

from sctune.errors import AllTrialsFailedError, WeightsError
from sctune.reproduce import run
from sctune.reproduce.cells import Asked
from sctune.reproduce.collect import collect, stored_study
from sctune.reproduce.plan import ReproduceOptions, TablePlan, make_plan
from sctune.reproduce.studies import StudyPlan
from sctune.search.space.definition import Space
from sctune.search.study.manifest import DataSpec, SchedulerSpec, SelectionSpec
from sctune.search.study.study import Study
from tests.builders import make_manifest

FAILED = {"failure": {"message": "epoch 2: loss is nan"}}


@pytest.fixture
def plan(make_root: Any) -> TablePlan:
    """Two studies, of carpet and of grid, with two columns each."""
    root = make_root({"mvtec/carpet": {"cut": 12}, "mvtec/grid": {"bent": 12}})
    asked = Asked(categories=("carpet", "grid"), anomalies=(1,))
    options = ReproduceOptions("table1", asked, ("dra", "saliencycut"), (42,), "smoke", root)
    return make_plan(
        ReproduceOptions(**{**vars(options), "out": root.parent / "out", "study_root": root.parent / "studies"})
    )


def store(plan: TablePlan, study: StudyPlan, ends: dict[str, dict[str, Any] | None]) -> Path:
    """A study as a search leaves it. ends: column -> user attributes of its failed trial, None: complete, scored."""
    columns = {column.name: column for column in study.columns}
    config = plan.setup.config(study.columns[0]).override({"data.source": study.place.source, "data.n_anomalies": 1})
    manifest = make_manifest(
        Space.from_dict(study.space, config),
        name=study.name,
        profile="smoke",
        tasks=tuple(study.task(cell, 42) for cell in study.cells),
        sampler="grid",
        scheduler=SchedulerSpec(name="none"),
        trials=len(ends),
        selection=SelectionSpec(mode="test"),
        data=DataSpec(name="carpet", digest="abc"),
        storage_path=str(plan.study_root / "storage"),
        tracking_uri="sqlite:////mlflow.db",
    )
    made = Study.create(plan.study_root, manifest)
    for name, failure in ends.items():
        attrs = {"params": {"variant": name}, **(failure or {})}
        state = optuna.trial.TrialState.COMPLETE if failure is None else optuna.trial.TrialState.FAIL
        value = 0.5 if failure is None else None
        trial = optuna.trial.create_trial(state=state, value=value, user_attrs=attrs)
        made.record._storage.create_new_trial(made.record._study_id, trial)
    made.record.close()
    stored = stored_study(plan.study_root, study)
    assert stored is not None
    for name, failure in ends.items():
        if failure is None:
            rows = [("a.png", 0, 0.1), ("b.png", 0, 0.2), ("c.png", 1, 0.3), ("d.png", 1, 0.15)]
            stored.scores(plan.out).write(columns[name], study.cells[0], 42, rows)
    return made.folder


BOTH: dict[str, dict[str, Any] | None] = {"dra": None, "saliencycut": None}


@pytest.mark.parametrize("damaged", ["study.json", "record.db"])
def test_a_study_that_cannot_be_read_is_a_gap(plan: TablePlan, damaged: str) -> None:
    carpet, grid = plan.studies
    folder = store(plan, carpet, BOTH)
    store(plan, grid, BOTH)
    (folder / damaged).write_bytes(b"{" * 5000)
    said: list[str] = []
    outcome = run.run_table(plan, said.extend)
    (gap,) = outcome.missing[len(plan.missing) :]
    assert gap.cells == ("MVTec AD Carpet n=1 DRA", "MVTec AD Carpet n=1 SaliencyCut")
    assert gap.reason.startswith(f"{folder} cannot be read (") and gap.reason.endswith("remove it to train it again")
    assert f"study {grid.name} is complete" in said
    values = {r.row: r.ours.auroc for r in outcome.results if r.ours and not r.is_mean and r.column.name == "dra"}
    assert values == {"Grid": 0.75}


def test_content_of_the_record_that_makes_no_sense_is_a_gap(plan: TablePlan) -> None:
    carpet, grid = plan.studies
    record = store(plan, carpet, BOTH) / "record.db"
    store(plan, grid, BOTH)
    record.write_bytes(record.read_bytes().replace(b'{"variant', b'xx"variant'))
    scored, (gap,) = collect(plan, {})
    assert {key[0] for key, _ in scored} == {"mvtec/grid"} and "cannot be read" in gap.reason


def test_a_damaged_score_file_is_a_gap_of_its_cell(plan: TablePlan) -> None:
    carpet, grid = plan.studies
    store(plan, carpet, BOTH)
    store(plan, grid, BOTH)
    (path,) = (plan.out / "scores" / carpet.name).glob("dra--*")
    path.write_text("path,label,score\nx,0\n")
    scored, (gap,) = collect(plan, {})
    assert gap.cells == ("MVTec AD Carpet n=1 DRA",) and str(path) in gap.reason and "remove it" in gap.reason
    assert len(scored) == 3


@pytest.mark.parametrize(("attrs", "cause"), [(FAILED, "epoch 2: loss is nan"), ({"x": 1}, "no reason was recorded")])
def test_a_failed_trial_names_the_way_out(plan: TablePlan, attrs: dict[str, Any], cause: str) -> None:
    """It is not run again by the same command, so that must not be advised."""
    carpet, grid = plan.studies
    folder = store(plan, carpet, {"dra": attrs, "saliencycut": None})
    store(plan, grid, BOTH)
    said: list[str] = []
    outcome = run.run_table(plan, said.extend)
    (gap,) = outcome.missing[len(plan.missing) :]
    expected = f"trial 0 of {carpet.name} failed: {cause}; remove {folder} to train it again"
    assert (gap.cells, gap.reason) == (("MVTec AD Carpet n=1 DRA",), expected)
    assert said[:2] == [f"study {carpet.name} has ended", expected]


def test_a_table_of_failures_ends_as_its_first_run_did(plan: TablePlan) -> None:
    for study in plan.studies:
        store(plan, study, {"dra": FAILED, "saliencycut": FAILED})
    with pytest.raises(AllTrialsFailedError, match=r"all 2 trials of .* failed; .*loss is nan; remove .* again"):
        run.run_table(plan, lambda lines: None)
    assert not (plan.out / "table.csv").exists()


@pytest.mark.parametrize("absent", [("vgg16",), ("vgg16", "efficientnet_lite0")])
def test_weights_that_cannot_be_had_are_a_gap_of_their_columns(
    make_root: Any, monkeypatch: pytest.MonkeyPatch, absent: tuple[str, ...]
) -> None:
    """Whatever else a table has goes on, and they are asked for once: where nothing can be had, that takes long."""
    root = make_root({"mvtec/carpet": {"cut": 12}, "mvtec/grid": {"bent": 12}})
    asked = Asked(categories=("carpet", "grid"), anomalies=(1,))
    options = ReproduceOptions("table1", asked, ("kdad", "saliencycut"), (42,), "smoke", root, out=root.parent / "out")
    plan = make_plan(replace(options, study_root=root.parent / "studies"))
    tried: list[str] = []

    def train(plan: TablePlan, study: StudyPlan, *rest: Any) -> bool:
        assert study.trunk is not None
        tried.append(study.trunk[0])
        if study.trunk[0] in absent:
            raise WeightsError(f"cannot download ImageNet weights of {study.trunk[0]}")
        store(plan, study, {column.name: None for column in study.columns})
        return False

    monkeypatch.setattr(run, "_train", train)
    if len(absent) == 2:
        with pytest.raises(WeightsError, match="cannot download ImageNet weights of "):
            run.run_table(plan, lambda lines: None)
        assert sorted(tried) == sorted(absent)
        return
    outcome = run.run_table(plan, lambda lines: None)
    assert sorted(tried) == ["efficientnet_lite0", "efficientnet_lite0", "vgg16"]
    (gap,) = outcome.missing[len(plan.missing) :]
    assert gap.reason == "cannot download ImageNet weights of vgg16"
    assert gap.cells == ("MVTec AD Carpet n=1 KDAD", "MVTec AD Grid n=1 KDAD")
    ours = {(r.row, r.column.name) for r in outcome.results if r.ours and not r.is_mean}
    assert ours == {("Carpet", "saliencycut"), ("Grid", "saliencycut")}


def test_scores_without_their_study_are_not_shown(plan: TablePlan) -> None:
    carpet, grid = plan.studies
    folder = store(plan, carpet, BOTH)
    store(plan, grid, BOTH)
    (folder / "study.json").rename(folder / "removed.json")
    scored, (gap,) = collect(plan, {})
    assert {key[0] for key, _ in scored} == {"mvtec/grid"}
    assert gap.reason == "not finished; run the same command again"

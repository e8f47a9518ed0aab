"""How studies lie in MLflow: what its pages show first, the note of a study, the chart of its best value."""

from __future__ import annotations

import html
import json
import re
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote

import pytest
from optuna.trial import TrialState

from sctune.metrics.objective import AUROC
from sctune.report import OBJECTIVE
from sctune.search.reconcile.check import check_stored
from sctune.search.reconcile.summary import best_points, summary
from sctune.search.reconcile.sync import sync
from sctune.search.study.leaderboard import leaderboard
from sctune.tracking.events import NOTE
from sctune.tracking.note import linked, study_note
from sctune.tracking.server import (
    EXPERIMENT_TAGS,
    ROLE_TAG,
    TRIAL_TAG,
    find_experiment,
    local_database,
    mlflow_client,
)
from sctune.tracking.stored import find_runs, histories
from sctune.tracking.writer import Writer
from tests.mlflow_server import MlflowServer

COMPLETE, PRUNED, FAIL = TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL
CHROMIUM = Path("/usr/bin/chromium")


def told(player: Any, root: Path, uri: str, states: tuple[TrialState, ...] = (COMPLETE, PRUNED, FAIL, COMPLETE)) -> Any:
    """A study that is over, with its summary, as a launch tells it at its end."""
    study = player.make_study(root, uri)
    writer = Writer(uri)
    player.play(study, writer, states)
    from sctune.search.reconcile.recorded import tracking_of

    tracking_of(study, writer).on_study_end("FINISHED", **summary(study, study.record.load(), 0.0123))
    study.end_launch("2026-01-01T00:00:00+00:00", "done")
    assert writer.drain(60) == 0, writer.last_error
    writer.close()
    return study


def runs_of(study: Any) -> dict[int | None, Any]:
    client = mlflow_client(study.manifest.tracking_uri)
    runs = find_runs(client, study.manifest.study_id)
    return {int(run.data.tags[TRIAL_TAG]) if TRIAL_TAG in run.data.tags else None: run for run in runs}


def test_varied_parameters_and_the_objective_come_first(player: Any, tmp_path: Path, local_uri: str) -> None:
    study = told(player, tmp_path / "studies", local_uri)
    runs = runs_of(study)
    for number in range(4):
        data = runs[number].data
        # as MLflow's pages sort: by code units
        assert sorted(data.params)[:2] == ["_patch_count", "_threshold"]
        assert (data.params["_threshold"], data.params["_patch_count"]) == (
            data.params["augment.threshold"],
            data.params["model.patch_count"],
        )
        assert sorted(data.metrics)[0] == AUROC.label
        assert {"study", "state", "stop_reason"} <= set(data.tags)
    client, run_id = mlflow_client(local_uri), runs[0].info.run_id
    curves = [histories(client, [run_id], name)[run_id] for name in (AUROC.label, OBJECTIVE)]
    assert curves[0] == curves[1] != []


def test_the_experiment_says_what_it_is_and_keeps_what_a_user_wrote(local_uri: str) -> None:
    client = mlflow_client(local_uri)
    number = find_experiment(client, local_uri)
    assert EXPERIMENT_TAGS.items() <= client.get_experiment(number).tags.items()
    client.set_experiment_tag(number, NOTE, "mine")
    assert find_experiment(client, local_uri) == number
    assert client.get_experiment(number).tags[NOTE] == "mine"


def test_the_note_of_a_study_links_its_best_trials(player: Any, tmp_path: Path, local_uri: str) -> None:
    study = told(player, tmp_path / "studies", local_uri)
    runs = runs_of(study)
    note, experiment = runs[None].data.tags[NOTE], runs[None].info.experiment_id
    best = leaderboard(study.record.load(), AUROC)[0]
    assert note.startswith(f"**Best: trial {best.number}, selection\\_auroc {best.value:.4f}** &pm; 0.0123")
    links = re.findall(r"^\| \[(\d+)\]\((\S+)\) \|", note, re.MULTILINE)
    assert [int(number) for number, _ in links] == [3, 0, 1], "in order of merit, without the failed one"
    for number, address in links:
        assert address == f"#/experiments/{experiment}/runs/{runs[int(number)].info.run_id}"
    (compared,) = re.findall(r"\]\(#/compare-runs\?(\S+)\)", note)
    ids = json.loads(parse_qs(compared)["runs"][0])
    assert ids == [runs[number].info.run_id for number in (3, 0, 1)]
    assert "2 COMPLETE, 1 PRUNED, 1 FAIL" in note


def test_the_studys_chart_is_its_best_value_so_far(player: Any, tmp_path: Path, local_uri: str) -> None:
    study = told(player, tmp_path / "studies", local_uri)
    run_id = runs_of(study)[None].info.run_id
    trials = study.record.load()
    points = [(point.step, point.value) for point in histories(mlflow_client(local_uri), [run_id], "AUROC")[run_id]]
    assert sorted(points) == [(step, value) for step, value, _ in best_points(trials, AUROC)]
    # two full runs: the first and the last, with a pruned and a failed one between them
    first, last = trials[0].value, trials[3].value
    assert sorted(points) == [(1, first), (2, first), (3, first), (4, last)]
    assert last > first


def test_telling_it_again_changes_nothing_and_the_check_agrees(player: Any, tmp_path: Path, local_uri: str) -> None:
    root = tmp_path / "studies"
    study = told(player, root, local_uri)
    player.save_checkpoint(study, 3)
    assert check_stored(root, study.name).differences == ()
    before = runs_of(study)[None].data
    assert sync(study.name, root, 60).complete
    after = runs_of(study)[None].data
    assert (after.metrics, after.tags) == (before.metrics, before.tags)


def test_runs_of_an_earlier_version_get_what_they_lack(player: Any, tmp_path: Path, local_uri: str) -> None:
    root = tmp_path / "studies"
    study = told(player, root, local_uri)
    player.save_checkpoint(study, 3)
    with closing(sqlite3.connect(local_database(local_uri) or "")) as database, database:
        for table in ("metrics", "latest_metrics"):
            database.execute(f"DELETE FROM {table} WHERE key = 'AUROC'")
        database.execute("DELETE FROM params WHERE key LIKE '\\_%' ESCAPE '\\'")
        database.execute("DELETE FROM tags WHERE key = 'mlflow.note.content'")
    texts = "\n".join(one.text for one in check_stored(root, study.name).differences)
    assert "AUROC at epoch 1" in texts and "_threshold" in texts
    assert sync(study.name, root, 60).complete
    assert check_stored(root, study.name).differences == ()
    runs = runs_of(study)
    assert set(runs) == {None, 0, 1, 2, 3}
    assert NOTE in runs[None].data.tags and "AUROC" in runs[None].data.metrics


class Row:
    def __init__(self, number: int, state: str, value: float | None, params: dict[str, Any]) -> None:
        self.number, self.state, self.value, self.params = number, state, value, params
        self.values = {1: 0.5}


def test_a_note_keeps_what_people_named_as_text() -> None:
    evil = "a|b<img src=x>[c](javascript:x)`d`\nnext"
    note = study_note("name", [Row(0, "COMPLETE", 0.5, {"model.heads": evil})], None, [("data", evil)], AUROC)
    assert "<" not in note
    assert not re.search(r"(?<!\\)\]\(javascript", note)
    (row,) = [line for line in note.splitlines() if line.startswith("| [0]")]
    assert len(re.findall(r"(?<!\\)\|", row)) == 6, "five cells"


def test_a_study_without_a_full_run_has_a_note_too() -> None:
    assert study_note("name", [], None, [], AUROC).startswith("No full run yet.")
    note = study_note("name", [Row(0, "PRUNED", 0.4, {}), Row(1, "FAIL", None, {})], None, [], AUROC)
    assert note.startswith("No full run yet.") and "1 PRUNED, 1 FAIL" in note
    # a trial whose run is not known is not linked to another one
    assert "[0](#)" in linked(note, "1", lambda number: None)


@pytest.mark.slow
@pytest.mark.skipif(not CHROMIUM.is_file(), reason=f"no {CHROMIUM}; apt-get install chromium")
def test_mlflows_pages_begin_with_the_varied_parameters(
    player: Any, tmp_path: Path, mlflow_server: MlflowServer
) -> None:
    from playwright.sync_api import expect, sync_playwright

    study = told(player, tmp_path / "studies", mlflow_server.uri)
    runs = runs_of(study)
    experiment = runs[None].info.experiment_id
    ids = [run.info.run_id for run in runs.values() if run.data.tags[ROLE_TAG] == "trial"]
    runs_part, experiments_part = (quote(json.dumps(listed)) for listed in (ids, [experiment]))
    address = f"{mlflow_server.uri}/#/compare-runs?runs={runs_part}&experiments={experiments_part}"
    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1800, "height": 1200})
        page.goto(address)
        expect(page.get_by_text("Comparing 4 Runs")).to_be_visible(timeout=60_000)
        chosen = page.locator("[class*=select-selection-item-content]")
        expect(chosen).to_have_count(3, timeout=30_000)
        # of all that these trials share, the one that differs, under both its names, and the objective
        assert chosen.all_inner_texts() == ["_threshold", "augment.threshold", "AUROC"]
        page.goto(f"{mlflow_server.uri}/#/experiments/{experiment}/runs/{runs[None].info.run_id}")
        link = page.get_by_role("link", name=re.compile("Compare the"))
        expect(link).to_be_visible(timeout=60_000)
        assert html.unescape(link.get_attribute("href") or "").startswith("#/compare-runs?")
        expect(page.get_by_text("Best: trial 3")).to_be_visible()
        browser.close()

"""References in MLflow: a run each, nested in the study's; what is lost or tampered with is named and mended."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState

from sctune.report import OBJECTIVE, EpochReport
from sctune.search.reconcile.check import check_stored
from sctune.search.reconcile.differences import agreement_lines
from sctune.search.reconcile.sync import sync
from sctune.search.study.references import stored_name
from sctune.search.study.study import MANIFEST, Study
from sctune.tracking.events import NOTE
from sctune.tracking.runs import FAILURE
from sctune.tracking.server import PARENT_TAG, REFERENCE_TAG, ROLE_TAG, mlflow_client
from sctune.tracking.stored import find_runs

NAME = "played"
STATES = (TrialState.COMPLETE, TrialState.PRUNED)
VALUE, TIME = 0.875, 1_700_000_500_000


class Referred:
    """A study that was told MLflow before its references were: a method that is here, and one that failed."""

    def __init__(self, player: Any, root: Path, uri: str) -> None:
        self.root, self.client = root, mlflow_client(uri)
        player.played_study(root, uri, STATES)
        path = root / NAME / MANIFEST
        path.write_text(json.dumps(json.loads(path.read_text()) | {"references": ["deviation", "gone"]}))
        self.tell("deviation", {"report": self.report()})
        self.tell("gone", {"failure": {"kind": "ConfigError", "message": "no such method"}})

    @staticmethod
    def report() -> dict[str, Any]:
        return EpochReport(1, 1, {OBJECTIVE: VALUE, "seconds": 3.0}, {"seed42": [0.5]}).to_dict()

    def tell(self, name: str, content: dict[str, Any]) -> None:
        study = Study.open(self.root, NAME)
        (task,) = study.manifest.tasks
        study.record.tell_reference(stored_name(name, task.key), {**content, "time": TIME})
        study.record.close()

    def lines(self) -> list[str]:
        # the images are not here
        lines = agreement_lines(NAME, check_stored(self.root, NAME))
        return [line for line in lines if not line.startswith("the images were not compared")]

    def sync(self) -> None:
        result = sync(NAME, self.root, 60)
        assert result.complete, result

    def runs(self) -> dict[str | None, Any]:
        """Name of a reference -> its run; None: the study's."""
        study = Study.open(self.root, NAME)
        found = find_runs(self.client, study.manifest.study_id)
        named = [(run.data.tags.get(REFERENCE_TAG), run) for run in found if run.data.tags[ROLE_TAG] != "trial"]
        assert len({name for name, _ in named}) == len(named), "a reference has two runs"
        return dict(named)


@pytest.fixture
def referred(player: Any, tmp_path: Path, local_uri: str) -> Referred:
    return Referred(player, tmp_path / "studies", local_uri)


def test_they_have_runs_like_trials(referred: Referred) -> None:
    assert referred.lines() == [
        f"reference deviation: MLflow has no run of it; `sctune sync {NAME}`",
        f"reference gone: MLflow has no run of it; `sctune sync {NAME}`",
    ]
    referred.sync()
    assert referred.lines() == ["record and MLflow agree: 2 trials, 2 references, 20 points"]
    runs = referred.runs()
    parent, run, failed = runs[None], runs["deviation"], runs["gone"]
    assert (run.info.run_name, run.info.status, run.data.tags[ROLE_TAG]) == (
        "reference-deviation", "FINISHED", "reference",
    )  # fmt: skip
    assert run.data.tags[PARENT_TAG] == failed.data.tags[PARENT_TAG] == parent.info.run_id
    assert run.data.metrics == {"AUROC": VALUE, OBJECTIVE: VALUE, "seconds": 3.0}
    assert run.data.params["method.name"] == "deviation" and run.data.tags["value"] == repr(VALUE)
    assert (failed.info.status, failed.data.tags["state"], failed.data.metrics) == ("FAILED", "FAIL", {})
    assert [file.path for file in referred.client.list_artifacts(failed.info.run_id)] == [FAILURE]
    assert parent.data.metrics["reference/deviation"] == VALUE
    assert parent.data.tags["best_reference"] == "deviation" and parent.data.tags["best_reference_value"] == repr(VALUE)
    note = parent.data.tags[NOTE].replace("\\", "")
    assert "- beside the trials: reference deviation: AUROC 0.8750" in note and parent.data.tags["verdict"] in note


def test_what_was_tampered_with_is_named_and_mended(referred: Referred) -> None:
    referred.sync()
    before = referred.runs()
    run = before["deviation"]
    referred.client.log_metric(run.info.run_id, OBJECTIVE, 0.99, timestamp=5, step=1)
    stray = referred.client.create_run(run.info.experiment_id, tags={**run.data.tags, REFERENCE_TAG: "other"})
    referred.client.delete_run(before["gone"].info.run_id)
    shown = referred.lines()
    assert shown == [
        f"run {stray.info.run_id} belongs to reference other, which the record does not hold; `sctune sync {NAME}`",
        f"reference deviation: MLflow has 1 other point ({OBJECTIVE} at epoch 1 2 times); `sctune sync {NAME}`",
        f"reference gone: MLflow has no run of it; `sctune sync {NAME}`",
    ]
    referred.sync()
    after = referred.runs()
    assert after.keys() == {None, "deviation", "gone"} and after["deviation"].info.run_id != run.info.run_id
    assert [p.value for p in referred.client.get_metric_history(after["deviation"].info.run_id, OBJECTIVE)] == [VALUE]


def test_one_that_failed_and_was_run_again_keeps_its_run(referred: Referred) -> None:
    referred.sync()
    failed = referred.runs()["gone"].info.run_id
    referred.tell("gone", {"report": referred.report()})
    assert any("reference gone: MLflow says FAIL" in line for line in referred.lines())
    referred.sync()
    run = referred.runs()["gone"]
    assert (run.info.run_id, run.info.status, run.data.tags["state"]) == (failed, "FINISHED", "COMPLETE")
    assert referred.lines() == ["record and MLflow agree: 2 trials, 2 references, 22 points"]

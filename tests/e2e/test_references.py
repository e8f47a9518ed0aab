"""One search with references: killed in their midst, resumed, shown everywhere, and one of them confirmed and deployed.

Beside those of sctune it has three of a package: one that is done at once, one that waits, one that fails.
"""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sctune.config import method_entries, methods
from sctune.deploy.locate import open_model
from sctune.metrics.objective import AUROC
from sctune.search.study.splits import selection_labels, study_splits
from sctune.search.study.study import Study
from sctune.tracking.server import REFERENCE_TAG, mlflow_client
from sctune.tracking.stored import find_runs

NAME = "beside"
TINT = Path(__file__).parents[1] / "methods" / "tint"
PACKAGE = """
import os, pathlib, time
from dataclasses import replace
import tint
from tint.method import TintMethod

class PlainSection(tint.TintSection):
    name: str = "plain"

class WaitsSection(tint.TintSection):
    name: str = "waits"

class BrokenSection(tint.TintSection):
    name: str = "broken"

class Waits(TintMethod):
    def run_epoch(self, epoch, should_stop):
        while not pathlib.Path(os.environ["SCTUNE_TEST_GO"]).exists():
            time.sleep(0.1)
        return super().run_epoch(epoch, should_stop)

class Broken(TintMethod):
    def prepare(self, images):
        raise ValueError("the weights are impossible")

def entry(section, implementation):
    name = section.model_fields["name"].default
    return replace(
        tint.ENTRY, name=name, section=section, implementation=implementation, hyperparameters={}, published={},
        trains=False, reference=True,
    )

PLAIN = entry(PlainSection, "tint.method:TintMethod")
WAITS = entry(WaitsSection, "plain:Waits")
BROKEN = entry(BrokenSection, "plain:Broken")
"""
OWN = ("plain", "waits", "broken")


@pytest.fixture(scope="module", autouse=True)
def installed(tmp_path_factory: pytest.TempPathFactory, sctune: Any) -> Iterator[Path]:
    """The package, for this process and for those of the command; gives the file that `waits` waits for."""
    site = tmp_path_factory.mktemp("site")
    shutil.copytree(TINT, site / "tint", ignore=shutil.ignore_patterns("__pycache__"))
    (site / "plain.py").write_text(PACKAGE)
    info = site / "plain-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: plain\nVersion: 1.0\n")
    points = "\n".join(f"{name} = plain:{name.upper()}" for name in OWN)
    (info / "entry_points.txt").write_text(f"[sctune.methods]\n{points}\n")
    go = site / "go"
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(site))
        patch.setitem(
            sctune.env, "PYTHONPATH", os.pathsep.join([str(site), *filter(None, [os.environ.get("PYTHONPATH")])])
        )
        patch.setitem(sctune.env, "SCTUNE_TEST_GO", str(go))
        yield go
    for name in OWN:
        methods.forget(name)


def told(sctune: Any) -> dict[str, Any]:
    """Name of a reference -> what the record holds of it; empty before the study is there."""
    if not (sctune.study(NAME) / "study.json").is_file():
        return {}
    study = Study.open(sctune.home / "studies", NAME)
    try:
        return {name.partition(":")[0]: content for name, content in study.record.load_references().items()}
    finally:
        study.record.close()


@pytest.fixture(scope="module")
def killed(sctune: Any, smoke: list[str], wait_until: Callable[..., None]) -> dict[str, Any]:
    """A search that was killed while a reference was run; what the record then held of them."""
    more = ["--references", "--name", NAME, "--trials", "1", "--scheduler", "none", "--max-concurrent", "2"]
    with sctune.started(*smoke, *more) as process:
        wait_until(lambda: {"plain", "broken"} <= told(sctune).keys(), 200, "the first references")
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate(timeout=60)
    return told(sctune)


@pytest.fixture(scope="module")
def ended(sctune: Any, killed: dict[str, Any], installed: Path) -> Any:
    """The same, gone on to its end; what the command printed."""
    assert "waits" not in killed and sctune.record(NAME) == [], "they come before the first trial"
    unfinished = sctune("status", NAME).stdout.splitlines()
    assert "reference waits has not been run yet" in unfinished
    assert unfinished[-1].startswith("no full run to compare with the best reference (")
    installed.touch()
    return sctune("resume", NAME)


@pytest.fixture(scope="module")
def document(sctune: Any, ended: Any) -> dict[str, Any]:
    found: dict[str, Any] = sctune.json("status", NAME)
    return found


def test_a_resume_runs_what_is_missing_and_the_search_goes_on(
    sctune: Any, killed: dict[str, Any], ended: Any, document: dict[str, Any]
) -> None:
    now = told(sctune)
    assert now["plain"] == killed["plain"], "what was done is not done again"
    assert now["waits"]["report"]["scores"] == now["plain"]["report"]["scores"]
    assert now["broken"]["time"] > killed["broken"]["time"], "what failed is tried again"
    assert [trial["state"] for trial in document["trials"]] == ["COMPLETE"]
    assert "reference broken was left out: the weights are impossible" in ended.stderr
    assert "reference plain" not in ended.stderr and "reference waits: AUROC " in ended.stderr
    log = (sctune.study(NAME) / "logs" / "driver.log").read_text()
    assert "ValueError: the weights are impossible" in log and "Traceback" not in ended.stderr


def test_the_last_line_compares_the_best_trial_with_the_best_reference(
    sctune: Any, ended: Any, document: dict[str, Any]
) -> None:
    rows = {one["name"]: one for one in document["references"]}
    assert rows.keys() >= set(OWN) and rows["broken"]["failure"]["kind"] == "ValueError"
    values = {name: one["value"] for name, one in rows.items() if one["value"] is not None}
    best = max(values, key=lambda name: values[name])
    last = ended.stdout.splitlines()[-1]
    found = document["best_vs_reference"]
    word = "beats" if found["beats"] else "does not beat"
    word += " every reference:" if found["unbeaten"] else ""
    assert last.startswith(f"the best trial (0) {word} the best reference ({best} {values[best]:.4f})")
    assert f"{found['difference']:+.4f} +- {found['se']:.4f}" in last
    assert sctune("status", NAME).stdout.splitlines()[-1] == last
    # from the raw scores of both
    study = Study.open(sctune.home / "studies", NAME)
    ((key, truth),) = selection_labels(study.manifest, study_splits(study.manifest)).items()
    (trial,) = study.record.load()
    study.record.close()
    rival = told(sctune)[best]["report"]["scores"][key]
    assert values[best] == AUROC.value(truth, rival)
    difference, error = AUROC.difference(truth, trial.user_attrs["scores"][key], rival)
    assert (found["difference"], found["se"]) == (pytest.approx(difference), pytest.approx(error))


def test_each_has_a_run_beside_those_of_the_trials(
    sctune: Any, document: dict[str, Any], runs_of: Callable[[str], dict[int | None, Any]]
) -> None:
    study_id = Study.open(sctune.home / "studies", NAME).manifest.study_id
    client = mlflow_client(document["tracking_uri"])
    found = [run for run in find_runs(client, study_id) if REFERENCE_TAG in run.data.tags]
    runs = {run.data.tags[REFERENCE_TAG]: run for run in found}
    assert len(found) == len(runs) and runs.keys() == {one["name"] for one in document["references"]}
    for one in document["references"]:
        run = runs[one["name"]]
        assert run.info.status == ("FAILED" if one["failure"] else "FINISHED")
        assert run.data.metrics.get("AUROC") == one["value"]
        assert run.data.params["method.name"] == one["name"]
    parent = client.get_run(document["parent_run_id"] or runs["plain"].data.tags["mlflow.parentRunId"])
    assert parent.data.metrics["reference/plain"] == runs["plain"].data.metrics["AUROC"]
    assert f"record and MLflow agree: 1 trials, {len(runs)} references" in sctune("status", NAME, "--check").stdout


def test_the_report_has_a_part_for_them(sctune: Any, ended: Any, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    sctune.here("report", NAME, "--out", page)
    part = page.read_text().partition('id="references"')[2].partition("<section")[0]
    assert all(name in part for name in OWN) and "ValueError: the weights are impossible" in part
    assert ended.stdout.splitlines()[-1][4:] in part


@pytest.fixture(scope="module")
def confirmed(sctune: Any, ended: Any) -> dict[str, Any]:
    found: dict[str, Any] = sctune.json("confirm", NAME, "--top", "1", "--n-seeds", "1")
    return found


@pytest.mark.slow
def test_confirm_trains_them_and_compares_the_winner_with_each(
    sctune: Any, confirmed: dict[str, Any], document: dict[str, Any]
) -> None:
    ranked = {one["name"]: one for one in confirmed["ranking"]}
    values = {one["name"]: one["value"] for one in document["references"]}
    # `waits` is the same method as `plain`, under another name
    assert {"trial-0", "plain", "waits"} <= ranked.keys() and "broken" not in ranked
    assert set(confirmed["references"]) == {name for name in values if values[name] is not None}
    assert ranked["plain"]["search_value"] == values["plain"] and ranked["plain"]["trial"] is None
    assert any("reference broken is no candidate" in note for note in confirmed["notes"])
    winner, test = confirmed["ranking"][0]["name"], confirmed["test"]
    rivals = {one["name"]: one for one in test["rivals"]}
    untrained = set(confirmed["references"])
    first = "trial-0" if winner in untrained else test["against"]
    assert rivals.keys() == {first, *untrained} - {winner} and test["against"] == test["rivals"][0]["name"]
    for one in rivals.values():
        gap = test["winner"]["value"] - one["estimate"]["value"]
        assert one["difference"]["value"] == pytest.approx(gap)


@pytest.mark.slow
def test_another_tested_candidate_than_the_winner_can_be_deployed(
    sctune: Any, confirmed: dict[str, Any], document: dict[str, Any], image_folder: Path
) -> None:
    test, winner = confirmed["test"], confirmed["ranking"][0]["name"]
    refused = sctune("deploy", NAME, "--candidate", "broken", code=2).stderr
    assert "--candidate 'broken': the confirmation did not score it on the test images" in refused
    rival = test["rivals"][-1]
    done = sctune("deploy", NAME, "--candidate", rival["name"], "--name", "other", "--force", "a test")
    assert f"warning: {rival['name']} is deployed in the place of {winner}" in done.stderr
    model = open_model("models:/other@champion", document["tracking_uri"], "cpu")
    pictures = sorted((image_folder / "test").rglob("*.png"))[:4]
    assert np.isfinite(model.score([model.prepare(path).pixels for path in pictures])).all()
    version = mlflow_client(document["tracking_uri"]).get_model_version_by_alias("other", "champion")
    assert "asked for by name after the test was opened" in version.description
    assert f"test AUROC of this model: {rival['models'][0]['test_auroc']:.4f}" in version.description


def test_sctunes_own_are_among_them(document: dict[str, Any]) -> None:
    known = {entry.name for entry in method_entries() if entry.reference}
    assert {one["name"] for one in document["references"]} == known

"""One small search through the command line, everything that must agree with it afterwards, and its `figures`."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import numpy as np
import pytest
import yaml
from PIL import Image

NAME = "main"
EPOCHS = 4
FILES = ("features.png", "features.csv", "features.json", "views.png", "pseudo.png", "gallery.png")
KEYS = {"study", "best_trial", "best_value", "best_params", "trials", "tracking_uri", "parent_run_id"}

SCORE = """
import json, os, sys
import mlflow
root, paths = sys.argv[2], json.load(sys.stdin)
model = mlflow.pyfunc.load_model(sys.argv[1])
rows = {"image": [open(os.path.join(root, path), "rb").read() for path in paths]}
import pandas as pd
print(json.dumps(model.predict(pd.DataFrame(rows)).iloc[:, 0].tolist()))
"""


@pytest.fixture(scope="module")
def study(sctune: Any, smoke: list[str]) -> dict[str, Any]:
    """One trial at a time: the points and ASHA's answers are then always the same.

    Profile smoke trains the heads alone, so that the features would be those before training.
    """
    more = ["--name", NAME, "--max-concurrent", "1", "--keep-best", "1", "--set", "model.freeze=10"]
    document: dict[str, Any] = sctune.json(*smoke, *more)
    return document


@pytest.fixture(scope="module")
def best(study: dict[str, Any]) -> dict[str, Any]:
    trial: dict[str, Any] = study["trials"][study["best_trial"]]
    return trial


def test_the_document_tells_the_whole_study(study: dict[str, Any], best: dict[str, Any]) -> None:
    assert study.keys() >= KEYS
    assert study["study"] == NAME
    assert [trial["number"] for trial in study["trials"]] == [0, 1, 2, 3]
    assert study["trials"][0]["params"] == {"augment.threshold": 0.4, "model.patch_count": 4}
    assert (study["best_value"], study["best_params"]) == (best["value"], best["params"])
    full = [trial["value"] for trial in study["trials"] if trial["state"] == "COMPLETE"]
    assert study["best_value"] == max(full)
    assert study["stopped"] is False


def test_states_are_the_truth(study: dict[str, Any], sctune: Any) -> None:
    assert {trial["state"] for trial in study["trials"]} == {"COMPLETE", "PRUNED"}
    for trial in study["trials"]:
        epochs = [int(epoch) for epoch in trial["values"]]
        assert epochs == list(range(1, len(epochs) + 1))
        assert trial["state"] == ("COMPLETE" if len(epochs) == EPOCHS else "PRUNED")
        assert trial["value"] == trial["values"][str(len(epochs))]
        assert 0 <= trial["value"] <= 1
    for stored, trial in zip(sctune.record(NAME), study["trials"], strict=True):
        assert (stored.number, stored.state.name, stored.value) == (trial["number"], trial["state"], trial["value"])
        assert {str(epoch): value for epoch, value in stored.intermediate_values.items()} == trial["values"]


def test_status_and_list_agree(study: dict[str, Any], sctune: Any) -> None:
    again = sctune.json("status", NAME)
    for key in ("study", "best_trial", "best_value", "best_params", "best_value_se", "trials", "tracking_uri"):
        assert again[key] == study[key], key
    shown = sctune("status", NAME).stdout
    assert f"best: trial {study['best_trial']}" in shown
    assert "two paired standard errors" in shown
    listed = sctune.json("list")["studies"]
    assert {"study": NAME, "space": "threshold_patch", "trials": 4}.items() <= next(
        row for row in listed if row["study"] == NAME
    ).items()
    assert NAME in sctune("list").stdout


def test_the_winning_configuration_trains_to_the_same_value(
    study: dict[str, Any], best: dict[str, Any], sctune: Any, tmp_path: Path, runs_of: Any
) -> None:
    file = tmp_path / "best.yaml"
    file.write_text(sctune("best", NAME).stdout)
    tree = yaml.safe_load(file.read_text())
    assert tree["augment"]["threshold"] == best["params"]["augment.threshold"]
    metrics = sctune.json("train", "--config", file)["metrics"]
    assert metrics["selection_auroc"] == study["best_value"]
    # the loss too: the very same run, not only one of the same rank
    assert metrics["loss"] == runs_of(NAME)[best["number"]].data.metrics["loss"]


def test_mlflow_holds_one_run_per_trial(
    study: dict[str, Any], runs_of: Callable[[str], dict[int | None, Any]], history: Any, sctune: Any
) -> None:
    runs = runs_of(NAME)
    assert runs.keys() == {None, 0, 1, 2, 3}
    assert runs[None].info.run_id == study["parent_run_id"]
    assert runs[None].info.status == "FINISHED"
    assert "mlflow.parentRunId" not in runs[None].data.tags
    manifest = json.loads((sctune.study(NAME) / "study.json").read_text())
    for trial in study["trials"]:
        run = runs[trial["number"]]
        tags, params = run.data.tags, run.data.params
        assert tags["mlflow.parentRunId"] == study["parent_run_id"]
        assert run.info.status == {"COMPLETE": "FINISHED", "PRUNED": "KILLED"}[trial["state"]]
        assert (tags["state"], tags["stop_reason"]) == (trial["state"], trial["stop_reason"])
        assert (tags["data_digest"], tags["seed"]) == (manifest["data"]["digest"], "42")
        assert tags["version.torch"] == manifest["versions"]["torch"]
        assert {name: float(params[name]) for name in trial["params"]} == trial["params"]
        assert params["model.backbone"] == "efficientnet_lite0"
        expected = [(int(epoch), value) for epoch, value in trial["values"].items()]
        assert history(run.info.run_id, "selection_auroc") == expected
        assert [step for step, _ in history(run.info.run_id, "loss")] == [step for step, _ in expected]


def test_pictures_and_tables_are_in_mlflow(study: dict[str, Any], runs_of: Any, sctune: Any, tmp_path: Path) -> None:
    from sctune.tracking.server import mlflow_client

    client = mlflow_client(study["tracking_uri"])
    runs = runs_of(NAME)
    folder = Path(client.download_artifacts(runs[None].info.run_id, "study", str(tmp_path)))
    names = {path.name for path in folder.iterdir()}
    plots = {f"{name}.html" for name in ("history", "importance", "slice", "parallel_coordinate")}
    assert names >= plots | {"leaderboard.csv", "leaderboard.md", "search.png", "learning_curves.png"}
    # a head and four trials; the winner first
    lines = (folder / "leaderboard.csv").read_text().splitlines()
    assert len(lines) == 5
    assert lines[1].split(",")[lines[0].split(",").index("trial")] == str(study["best_trial"])
    best = Path(client.download_artifacts(runs[study["best_trial"]].info.run_id, "best", str(tmp_path)))
    for name in ("roc.png", "scores.png", "pseudo_anomalies.png"):
        with Image.open(best / name) as picture:
            assert min(picture.size) > 200
            assert len(picture.convert("RGB").getcolors(2**24) or []) > 10
    assert (best / "model.safetensors").stat().st_size > 100_000


def test_only_the_best_checkpoints_stay(study: dict[str, Any], sctune: Any) -> None:
    kept = [path for path in (sctune.study(NAME) / "trials").iterdir() if any(path.iterdir())]
    assert [path.name for path in kept] == [f"{study['best_trial']:05d}"]
    assert [path.name for path in kept[0].iterdir()] == [f"epoch-{EPOCHS:04d}-attempt-01-launch-01"]
    assert not (sctune.study(NAME) / "ray").exists()


def test_the_registered_model_gives_the_stored_scores(
    study: dict[str, Any], sctune: Any, image_folder: Path, tmp_path: Path
) -> None:
    from sctune.search.study.splits import study_splits
    from sctune.search.study.study import Study
    from sctune.tracking.server import mlflow_client

    client = mlflow_client(study["tracking_uri"])
    made = client.get_model_version_by_alias(NAME, "candidate")
    assert made.tags["trial"] == str(study["best_trial"])
    (meta,) = (sctune.home / "mlartifacts").glob(f"models/{made.source.rsplit('/', 2)[-2]}/**/meta.json")
    stored = json.loads(meta.read_text())["selection_scores"]
    scored = subprocess.run(
        [sys.executable, "-c", SCORE, f"models:/{NAME}@candidate", str(image_folder)],
        input=json.dumps(list(stored)),
        env={
            **sctune.env,
            "MLFLOW_TRACKING_URI": study["tracking_uri"],
            "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
        },
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert scored.returncode == 0, scored.stderr
    values = json.loads(scored.stdout.splitlines()[-1])
    assert values == list(stored.values())
    # and these are the scores that the trial itself reported, of selection images alone
    (trained,) = sctune.record(NAME)[study["best_trial"]].user_attrs["scores"].values()
    assert sorted(values) == pytest.approx(sorted(trained), abs=1e-5)
    (split,) = study_splits(Study.open(sctune.home / "studies", NAME).manifest).values()
    assert set(stored) <= {file.path for file in split.selection}
    assert not set(stored) & {file.path for file in (*split.test, *split.train)}


def test_the_cache_is_listed_and_cleared(study: dict[str, Any], sctune: Any) -> None:
    before = sctune.json("cache", "list")
    assert before["entries"] >= 1
    assert before["bytes"] > 64 * 64 * 3 * 50
    sctune("cache", "clear")
    assert sctune.json("cache", "list")["entries"] == 0
    # a study does not need it: images are decoded again when they are asked for
    assert sctune.json("status", NAME)["best_trial"] == study["best_trial"]


def test_a_name_is_used_once(study: dict[str, Any], sctune: Any, smoke: list[str]) -> None:
    done = sctune.here(*smoke, "--name", NAME, code=2)
    assert done.stdout == ""
    assert done.stderr.startswith(f"sctune: study '{NAME}' exists")
    assert f"sctune resume {NAME}" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.fixture(scope="module")
def report(study: dict[str, Any], sctune: Any) -> dict[str, Any]:
    """The figures of the best trial."""
    document: dict[str, Any] = sctune.json("figures", NAME)
    return document


def test_the_best_trial_gets_pictures_that_show_something(
    study: dict[str, Any], report: dict[str, Any], sctune: Any
) -> None:
    best = study["trials"][study["best_trial"]]
    assert (report["trial"], report["value"], report["epoch"]) == (best["number"], best["value"], 4)
    assert (report["test_pool_opened"], report["warnings"], report["mode"]) == (False, [], "extra")
    folder = sctune.study(NAME) / "figures"
    assert report["files"] == [str(folder / f"trial-{best['number']:04d}-{name}") for name in FILES]
    for file in report["files"]:
        if file.endswith(".png"):
            with Image.open(file) as picture:
                assert min(picture.size) > 300
                assert np.asarray(picture.convert("L")).std() > 15, file
    assert not list(folder.glob(".*")), "nothing half-written stays"


def test_the_points_name_their_files_and_no_test_file(report: dict[str, Any], sctune: Any) -> None:
    from sctune.search.study.splits import study_splits
    from sctune.search.study.study import Study

    with Path(report["files"][1]).open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    shown = {group: {row["file"] for row in rows if row["group"] == group} for group in report["images"]}
    assert {group: len(files) for group, files in shown.items()} == report["images"]
    assert min(report["images"].values()) >= 3
    (split,) = study_splits(Study.open(sctune.home / "studies", NAME).manifest).values()
    lists = {name: {file.path for file in getattr(split, name)} for name in ("train", "selection", "test")}
    assert shown["normal"] | shown["unseen"] <= lists["selection"]
    assert shown["seen"] <= lists["train"]
    assert not (shown["normal"] | shown["seen"] | shown["unseen"]) & lists["test"]
    assert [row["before_x"] for row in rows] != [row["after_x"] for row in rows]


def test_the_figures_are_in_mlflow_at_the_trial_and_at_the_study(
    report: dict[str, Any], runs_of: Callable[[str], dict[int | None, Any]]
) -> None:
    for key, run in runs_of(NAME).items():
        folder = Path(urlparse(run.info.artifact_uri).path) / "figures"
        if key in (None, report["trial"]):
            assert {path.name for path in folder.iterdir()} == {Path(file).name for file in report["files"]}
            for file in report["files"]:
                assert (folder / Path(file).name).read_bytes() == Path(file).read_bytes()
        else:
            assert not folder.exists()


def test_a_trial_without_checkpoint_is_one_line_that_names_those_that_have_one(
    study: dict[str, Any], sctune: Any, tmp_path: Path
) -> None:
    loser = next(trial["number"] for trial in study["trials"] if trial["number"] != study["best_trial"])
    done = sctune("figures", NAME, "--trial", loser, "--out", tmp_path / "none", code=2)
    assert done.stderr.startswith(f"sctune: trial {loser} has no checkpoint any more")
    assert done.stderr.strip().endswith(f"--trial: {study['best_trial']}")
    assert (done.stderr.count("\n"), done.stdout) == (1, "")
    assert not (tmp_path / "none").exists()


def test_a_store_that_is_gone_costs_one_warning(report: dict[str, Any], sctune: Any, tmp_path: Path) -> None:
    path = sctune.study(NAME) / "study.json"
    kept = path.read_text()
    try:
        path.write_text(json.dumps(json.loads(kept) | {"tracking_uri": f"sqlite:///{tmp_path / 'gone.db'}"}))
        done = sctune("figures", NAME, "--out", tmp_path / "out", "--limit", "8")
    finally:
        path.write_text(kept)
    assert [line for line in done.stderr.splitlines() if line.startswith("warning: ")] == [
        f"warning: the figures are not in MLflow: its store {tmp_path / 'gone.db'} is gone"
    ]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {Path(file).name for file in report["files"]}
    assert not (tmp_path / "gone.db").exists()

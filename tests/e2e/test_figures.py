"""`sctune figures` on a small search that was really run."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import numpy as np
import pytest
from PIL import Image

NAME = "figures"
FILES = ("features.png", "features.csv", "features.json", "pseudo.png", "gallery.png")


@pytest.fixture(scope="module")
def study(sctune: Any, smoke: list[str]) -> dict[str, Any]:
    # profile smoke trains the heads alone, so that the features would be those before training
    more = ["--name", NAME, "--keep-best", "1", "--max-concurrent", "1", "--trials", "2", "--set", "model.freeze=10"]
    document: dict[str, Any] = sctune.json(*smoke, *more)
    return document


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
    loser = 1 - study["best_trial"]
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

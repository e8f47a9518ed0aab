"""Files of the first version, made by the code of commit 882237f (see golden/format1/make.py), are read for ever.

And a file of a newer version is refused with one line that says so, not with whatever its reader stumbles over.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from sctune.cli import app
from sctune.config import TrialConfig, load_profile, read_yaml
from sctune.data.decode import Decoding
from sctune.data.images import ImageCache
from sctune.data.manifest import read_manifest
from sctune.errors import SctuneError
from sctune.search.reconcile.recorded import past_trial
from sctune.search.reconcile.repair import remove_journal
from sctune.search.space.definition import load_space
from sctune.search.study.driver import running_driver
from sctune.search.study.study import Study
from sctune.trial.checkpoint import CheckpointName, TrialStore

GOLDEN = Path(__file__).parent / "golden" / "format1"
NAME = "first"


@pytest.fixture
def files(tmp_path: Path) -> Path:
    shutil.copytree(GOLDEN, tmp_path / "f")
    return tmp_path / "f"


def command(files: Path, *words: str) -> str:
    done = CliRunner().invoke(app, [*words, "--study-root", str(files / "studies")], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def test_status_shows_a_study_of_the_first_version(files: Path) -> None:
    shown: dict[str, Any] = json.loads(command(files, "status", NAME, "--json"))
    assert {row["number"]: row["state"] for row in shown["trials"]} == {
        0: "COMPLETE",
        1: "PRUNED",
        2: "FAIL",
        3: "RUNNING",
    }
    assert (shown["best_trial"], shown["best_value"]) == (0, 0.85)
    assert shown["trials"][0]["values"]["3"] == 0.7
    assert [launch["reason"] for launch in shown["launches"]] == ["stopped"]
    # its driver.json was left by a kill
    assert shown["driver"] is None
    assert NAME in command(files, "list")


def test_best_is_a_configuration(files: Path) -> None:
    tree = yaml.safe_load(command(files, "best", NAME))
    assert tree["format_version"] == 1
    config = TrialConfig.load(tree)
    assert (
        config.augment.threshold
        == json.loads(command(files, "status", NAME, "--json"))["best_params"]["augment.threshold"]
    )


def test_a_configuration_file_of_the_first_version_is_read(files: Path) -> None:
    """It had no version in it, and its images are decoded as they were then."""
    then = {"data.range": "container", "data.page": 1, "data.alpha": "drop", "data.reduce": False}
    assert TrialConfig.load(read_yaml(files / "config.yaml")) == load_profile("smoke").override(then)


def test_the_journal_of_the_first_version_goes_since_the_record_holds_what_it_told(files: Path) -> None:
    folder = files / "studies" / NAME
    told = [json.loads(line)["event"] for line in (folder / "tracking.jsonl").read_text().splitlines()]
    reports = {(event["trial"], event["step"], event["time"]) for event in told if event["kind"] == "report"}
    study = _open_study(files)
    trials = study.record.load()
    study.record.close()
    recorded = {(t.number, epoch, one["time"]) for t in trials for epoch, one in past_trial(t).reports.items()}
    assert reports and reports <= recorded
    remove_journal(folder)
    assert list(folder.glob("tracking*")) == []
    assert (folder / "study.json").is_file() and (folder / "record.db").is_file()


def test_a_checkpoint_is_loaded(files: Path) -> None:
    saved = TrialStore(str(files / "studies" / NAME), 3).load_latest()
    assert saved is not None
    tensors, meta = saved.tasks["seed42"]
    assert tensors["model/w"].tolist() == [0, 1, 2, 3]
    assert meta["epoch"] == 2
    assert saved.report is not None and saved.report["selection_auroc"] == 0.65


def test_prepared_data_and_their_cache_are_read(files: Path) -> None:
    manifest = read_manifest(files / "prepared")
    assert (manifest.data_set, len(manifest.files)) == ("elpv", 1)
    cache = ImageCache(files / "cache")
    (old,) = cache.entries()
    # not used any more, since its pixels need not be upright; made anew, and the old one goes when it is not used
    paths = ["train/good/000.png", "test/spot/000.png"]
    assert cache.array(files / "prepared", paths, Decoding(8)).array.shape == (2, 8, 8, 3)
    assert [entry.images for entry in cache.entries()] == [2, 2] and old in cache.entries()


def _load_checkpoint(files: Path) -> object:
    return TrialStore(str(files / "studies" / NAME), 3).load(CheckpointName(2, 1))


def _load_space(files: Path) -> object:
    space = json.loads((files / "studies" / NAME / "study.json").read_text())["space"]
    (files / "space.yaml").write_text(yaml.safe_dump(space | {"format_version": 2}))
    return load_space(files / "space.yaml", load_profile("cpu"))


def _open_study(files: Path) -> Study:
    return Study.open(files / "studies", NAME)


NEWER: dict[str, tuple[str, Callable[[Path], object]]] = {
    "study": (f"studies/{NAME}/study.json", _open_study),
    "driver": (f"studies/{NAME}/driver.json", lambda files: running_driver(_open_study(files))),
    "checkpoint": (f"studies/{NAME}/trials/00003/epoch-0002-attempt-01/checkpoint.json", _load_checkpoint),
    "data": ("prepared/manifest.json", lambda files: read_manifest(files / "prepared")),
    "space": ("config.yaml", _load_space),
    "configuration": ("config.yaml", lambda files: TrialConfig.load(read_yaml(files / "config.yaml"))),
}


@pytest.mark.parametrize("kind", NEWER)
def test_a_newer_version_is_refused_with_one_line(kind: str, files: Path) -> None:
    name, read = NEWER[kind]
    path = files / name
    text = path.read_text()
    newer, count = re.subn(r'("?format_version"?): 1\b', r"\1: 99", text)
    if count == 0:  # the first version of this file had none in it
        newer = (
            f"format_version: 99\n{text}" if name.endswith(".yaml") else text.replace("{", '{"format_version": 99,', 1)
        )
    path.write_text(newer)
    with pytest.raises(SctuneError, match=r"format_version|newer|format 99|format version") as caught:
        read(files)
    assert len(str(caught.value).splitlines()) == 1
    assert "99" in str(caught.value) or "newer" in str(caught.value) or kind == "space"
    assert re.search(r"update|prepare again", str(caught.value))


def test_every_document_says_its_version(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCTUNE_HOME", str(files))
    for words in (["list"], ["cache", "list"], ["data", "list"]):
        done = CliRunner().invoke(app, [*words, "--json"], catch_exceptions=False)
        assert json.loads(done.stdout)["format_version"] == 1, words

"""Bad input through the command line: exit code 2, one line that names it, and nothing half-written."""

from __future__ import annotations

import os
import shutil
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from sctune.cli import main

Refused = Callable[..., str]


@pytest.fixture(scope="module")
def tracking(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One store for the few checks that come after it was looked at; making one takes seconds."""
    return f"sqlite:///{tmp_path_factory.mktemp('store') / 'mlflow.db'}"


@pytest.fixture
def refused(
    sctune_home: Path,
    image_folder: Path,
    tracking: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Refused:
    """Run a search in this process; returns its one line. data: None leaves the option out."""

    def run(*words: object, data: object = image_folder, profile: str | None = "smoke", name: str = "bad") -> str:
        command = ["sctune", "search", "--name", name, *map(str, words)]
        command += ["--data", str(data)] if data is not None else []
        command += ["--profile", profile] if profile is not None else []
        command += [] if "--tracking-uri" in words else ["--tracking-uri", tracking]
        monkeypatch.setattr(sys, "argv", command)
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        assert ended.value.code == 2, err
        assert out == ""
        assert err.startswith("sctune: "), err
        assert err.count("\n") == 1, err
        studies = sctune_home / "studies"
        assert not studies.exists() or not list(studies.iterdir())
        return err

    return run


def test_a_missing_folder(refused: Refused, tmp_path: Path) -> None:
    assert str(tmp_path / "nowhere") in refused(data=tmp_path / "nowhere")


def test_an_empty_folder(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "holds no images" in refused(data=tmp_path / "empty")


def test_a_folder_without_a_layout(refused: Refused, image_folder: Path) -> None:
    assert "no known layout" in refused(data=image_folder / "test" / "spot")


def test_two_sources_at_once(refused: Refused, image_folder: Path) -> None:
    assert "not both" in refused("--normal", image_folder, "--anomalous", image_folder)
    assert "go together" in refused("--normal", image_folder, data=None)


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--set", "augment.treshold=0.4"], "augment.threshold"),
        (["--set", "optim.lr=fast"], "optim.lr"),
        (["--set", "optim.lr=7"], "optim.lr"),
        (["--set", "optim.lr"], "key=value"),
        (["--set", "budget.batch_size=2"], "batch_size"),
        (["--sampler", "tpee"], "'tpe'"),
        (["--sampler", "grid"], "augment.threshold is continuous"),
        (["--scheduler", "ashaa"], "'asha'"),
        (["--profile", "smok"], "'smoke'"),
        (["--space", "threshold_pach"], "'threshold_patch'"),
        (["--setting", "generl"], "general"),
        (["--setting", "hard", "--known-class", "sptt"], "'spot'"),
        (["--setting", "hard"], "known_class"),
        (["--known-class", "spot"], "--setting hard"),
        (["--category", "bottle"], "bottle"),
        (["--selection", "best"], "selection"),
        (["--trials", "0"], "--trials"),
        (["--keep-best", "0"], "--keep-best"),
        (["--max-concurrent", "none"], "--max-concurrent"),
        (["--n-anomalies", "few"], "--n-anomalies"),
        (["--seeds", "a,b"], "--seeds"),
        (["--time-budget", "soon"], "--time-budget"),
        (["--trails", "3"], "--trails"),
        (["--set", "model.patch_place=diag", "--set", "model.patch_count=6"], "model.patch_count"),
        (["--storage-path", "moon://bucket"], "moon://bucket"),
    ],
    ids=lambda value: "_".join(value) if isinstance(value, list) else "",
)
def test_a_word_that_cannot_be(refused: Refused, words: list[str], named: str) -> None:
    profile = None if "--profile" in words else "smoke"
    assert named in refused(*words, profile=profile)


def test_a_patch_count_that_does_not_fit_names_the_sizes(refused: Refused, tmp_path: Path) -> None:
    space = tmp_path / "diagonal.yaml"
    space.write_text(
        "parameters:\n  model.patch_count: {type: int, low: 2, high: 6}\n"
        "set: {model.patch_place: diag, model.tap: deep, model.patch_size: half_plus1, data.image_size: 224}\n"
    )
    line = refused("--space", space)
    assert "S=7" in line
    assert "O=4" in line
    assert "model.patch_count" in line


def test_a_space_must_leave_the_tasks_alone(refused: Refused, tmp_path: Path) -> None:
    space = tmp_path / "own.yaml"
    for text in ("parameters: {seed: {type: int, low: 0, high: 9}}", "set: {data.setting: hard}"):
        space.write_text(f"{text}\n" if "param" in text else f"parameters: {{optim.lr: {{values: [0.1]}}}}\n{text}\n")
        line = refused("--space", space)
        assert "seed" in line or "data.setting" in line


def test_a_space_with_a_misspelt_key(refused: Refused, tmp_path: Path) -> None:
    space = tmp_path / "own.yaml"
    space.write_text("parameters: {augment.treshold: {type: float, low: 0.1, high: 0.9}}\n")
    assert "augment.threshold" in refused("--space", space)
    space.write_text("parameters: {augment.threshold: {type: float, low: 0.1, hihg: 0.9}}\n")
    assert "high" in refused("--space", space)
    space.write_text("parameters: {augment.threshold: {type: float, low: 0.1, high: 1.9}}\n")
    assert "augment.threshold" in refused("--space", space)
    space.write_text("parameters: [")
    assert str(space) in refused("--space", space)


@pytest.mark.parametrize("name", ["../out", "a/b", "", ".hidden", "two words"])
def test_a_study_name_that_leaves_its_folder(refused: Refused, name: str) -> None:
    assert "study name" in refused(name=name)


def test_a_corrupt_image_is_named(refused: Refused, image_folder: Path, tmp_path: Path) -> None:
    root = tmp_path / "damaged"
    shutil.copytree(image_folder, root)
    (root / "train" / "good" / "007.png").write_bytes(b"no image")
    line = refused(data=root)
    assert "train/good/007.png" in line
    assert "--skip-corrupt" in line


def test_a_tracking_server_that_does_not_answer(refused: Refused) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    assert f"127.0.0.1:{port}" in refused("--tracking-uri", f"http://user:secret@127.0.0.1:{port}")


def test_a_tracking_uri_of_an_unknown_kind(refused: Refused) -> None:
    assert "gopher" in refused("--tracking-uri", "gopher://somewhere")


@pytest.mark.parametrize("option", ["--study-root", "--storage-path"])
def test_a_file_in_the_way(refused: Refused, tmp_path: Path, option: str) -> None:
    (tmp_path / "file").write_text("")
    line = refused(option, tmp_path / "file" / "studies")
    assert str(tmp_path / "file") in line


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
@pytest.mark.parametrize("option", ["--study-root", "--storage-path"])
def test_no_permission_to_write(refused: Refused, tmp_path: Path, option: str) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    assert "permission" in refused(option, tmp_path / "locked" / "studies")


def test_a_database_that_is_not_there(refused: Refused, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/nowhere/record.db"
    assert "record" in refused("--storage", url)


def test_the_paper_profile_says_what_it_selects_on(refused: Refused) -> None:
    assert "--selection test" in refused(profile="paper")


def test_more_than_the_machine_has(refused: Refused) -> None:
    assert "--cpus-per-trial" in refused("--cpus-per-trial", "4096")


@pytest.mark.parametrize(
    "words",
    [
        ["resume", "nosuch"],
        ["resume", "nosuch", "--trials", "2"],
        ["resume", "../x"],
        ["status", "nosuch"],
        ["best", "nosuch"],
    ],
)
def test_a_study_that_is_not_there(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["sctune", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    err = capsys.readouterr().err
    assert ended.value.code == 2
    assert err.startswith("sctune: ")
    assert err.count("\n") == 1

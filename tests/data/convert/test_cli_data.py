"""`sctune data list | prepare | verify`: what is printed where, and the exit codes."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from sctune.cli import main
from sctune.cli.data import data_app


def call(*words: object) -> Any:
    return CliRunner().invoke(data_app, [str(word) for word in words])


def done(*words: object) -> Any:
    result = call(*words)
    assert result.exit_code == 0, result.output
    return result


def test_list() -> None:
    text = done("list").stdout
    for part in (
        "mvtec",
        "3629 train",
        "1258 anomalous",
        "15 categories",
        "857 train",
        "licence: unclear",
        "https://zenodo.org/records/3732485",
    ):
        assert part in text, part
    sets = {one["name"]: one for one in json.loads(done("list", "--json").stdout)["data_sets"]}
    assert list(sets) == ["mvtec", "sdd", "aitex", "elpv", "optical", "mastcam"]
    assert sets["elpv"]["counts"] == [
        {"train_good": 1131, "test_good": 377, "anomalies": 715, "classes": {"mono": 313, "poly": 402}}
    ]
    assert len(sets["mvtec"]["counts"]) == 15 and len(sets["aitex"]["counts"]) == 2
    keys = {"name", "title", "licence", "attribution", "page", "evidence", "layout", "remarks", "categories", "counts"}
    assert all(one.keys() == keys for one in sets.values())


def test_prepare_and_verify(raw_folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = done("prepare", "sdd", "--source", raw_folders["sdd"], "--out", "out", "--allow-counts")
    assert [line.split() for line in result.stdout.splitlines()[:3]] == [
        ["5", "test/defect"], ["17", "test/good"], ["50", "train/good"],
    ]  # fmt: skip
    assert f"use it: sctune search --data {tmp_path / 'out'}" in result.stdout
    assert "differs from the published data: train/good 50 instead of 857" in result.stderr
    assert "note: parts both in training and test: 17" in result.stderr
    assert "77 files are as they were made" in done("verify", "out").stdout


def test_prepare_as_json(raw_folders: dict[str, Path], tmp_path: Path) -> None:
    words = ("--source", raw_folders["mvtec"], "--out", tmp_path / "out", "--allow-counts", "--json")
    document = json.loads(done("prepare", "mvtec", *words).stdout)
    assert document["folder"] == str(tmp_path / "out") and document["counts"]["carpet/train/good"] == 4
    assert document["options"] == {"allow_counts": True, "group_split": False} and "files" not in document


def test_refusals_are_one_line_and_exit_code_2(
    raw_folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in (
        ("prepare", "sdd", "--source", raw_folders["sdd"], "--out", tmp_path / "out"),
        ("prepare", "sdd", "--source", raw_folders["elpv"], "--out", tmp_path / "out"),
        ("prepare", "sdd", "--source", raw_folders["sdd"]),
        ("verify", tmp_path),
        ("verify", tmp_path / ("n" * 300)),
        ("prepare", "sdd", "--source", tmp_path / ("n" * 300), "--out", tmp_path / "out"),
    ):
        monkeypatch.setattr(sys, "argv", ["sctune", "data", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        assert ended.value.code == 2 and out == ""
        assert err.startswith("sctune: ") and err.count("\n") == 1, err
    assert list(tmp_path.iterdir()) == []


def test_verify_tells_each_kind_of_problem_on_a_line(prepared_sdd: Path) -> None:
    (prepared_sdd / "ground_truth" / "defect" / "kos01_Part0_1_mask.png").unlink()
    (prepared_sdd / "notes.txt").write_text("mine")
    result = call("verify", prepared_sdd)
    assert result.exit_code == 2 and result.stdout == ""
    assert result.stderr.splitlines() == [
        f"sctune: {prepared_sdd}: missing masks (1): ground_truth/defect/kos01_Part0_1_mask.png",
        f"sctune: {prepared_sdd}: files that manifest.json does not name (1): notes.txt",
    ]
    result = call("verify", prepared_sdd, "--json")
    assert result.exit_code == 2
    assert [problem["kind"] for problem in json.loads(result.stdout)["problems"]] == ["missing masks", "extra"]


def test_an_interrupted_prepare_says_how_to_go_on(
    raw_folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(image: object) -> bytes:
        raise KeyboardInterrupt

    words = ("prepare", "mastcam", "--source", raw_folders["mastcam"], "--out", tmp_path / "out", "--allow-counts")
    with monkeypatch.context() as patch:
        patch.setattr("sctune.data.convert.writer.encode_png", interrupt)
        result: Result = call(*words)
    assert result.exit_code == 3 and "run the same command again" in result.stderr
    assert not (tmp_path / "out").exists() and (tmp_path / "out.partial").exists()
    done(*words)
    done("verify", tmp_path / "out")

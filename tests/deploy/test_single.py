"""`sctune train --out`: a folder that the commands on images take, whole or not at all."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from sctune.config import TrialConfig
from sctune.deploy.locate import open_model
from sctune.deploy.single import write_trained
from sctune.errors import ConfigError
from sctune.train.single import train_one
from sctune.train.trainer import Trainer
from tests.conftest import TINY, Command


def assignments(folder: Path) -> list[str]:
    return [word for name, value in TINY.items() for word in ("--set", f"{name}={value}")] + ["--data", str(folder)]


def test_what_train_writes_predicts_and_is_measured(command: Command, image_folder: Path, tmp_path: Path) -> None:
    out, table = tmp_path / "made" / "model", tmp_path / "scores.csv"
    code, stdout, stderr = command("train", *assignments(image_folder), "--test", "--out", out, "--json")
    assert code == 0, stderr
    report = json.loads(stdout)
    assert f"sctune predict IMAGES --model {out}" in stderr.replace("\n", "")
    assert json.loads((out / "metrics.json").read_text()) == {"format_version": 1, **report["metrics"]}
    with (out / "scores.csv").open(newline="") as stream:
        tested = {row["path"]: (int(row["label"]), float(row["score"])) for row in csv.DictReader(stream)}

    code, _, stderr = command("predict", *(image_folder / path for path in tested), "--model", out, "--out", table)
    assert code == 0, stderr
    with table.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    own = {str(Path(row["path"]).relative_to(image_folder)): float(row["score"]) for row in rows}
    assert own == pytest.approx({path: score for path, (_, score) in tested.items()}, rel=1e-5)
    assert {row["label"] for row in rows} <= {"normal", "anomalous"}, "it has a threshold"

    code, stdout, stderr = command("evaluate", out, image_folder, "--unseen-only", "--json")
    assert code == 0, stderr
    found = json.loads(stdout)
    # the test images are what no training read; all of them, and none else
    assert sum(found["images"].values()) == len(tested) and found["auroc"]["value"] == pytest.approx(
        report["metrics"]["test_auroc"]
    )


def test_its_configuration_trains_the_same_model_again(image_folder: Path, tmp_path: Path) -> None:
    config = TrialConfig().override(TINY | {"data.source": str(image_folder)})
    write_trained(tmp_path / "model", train_one(config, False, lambda lines: None))
    again = TrialConfig.load(yaml.safe_load((tmp_path / "model" / "config.yaml").read_text()))
    trainer = Trainer(again)
    list(trainer.fit())
    images = trainer.selection.images
    assert np.array_equal(open_model(str(tmp_path / "model"), device="cpu").score(images), trainer.method.score(images))
    card = (tmp_path / "model" / "model_card.md").read_text()
    assert "trained by itself" in card and "none were measured" not in card
    assert not (tmp_path / "model" / "scores.csv").exists()


def test_a_place_that_cannot_be_is_refused_before_training(
    command: Command, image_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "file").write_text("")
    for out, message in ((tmp_path / "there", "exists; give a new folder"), (tmp_path / "file" / "x", "is no folder")):
        code, _, stderr = command("train", *assignments(image_folder), "--out", out)
        assert code == 2 and message in stderr and "epoch" not in stderr
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "sctune-home") == ["file", "there"]


def test_nothing_half_written_is_left(image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = TrialConfig().override(TINY | {"data.source": str(image_folder), "budget.epochs": 1})
    trained = train_one(config, False, lambda lines: None)

    def full(folder: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("sctune.deploy.model.build_wheel", full)
    with pytest.raises(ConfigError, match=r"cannot write .*model: No space left on device"):
        write_trained(tmp_path / "model", trained)
    assert not list(tmp_path.glob("*model*"))

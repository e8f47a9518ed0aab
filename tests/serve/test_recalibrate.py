"""`sctune recalibrate`: the same weights, a new threshold, a new version; the champion moves only when asked to."""

from __future__ import annotations

import json
import math
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sctune.cli import main
from sctune.data.images import file_digest
from sctune.deploy.card import card_with_decision
from sctune.deploy.locate import open_model
from sctune.deploy.model import Model, load_model_folder, read_parts, score_digest
from sctune.deploy.register import is_registered, log_model_run
from sctune.errors import ConfigError, DataError, TrackingError
from sctune.metrics.threshold import conformal_threshold
from sctune.serve.inputs import list_inputs
from sctune.serve.recalibrate import Wish, recalibrate, run_recalibration
from sctune.tracking.server import default_tracking_uri, find_experiment, mlflow_client
from tests.models import noise_png


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty good images of another shade, a copy of one, and a file that is none."""
    folder = tmp_path_factory.mktemp("good")
    for number in range(30):
        (folder / f"{number:02d}.png").write_bytes(noise_png(7000 + number, side=72))
    (folder / "copy.png").write_bytes(noise_png(7000, side=72))
    (folder / "broken.png").write_text("no image")
    return folder


def quiet(_done: int, _total: int) -> None:
    pass


def test_the_threshold_is_that_of_the_new_images(model: Model, good: Path) -> None:
    made = recalibrate(model, list_inputs([str(good)]), "a new light")
    names = [path for path in sorted(good.glob("[0-9]*.png"))]
    images = [model.prepare(path) for path in names]
    scores = model.score([image.pixels for image in images]).tolist()
    assert made.threshold == conformal_threshold(scores, 0.1), "the rate of the threshold until now"
    assert (made.failed, made.known) == (1, 0)
    calibration = made.parts.calibration
    assert calibration is not None and sorted(calibration.scores) == sorted(scores)
    assert sorted(calibration.brightness) == sorted(image.brightness for image in images)
    assert set(calibration.width) == {72.0} and calibration.source == "30 normal images: a new light"
    assert model.threshold is not None and made.above_old is not None
    assert made.above_old.count == sum(score > model.threshold.value for score in scores)
    note = made.parts.meta["recalibrated"]
    assert note["before"] == model.threshold.to_dict() and len(note["sha256"]) == 30
    assert set(made.parts.development) == {*model.parts.development, *note["sha256"]}
    assert recalibrate(model, list_inputs([str(good)]), "s", 0.5).threshold == conformal_threshold(scores, 0.5)


def test_too_few_images_are_refused_and_their_reach_is_told(model: Model, good: Path) -> None:
    nine = list_inputs([str(good)])[:9]
    with pytest.raises(DataError, match=r"9 different new images are too few.*10 at least.*1 / \(n \+ 1\)"):
        recalibrate(model, nine, "s")
    ten = recalibrate(model, list_inputs([str(good)])[:10], "s", 0.01)
    assert ten.threshold.reached == pytest.approx(1 / 11) and not ten.threshold.is_reached
    assert f"takes {math.ceil(1 / 0.01) - 1} calibration images" in ten.threshold.line()
    with pytest.raises(ConfigError, match="between 0 and 1"):
        recalibrate(model, list_inputs([str(good)]), "s", 1.5)


def test_images_that_the_model_was_made_from_are_left_out(model: Model, good: Path) -> None:
    paths = list_inputs([str(good)])
    own = [file_digest(good / f"{number:02d}.png") for number in range(1, 6)]
    seen = Model(model.method, model.config, replace(model.parts, development=own))
    made = recalibrate(seen, paths, "s")
    assert (made.known, made.threshold.normals) == (5, 25)
    few = Model(model.method, model.config, replace(model.parts, development=[file_digest(Path(p)) for p in paths]))
    with pytest.raises(DataError, match=r"0 different new images \(beside 1 unreadable and 31 that the model was made"):
        recalibrate(few, paths, "s")
    # those of an earlier recalibration took part in no fit
    again = recalibrate(Model(model.method, model.config, made.parts), paths, "s")
    assert (again.known, again.threshold.normals) == (5, 25)


def test_the_card_tells_the_new_threshold(model: Model, good: Path) -> None:
    card = "# A model\n\n- a purpose\n\n## Decision\n\n- threshold 9, old\n\n## Data\n\n- some\n"
    told = Model(model.method, model.config, replace(model.parts, card=card))
    made = recalibrate(told, list_inputs([str(good)]), "good ones")
    text = made.parts.card or ""
    assert "threshold 9, old" not in text and made.threshold.line() in text
    assert text.startswith("# A model\n\n- a purpose\n\n## Decision\n\n- ") and text.endswith("\n\n## Data\n\n- some\n")
    assert model.threshold is not None and f"made with: {model.threshold.line()}" in text
    twice = recalibrate(Model(model.method, model.config, made.parts), list_inputs([str(good)]), "s", 0.5).parts.card
    assert twice is not None and twice.count("## Decision") == 1 and f"made with: {model.threshold.line()}" in twice
    assert card_with_decision("# A model\n", made.parts, []).startswith("# A model\n\n## Decision\n\n- threshold")


def test_a_folder_becomes_a_new_folder(model: Model, model_folder: Path, good: Path, tmp_path: Path) -> None:
    out, paths = tmp_path / "new", list_inputs([str(good)])
    outcome = run_recalibration(str(model_folder), paths, "s", Wish(folder=out), quiet)
    made = load_model_folder(out)
    assert score_digest(made) == score_digest(model) and made.threshold == outcome.made.threshold != model.threshold
    assert (out / "weights.safetensors").read_bytes() == (model_folder / "weights.safetensors").read_bytes()
    with pytest.raises(ConfigError, match="exists; give a new folder"):
        run_recalibration(str(model_folder), paths, "s", Wish(folder=out), quiet)
    with pytest.raises(ConfigError, match="is a folder and no registered model"):
        run_recalibration(str(model_folder), paths, "s", Wish(register=True), quiet)
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "sctune-home") == ["new"]


@pytest.fixture
def registry(model: Model, model_folder: Path, tmp_path: Path, empty_store: Path) -> str:
    """A store whose models:/first/1 is the small model, as candidate and champion."""
    uri = default_tracking_uri(tmp_path / "store")
    (tmp_path / "store").mkdir()
    shutil.copyfile(empty_store, tmp_path / "store" / "mlflow.db")
    client = mlflow_client(uri)
    run = client.create_run(find_experiment(client, uri), run_name="parent").info.run_id
    log_model_run(uri, run, model.config, model_folder / "weights.safetensors", read_parts(model_folder), "first")
    client.set_registered_model_alias("first", "champion", "1")
    return uri


def test_a_registered_model_gets_a_version(
    registry: str, model: Model, model_folder: Path, good: Path, tmp_path: Path
) -> None:
    client, paths, weights = mlflow_client(registry), list_inputs([str(good)]), model_folder / "weights.safetensors"

    def versions() -> dict[str, int]:
        model = client.get_registered_model("first")
        return {alias: int(version) for alias, version in model.aliases.items()}

    wish = Wish(register=True, tracking_uri=registry)
    outcome = run_recalibration("models:/first@champion", paths, "s", wish, quiet)
    assert outcome.registered is not None and (outcome.registered.version, outcome.registered.created) == (2, True)
    assert versions() == {"candidate": 2, "champion": 1}
    made = open_model("models:/first@candidate", registry, "cpu")
    assert made.threshold == outcome.made.threshold and score_digest(made) == score_digest(model)
    first, second = (client.get_model_version("first", str(number)) for number in (1, 2))
    assert first.run_id == second.run_id
    same = run_recalibration("models:/first@champion", paths, "s", wish, quiet)
    assert same.registered is not None and (same.registered.version, same.registered.created) == (2, False)
    assert is_registered(registry, "first", weights)
    # the study's own model is still known as the first version
    again = log_model_run(registry, first.run_id, model.config, weights, read_parts(model_folder), "first")
    assert (again.version, again.created) == (1, False)

    wish = Wish(wanted=0.3, promote=True, register=True, tracking_uri=registry)
    moved = run_recalibration("models:/first/1", paths, "s", wish, quiet)
    assert moved.move is not None and (moved.move.version, moved.move.before) == (3, 1)
    assert versions() == {"candidate": 3, "champion": 3}
    assert moved.to_dict()["champion"] is True
    with pytest.raises(TrackingError, match="holds no model"):
        run_recalibration("models:/second@champion", paths, "s", wish, quiet)


def test_a_registry_that_breaks_off_is_one_line(registry: str, good: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError("no room")

    monkeypatch.setattr("sctune.deploy.register.save_model", refuse)
    wish = Wish(register=True, tracking_uri=registry)
    with pytest.raises(TrackingError, match="no room; the same command tries again"):
        run_recalibration("models:/first@champion", list_inputs([str(good)]), "s", wish, quiet)
    assert int(mlflow_client(registry).get_model_version_by_alias("first", "candidate").version) == 1


def test_the_command(
    model_folder: Path, good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*words: object) -> tuple[int, Any, str]:
        monkeypatch.setattr(sys, "argv", ["sctune", "recalibrate", *map(str, words)])
        with pytest.raises(SystemExit) as caught:
            main()
        output = capsys.readouterr()
        return int(caught.value.code or 0), output.out, output.err

    code, out, _ = run(good, "--model", model_folder)
    assert code == 0 and out.splitlines()[-1].startswith("nothing was written; give --out DIR")
    code, out, _ = run(good, "--model", model_folder, "--out", tmp_path / "new", "--false-alarm-rate", "0.2", "--json")
    document = json.loads(out)
    assert code == 0 and document["threshold"]["wanted"] == 0.2 and document["out"] == str(tmp_path / "new")
    assert load_model_folder(tmp_path / "new").threshold is not None
    code, out, error = run(good, "--model", model_folder, "--promote")
    assert (code, out) == (2, "") and "is a folder and no registered model" in error

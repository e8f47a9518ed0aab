"""`sctune evaluate`: numbers by hand and by a second way, and the files."""

from __future__ import annotations

import csv
import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import stats
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score

from sctune.cli import main
from sctune.data.catalog import DataSet, open_dataset
from sctune.data.images import file_digest
from sctune.deploy.model import Model
from sctune.errors import ConfigError, DataError
from sctune.metrics.objective import AP
from sctune.metrics.pixel_level import aupro
from sctune.serve.evaluate import evaluate, open_labelled
from sctune.serve.inputs import list_inputs
from sctune.serve.measure import measures, per_kind
from sctune.serve.pictures import worst_mistakes
from sctune.serve.predict import predict_to_file
from sctune.serve.results import evaluation_lines, write_evaluation
from sctune.train.heatmap import heat_maps
from tests.models import noise_png


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MVTec layout: 20 normal test images, 8 with a bright spot and its mask, 6 with another one without a mask."""
    root = tmp_path_factory.mktemp("labelled")
    counts = {"train/good": 4, "test/good": 16, "test/spot": 8, "test/other": 6}
    for number, (folder, count) in enumerate(counts.items()):
        (root / folder).mkdir(parents=True)
        for image in range(count):
            name, bad = root / folder / f"{image}.png", "good" not in folder
            name.write_bytes(noise_png(100 * number + image, spot=bad))
            if folder == "test/spot":
                mask = np.asarray(Image.open(name)).min(axis=-1) == 255
                (root / "ground_truth/spot").mkdir(parents=True, exist_ok=True)
                Image.fromarray(mask).save(root / f"ground_truth/spot/{image}_mask.png")
    return root


@pytest.fixture(scope="module")
def data(labelled: Path) -> DataSet:
    return open_dataset(str(labelled))


def test_measures_by_hand() -> None:
    labels = [0, 0, 0, 0, 1, 1, 1, 1, 1]
    scores = [0.1, 0.2, 0.6, 0.3, 0.9, 0.8, 0.5, 0.55, 0.05]
    found = measures(labels, scores, 0.5)
    assert found["confusion"] == {"found": 3, "escaped": 2, "false_alarms": 1, "passed": 3}
    assert found["f1"]["value"] == pytest.approx(2 * 3 / (2 * 3 + 2 + 1))
    assert found["f1"]["value"] == pytest.approx(f1_score(labels, np.array(scores) > 0.5))
    # of 20 pairs the anomaly is above in 4 + 4 + 3 + 3 + 0
    assert found["auroc"]["value"] == pytest.approx(14 / 20)
    assert found["average_precision"]["value"] == pytest.approx(average_precision_score(labels, scores))
    escapes = found["escape_rate"]
    assert (escapes["count"], escapes["total"], escapes["value"]) == (2, 5, 0.4)
    assert escapes["low"] == pytest.approx(stats.beta.ppf(0.025, 2, 4))
    assert escapes["high"] == pytest.approx(stats.beta.ppf(0.975, 3, 3))
    assert (found["false_alarm_rate"]["count"], found["false_alarm_rate"]["total"]) == (1, 4)


def test_standard_errors_are_those_of_new_data() -> None:
    draws = np.random.default_rng(0)
    labels = np.r_[np.zeros(150, int), np.ones(100, int)]

    def sample() -> np.ndarray:
        return np.r_[draws.normal(0, 1, 150), draws.normal(1.5, 1, 100)]

    many = [sample() for _ in range(200)]
    told = [measures(labels, scores, 1.0) for scores in many[:4]]
    ways = {
        "auroc": [roc_auc_score(labels, scores) for scores in many],
        "average_precision": [average_precision_score(labels, scores) for scores in many],
        "f1": [f1_score(labels, scores > 1) for scores in many],
    }
    for name, values in ways.items():
        mean = np.mean([found[name]["se"] for found in told])
        assert mean == pytest.approx(np.std(values), rel=0.25), name


def test_the_fast_average_precision_is_scikit_learns() -> None:
    draws = np.random.default_rng(3)
    for _ in range(50):
        scores = draws.integers(0, 8, 40) / 7  # many ties
        labels = draws.integers(0, 2, 40)
        labels[:2] = 0, 1
        (fast,) = AP.resampled(labels, scores, np.ones((1, 40), int))
        assert fast == pytest.approx(average_precision_score(labels, scores))


def test_what_is_not_defined_is_none() -> None:
    normal = measures([0, 0, 0], [0.1, 0.2, 0.9], 0.5)
    assert (normal["auroc"], normal["f1"], normal["escape_rate"]) == (None, None, None)
    assert normal["false_alarm_rate"]["count"] == 1
    bare = measures([0, 1], [0.1, 0.2], None)
    assert bare["auroc"]["value"] == 1 and bare["confusion"] is None and bare["f1"] is None
    assert per_kind([0, 0], [0.1, 0.2], ["good", "good"], 0.5) == []


def test_kinds_are_measured_against_all_normals() -> None:
    labels, scores = [0, 0, 1, 1, 1], [0.1, 0.4, 0.9, 0.3, 0.2]
    low, high = per_kind(labels, scores, ["good", "good", "high", "low", "low"], 0.35)[::-1]
    assert (low["kind"], low["images"], low["auroc"]["value"], low["median_score"]) == ("low", 2, 0.5, 0.25)
    assert (low["escape_rate"]["count"], high["escape_rate"]["count"]) == (2, 0)
    assert (high["kind"], high["auroc"]["value"]) == ("high", 1.0)


def test_an_evaluation_scores_what_the_model_scores(model: Model, data: DataSet) -> None:
    found = evaluate(model, data)
    assert [row.file for row in found.rows] == list(data.files)
    scores = np.array([model.score([model.prepare(data.root / file.path).pixels])[0] for file in data.files])
    labels = np.array([file.label for file in data.files])
    assert [row.score for row in found.rows] == scores.tolist()
    assert model.threshold is not None
    assert found.metrics["auroc"]["value"] == pytest.approx(roc_auc_score(labels, scores))
    above = scores > model.threshold.value
    assert found.metrics["confusion"]["found"] == int((above & (labels == 1)).sum())
    assert found.metrics["images"] == {"normal": 20, "anomalous": 14}
    assert [row["kind"] for row in found.metrics["kinds"]] == ["other", "spot"]

    spots = [file for file in data.files if file.kind == "spot"]
    images = np.stack([model.prepare(data.root / file.path).pixels for file in spots])
    marked = (
        np.asarray(Image.open(data.root / str(file.mask)).convert("L").resize((64, 64), Image.Resampling.NEAREST))
        for file in spots
    )
    expected = aupro(np.stack([mask > 0 for mask in marked]), heat_maps(model.method, images, "gradient"))
    heat = found.metrics["heat_map"]
    assert (heat["kind"], heat["images"], heat["with_masks"]) == ("gradient", 8, 8)
    assert heat["aupro"] == pytest.approx(expected)
    text = "\n".join(evaluation_lines(found))
    assert "20 normal, 14 anomalous images" in text and "spot" in text
    assert "on 8 masks of 8 images; 8 of 14 anomalous images have masks" in text


def test_masks_that_mark_nothing_are_named_and_left_out(model: Model, labelled: Path, tmp_path: Path) -> None:
    root = shutil.copytree(labelled, tmp_path / "set")
    masks = root / "ground_truth" / "spot"
    for number in (0, 1):
        Image.fromarray(np.zeros((64, 64), np.uint8)).save(masks / f"{number}_mask.png")
    (masks / "2_mask.png").unlink()
    for half in ("a", "b"):
        (masks / "2").mkdir(exist_ok=True)
        shutil.copy(masks / "3_mask.png", masks / "2" / f"{half}.png")
    (root / "test" / "spot" / "notes.gif").write_bytes(b"GIF")
    found = evaluate(model, open_dataset(str(root)))
    heat = found.metrics["heat_map"]
    assert {name: heat[name] for name in ("images", "masks", "with_masks", "anomalous")} == {
        "images": 6,
        "masks": 7,
        "with_masks": 8,
        "anomalous": 14,
    }
    told = "\n".join(found.warnings)
    assert "masks of 2 of 8 anomalous image(s) mark nothing, the first is ground_truth/spot/0_mask.png" in told
    assert "6 of 14 anomalous images have no mask" in told and "left out 1 .gif" in told


def test_images_that_the_model_was_made_from(model: Model, data: DataSet) -> None:
    own = {file.path for file in data.files if file.path.startswith("train/")}
    parts = replace(model.parts, development=[file_digest(data.root / path) for path in own])
    seen = Model(model.method, model.config, parts)
    found = evaluate(seen, data)
    assert found.metrics["in_development"] == 4
    assert any(line.startswith("4 of 34 images were there when this model was trained") for line in found.warnings)
    assert {row.file.path for row in found.rows if row.in_development} == own
    clean = evaluate(seen, data, unseen_only=True)
    assert {row.file.path for row in clean.rows} == {file.path for file in data.files} - own
    assert clean.metrics["in_development"] == 0 and clean.warnings == data.notes
    every = replace(parts, development=[file_digest(data.root / file.path) for file in data.files])
    with pytest.raises(DataError, match="all 34 images of"):
        evaluate(Model(model.method, model.config, every), data, unseen_only=True)
    nothing = Model(model.method, model.config, replace(parts, development=[]))
    assert any("does not say which images" in line for line in evaluate(nothing, data).warnings)
    with pytest.raises(DataError, match="does not say which images"):
        evaluate(nothing, data, unseen_only=True)


def test_the_files_and_the_worst_mistakes(model: Model, data: DataSet, tmp_path: Path) -> None:
    found = evaluate(model, data)
    middle = float(np.median([row.score for row in found.rows if row.score is not None]))
    parts = replace(model.parts, threshold=replace(model.parts.threshold, value=middle))  # type: ignore[type-var]
    found = evaluate(Model(model.method, model.config, parts), data)
    files = write_evaluation(found, tmp_path / "out")
    assert sorted(path.name for path in files) == sorted(path.name for path in (tmp_path / "out").iterdir())
    assert {path.name for path in files} == {"metrics.json", "scores.csv", "roc.png", "histogram.png", "gallery.png"}
    assert json.loads((tmp_path / "out/metrics.json").read_text()) == found.metrics
    rows = list(csv.DictReader((tmp_path / "out/scores.csv").open()))
    assert [float(row["score"]) for row in rows] == [row.score for row in found.rows]
    wrong = [row for row in rows if row["label"] != row["predicted"]]
    confusion = found.metrics["confusion"]
    assert len(wrong) == confusion["escaped"] + confusion["false_alarms"] > 0

    escapes, alarms = worst_mistakes(found, count=3)
    lowest = sorted((float(row["score"]), row["path"]) for row in wrong if row["label"] == "anomalous")[:3]
    highest = sorted((float(row["score"]), row["path"]) for row in wrong if row["label"] == "normal")[::-1][:3]
    assert [(row.score, row.file.path) for row in escapes] == lowest
    assert [(row.score, row.file.path) for row in alarms] == highest
    with Image.open(tmp_path / "out/gallery.png") as picture:
        # heat maps are the only colour in it: grey images, black text
        pixels = np.asarray(picture.convert("RGB"), int)
    assert (np.ptp(pixels, axis=-1) > 60).mean() > 0.005
    with pytest.raises(ConfigError, match="exists; give a new folder"):
        write_evaluation(found, tmp_path / "out")


def test_unreadable_images_are_told_and_left_out(model: Model, tmp_path: Path) -> None:
    for folder, count in {"ok": 6, "nok": 3}.items():
        (tmp_path / folder).mkdir()
        for number in range(count):
            (tmp_path / folder / f"{number}.png").write_bytes(noise_png(number, spot=folder == "nok"))
    (tmp_path / "ok/5.png").write_text("no image")
    found = evaluate(model, open_dataset(str(tmp_path)))
    assert found.metrics["failed"] == 1 and found.metrics["images"] == {"normal": 5, "anomalous": 3}
    assert any("1 of 9 images could not be scored; the first:" in line for line in found.warnings)
    write_evaluation(found, tmp_path / "out")
    assert "not an image" in (tmp_path / "out/scores.csv").read_text()


def test_a_table_of_predictions_is_no_truth(model: Model, data: DataSet, tmp_path: Path) -> None:
    table = tmp_path / "scores.csv"
    predict_to_file(model, list_inputs([str(data.root / "test")]), table)
    with pytest.raises(DataError, match="its labels are the model's own"):
        open_labelled(str(table))


def test_the_command(
    model_folder: Path,
    labelled: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    words = ["evaluate", str(model_folder), str(labelled), "--out", str(out), "--threshold", "0.5", "--json"]
    monkeypatch.setattr(sys, "argv", ["sctune", *words])
    with pytest.raises(SystemExit) as caught:
        main()
    assert not caught.value.code
    document = json.loads(capsys.readouterr().out)
    assert document["threshold"] == 0.5 and len(document["files"]) == 5
    assert json.loads((out / "metrics.json").read_text())["auroc"] == document["auroc"]
    with pytest.raises(SystemExit) as caught:
        main()
    error = capsys.readouterr().err
    assert caught.value.code == 2 and "exists; give a new folder" in error and len(error.splitlines()) == 1

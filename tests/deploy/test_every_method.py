"""What a trained model of each method goes through: predict, evaluate, ONNX, MLflow and a server give one score."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import mlflow.pyfunc
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from sctune.config.methods import BUILT_IN, method_entry
from sctune.deploy.locate import open_model
from sctune.deploy.model import ModelParts
from sctune.deploy.register import save_model
from tests.conftest import TINY, Command
from tests.serve.http_server import HttpServer

OWN = {
    # features of random weights are all alike
    "cutpaste": {"method.total_updates": 2, "model.weights": "imagenet"},
    "kdad": {"method.total_updates": 2},
    "saoe": {"method.members": "confetti,turned", "method.turned": "always"},
    "ssm": {"method.width": 2},
}


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", BUILT_IN)
def test_a_model_scores_the_same_wherever_it_goes(
    name: str, command: Command, image_folder: Path, tmp_path: Path
) -> None:
    out, table, maps = tmp_path / "model", tmp_path / "scores.csv", tmp_path / "maps"
    used = {field: value for field, value in TINY.items() if method_entry(name).looks_at(field)}
    fields = {**used, "method.name": name, **OWN.get(name, {})}
    words = [word for field, value in fields.items() for word in ("--set", f"{field}={value}")]
    code, stdout, stderr = command("train", *words, "--data", image_folder, "--test", "--out", out, "--json")
    assert code == 0, stderr
    tested = json.loads(stdout)["metrics"]["test_auroc"]
    model = open_model(str(out), device="cpu")
    assert model.config.entry.describe(model.config) in (out / "model_card.md").read_text()

    files = sorted((image_folder / "test").rglob("*.png"))[:6]
    code, _, stderr = command("predict", *files, "--model", out, "--out", table, "--heat-maps", maps)
    assert code == 0, stderr
    with table.open(newline="") as stream:
        scores = {row["path"]: float(row["score"]) for row in csv.DictReader(stream)}
    pixels = np.stack([model.prepare(file.read_bytes()).pixels for file in files])
    expected = model.score(pixels)
    assert list(scores.values()) == pytest.approx(expected, rel=1e-6, abs=1e-6) and len(set(expected)) == len(files)
    shown = [np.asarray(Image.open(file).convert("RGB")) for file in sorted(maps.rglob("*.png"))]
    assert len(shown) == len(files) and all(one.std() > 0 for one in shown)

    code, stdout, stderr = command("evaluate", out, image_folder, "--unseen-only", "--json")
    assert code == 0, stderr
    assert json.loads(stdout)["auroc"]["value"] == pytest.approx(tested)

    # it compares scores and labels itself, and writes nothing where they differ
    code, _, stderr = command("export", out, "--out", tmp_path / "model.onnx", "--images", image_folder / "test")
    assert code == 0 and (tmp_path / "model.onnx").is_file(), stderr

    parts = ModelParts(meta={"study": "s", "trial": 0})
    save_model(tmp_path / "mlflow", model.config, out / "weights.safetensors", parts, ("0" * 32, "m-" + "0" * 32))
    loaded = mlflow.pyfunc.load_model(str(tmp_path / "mlflow"))
    frame = loaded.predict(pd.DataFrame({"image": [file.read_bytes() for file in files]}), params={"heat_map": True})
    np.testing.assert_array_equal(frame["score"].to_numpy(), expected)
    assert frame["heat_map"].str.len().min() > 100

    with HttpServer(tmp_path, "--model", out) as server:
        answers = [server.send(file.read_bytes()).json()["results"][0] for file in files]
    assert [answer["score"] for answer in answers] == pytest.approx(expected, rel=1e-6, abs=1e-6)

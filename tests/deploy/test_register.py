"""A model on its whole way: folder, MLflow, registry, a fresh process without pickle and without this checkout."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
import time
from io import BytesIO
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from safetensors.torch import save_file

from sctune.config import TrialConfig
from sctune.data.decode import Decoding, decode_image
from sctune.deploy.flavor import ImageScorer
from sctune.deploy.model import ModelParts, load_model_folder, write_model_folder
from sctune.deploy.package import build_wheel
from sctune.deploy.register import log_model_run, registered_name, requirements
from sctune.errors import CheckpointError, DataError, TrackingError
from sctune.methods.deviation.detector import Detector
from sctune.serve.predict import predicted_rows
from sctune.tracking.server import default_tracking_uri, find_experiment, mlflow_client
from tests.models import small_config, small_detector

META = ModelParts({"study": "first", "trial": 0, "licence": "CC BY-NC-SA 4.0", "attribution": "Images: somebody"})


def png(seed: int, side: int = 80) -> bytes:
    stream = BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)).save(stream, "PNG")
    return stream.getvalue()


IMAGES = [png(seed) for seed in range(3)]


@pytest.fixture(scope="module")
def config() -> TrialConfig:
    return small_config()


@pytest.fixture(scope="module")
def detector(config: TrialConfig) -> Detector:
    return small_detector(config)


@pytest.fixture(scope="module")
def weights(detector: Detector, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "weights.safetensors"
    save_file({name: value.contiguous() for name, value in detector.state_dict().items()}, path)
    return path


@pytest.fixture(scope="module")
def expected(detector: Detector) -> np.ndarray:
    scores = detector.score_images(np.stack([decode_image(image, Decoding(64)) for image in IMAGES]))
    assert np.abs(np.diff(scores)).min() > 1e-4, "equal scores would show nothing"
    return scores


@pytest.fixture(scope="module")
def scorer(config: TrialConfig, weights: Path, tmp_path_factory: pytest.TempPathFactory) -> ImageScorer:
    return ImageScorer(load_model_folder(write_model_folder(tmp_path_factory.mktemp("model"), config, weights, META)))


def test_every_form_of_input_gives_the_detectors_scores(scorer: ImageScorer, expected: np.ndarray) -> None:
    texts = [base64.b64encode(image).decode() for image in IMAGES]
    forms = [
        pd.DataFrame({"image": IMAGES}),
        pd.DataFrame({"image": texts}),
        {"image": IMAGES},
        IMAGES,
        np.array(IMAGES, dtype=object),
        np.array(texts, dtype=object)[:, None],
        {"image": np.array([text.encode() for text in texts])},  # what MLflow's server makes of `inputs`
    ]
    for form in forms:
        scores = scorer.predict(form)["score"]
        assert scores.dtype == np.float64
        np.testing.assert_allclose(scores, expected, atol=1e-5)
    np.testing.assert_allclose(scorer.predict(IMAGES[0])["score"], expected[:1], atol=1e-5)
    assert len(scorer.predict(pd.DataFrame({"image": []}))) == 0
    assert (scorer.model.threshold, scorer.meta["trial"]) == (None, 0)


def test_a_request_longer_than_a_batch_keeps_its_order(scorer: ImageScorer, expected: np.ndarray) -> None:
    scores = scorer.predict([IMAGES[i % 3] for i in range(40)])["score"]
    np.testing.assert_allclose(scores, np.resize(expected, 40), atol=1e-5)


def test_a_bad_image_answers_for_its_own_row(scorer: ImageScorer, expected: np.ndarray) -> None:
    given = [IMAGES[0], b"no image", "not base64!", 3.5, None, IMAGES[2][:99], IMAGES[2]]
    found = scorer.predict(given, params={"heat_map": True})
    assert list(found.columns) == ["score", "label", "error", "heat_map", "note"] and found["score"].dtype == np.float64
    np.testing.assert_allclose(found["score"], [expected[0], *[np.nan] * 5, expected[2]], atol=1e-5)
    assert [text is None for text in found["error"]] == [picture is not None for picture in found["heat_map"]]
    assert found["error"][1].startswith("row 1: not an image that can be read")
    assert found["error"][2] == "row 2: the text is not base64; send an image file's bytes as base64"
    assert found["error"][3].startswith("row 3: a float is no image") and "row 4: a NoneType" in found["error"][4]
    assert found["error"][5].startswith("row 5 cannot be decoded: ")
    # as MLflow's server writes it, where NaN would be no JSON
    text = json.dumps(found[["score", "error"]].to_dict("records"))
    assert "NaN" in text, "a part of it is a plain table"
    (first, second, *_) = found.to_dict(orient="records")
    assert first["score"] == found["score"][0] and (second["score"], second["heat_map"]) == (None, None)
    every = scorer.predict([b"no image"] * 40)
    assert every["error"][39].startswith("row 39: ") and every["score"].isna().all() and len(every) == 40


def test_a_note_is_handed_on_behind_the_other_columns(scorer: ImageScorer) -> None:
    flat = BytesIO()
    Image.new("L", (40, 30), 77).save(flat, "PNG")
    found = scorer.predict([IMAGES[0], flat.getvalue(), b"no image"])
    assert list(found.columns) == ["score", "label", "error", "note"]
    assert found["note"].tolist() == [None, "constant: every pixel is 77", None]
    assert found["error"].isna().tolist() == [True, True, False]


def test_an_error_has_the_text_of_predict(scorer: ImageScorer, tmp_path: Path) -> None:
    """One text for one fault, with the path in place of the row; also where decoding is told a path and not bytes."""
    faults = {"text": b"no image", "cut": IMAGES[0][:200], "array": b"\x93NUMPY, said the text", "": b""}
    rows = scorer.predict(list(faults.values()))["error"]
    for row, (name, content) in zip(rows, faults.items(), strict=True):
        path = tmp_path / f"{name}.png"
        path.write_bytes(content)
        number = list(faults).index(name)
        (chunk,) = predicted_rows(scorer.model, [str(path)])
        assert chunk[0]["error"] == row.replace(f"row {number}", str(path), 1) and str(path) in chunk[0]["error"]
        with pytest.raises(DataError) as caught:
            scorer.model.prepare(path)
        assert str(caught.value) == chunk[0]["error"]


@pytest.mark.parametrize("as_bytes", [False, True])
def test_base64_is_read_as_clients_write_it(scorer: ImageScorer, expected: np.ndarray, as_bytes: bool) -> None:
    content = IMAGES[0] + b"\xff\xfe\xfb\xef"  # what follows a PNG is not read
    plain = base64.b64encode(content).decode()
    forms = [
        plain,
        base64.encodebytes(content).decode(),
        base64.encodebytes(content).decode().replace("\n", "\r\n"),
        base64.urlsafe_b64encode(content).decode(),
        plain.rstrip("="),
        f"data:image/png;base64,{plain}",
        f"DATA:image/png;charset=utf-8;base64,{base64.urlsafe_b64encode(content).decode().rstrip('=')}\n",
    ]
    assert {"-", "_"} <= set(forms[3]) and forms[4] != plain
    given = [form.encode() for form in forms] if as_bytes else forms
    found = scorer.predict(given)
    assert found["error"].tolist() == [None] * len(forms)
    np.testing.assert_allclose(found["score"], [expected[0]] * len(forms), atol=1e-5)


def test_what_is_wrong_with_all_rows_is_an_error_of_the_request(scorer: ImageScorer) -> None:
    with pytest.raises(DataError, match="no column 'image'"):
        scorer.predict(pd.DataFrame({"picture": [b""]}))
    with pytest.raises(DataError, match="unknown parameters"):
        scorer.predict(IMAGES, params={"threshold": 1})


def test_a_damaged_or_newer_folder_is_refused(config: TrialConfig, weights: Path, tmp_path: Path) -> None:
    folder = write_model_folder(tmp_path, config, weights, META)
    (folder / "meta.json").write_text(json.dumps({"format_version": 2}))
    with pytest.raises(CheckpointError, match="not of format 1"):
        load_model_folder(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="cannot read"):
        load_model_folder(folder)


def test_requirements_are_exact_and_without_local_versions(config: TrialConfig) -> None:
    *packages, wheel = requirements(config)
    assert all(line.count("==") == 1 and "+" not in line for line in packages)
    assert {line.split("==")[0] for line in packages} >= {"torch", "safetensors", "efficientnet-lite-pytorch"}
    assert wheel.startswith("./data/detector/code/sctune-") and wheel.endswith(".whl")
    plain = config.override({"model.backbone": "resnet18"})
    assert not any(line.startswith("efficientnet") for line in requirements(plain))


def test_names_for_the_registry() -> None:
    assert registered_name("a/b:c") == "a-b-c"


PROGRAM = """
import json, sys
import mlflow, pandas as pd
mlflow.set_tracking_uri(sys.argv[1])
model = mlflow.pyfunc.load_model(sys.argv[2])
frame = pd.DataFrame({"image": [open(path, "rb").read() for path in sys.argv[3:]]})
import sctune
print(json.dumps({"scores": model.predict(frame)["score"].tolist(), "sctune": sctune.__file__}))
"""


def test_a_registered_model_loads_in_a_fresh_process_without_pickle(
    config: TrialConfig, weights: Path, expected: np.ndarray, tmp_path: Path, empty_store: Path
) -> None:
    uri = default_tracking_uri(tmp_path / "store")
    (tmp_path / "store").mkdir()
    shutil.copyfile(empty_store, tmp_path / "store" / "mlflow.db")
    client = mlflow_client(uri)
    run = client.create_run(find_experiment(client, uri), run_name="parent").info.run_id
    first = log_model_run(uri, run, config, weights, META, "first")
    again = log_model_run(uri, run, config, weights, META, "first")
    assert (first, again) == (("first", 1, "models:/first@candidate", True), ("first", 1, first.uri, False))
    found = client.get_model_version_by_alias("first", "candidate")
    assert (found.run_id, found.tags["trial"], found.tags["licence"]) == (run, "0", "CC BY-NC-SA 4.0")
    assert found.description == "Images: somebody"
    (output,) = client.get_run(run).outputs.model_outputs
    assert f"/{output.model_id}/" in found.source
    assert client.get_logged_model(output.model_id).status == "READY"

    folder = Path(found.source.removeprefix("file://"))
    text = (folder / "MLmodel").read_text()
    assert str(tmp_path) not in text and "loader_module: sctune.deploy.flavor" in text
    assert not [path for path in folder.rglob("*") if path.suffix in (".pkl", ".pickle", ".pth", ".bin")]
    line = (folder / "requirements.txt").read_text().splitlines()[-1]
    assert (folder / line).is_file(), "the wheel is where the requirements say"

    # the code comes from the model's own wheel, from another folder
    target = tmp_path / "target"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(target)]
    subprocess.run([*pip, str(folder / line)], check=True, capture_output=True)
    paths = []
    for number, image in enumerate(IMAGES):
        (tmp_path / f"{number}.png").write_bytes(image)
        paths.append(str(tmp_path / f"{number}.png"))
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, uri, first.uri, *paths],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(target), "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"},
        check=True,
        capture_output=True,
        text=True,
    )
    answer = json.loads(done.stdout.splitlines()[-1])
    assert answer["sctune"].startswith(str(target))
    np.testing.assert_allclose(answer["scores"], expected, atol=1e-5)


def test_a_registry_that_is_away_is_one_line_in_bounded_time(config: TrialConfig, weights: Path) -> None:
    with pytest.raises(TrackingError, match="the best model was not registered") as caught:
        log_model_run("http://me:secret@127.0.0.1:9", "run", config, weights, META, "first", timeout_s=5)
    assert "\n" not in str(caught.value) and "secret" not in str(caught.value)


def test_a_slow_registry_is_left_behind(
    config: TrialConfig, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sctune.deploy.register._log", lambda *_: time.sleep(30))
    with pytest.raises(TrackingError, match="took longer than 0 s"):
        log_model_run(default_tracking_uri(tmp_path), "run", config, weights, META, "first", timeout_s=0.2)


def test_the_wheel_in_the_model_is_the_running_package(config: TrialConfig, weights: Path, tmp_path: Path) -> None:
    folder = write_model_folder(tmp_path / "model", config, weights, META)
    wheel = build_wheel(tmp_path / "wheel")
    assert (folder / "code" / wheel.name).read_bytes() == wheel.read_bytes()

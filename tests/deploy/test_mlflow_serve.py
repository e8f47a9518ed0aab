"""`mlflow models serve` on a registered model, as anyone would start it: base64 images in, scores and labels out."""

from __future__ import annotations

import base64
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

import numpy as np
import pytest
from PIL import Image

from sctune.deploy.conformance.check import check_consumer
from sctune.deploy.conformance.pack import write_pack
from sctune.deploy.model import Model, load_model_folder
from sctune.deploy.register import log_model_run
from sctune.tracking.server import check_tracking, default_tracking_uri, find_experiment, mlflow_client
from tests.models import noise_png, write_small_model
from tests.processes import end_group

pytestmark = pytest.mark.slow
IMAGES = [noise_png(seed, spot=seed % 2 == 1) for seed in range(4)]
TEXTS = [base64.b64encode(image).decode() for image in IMAGES]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def model(folder: Path) -> Model:
    return load_model_folder(folder)


@pytest.fixture(scope="module")
def url(folder: Path, model: Model, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server that was started with nothing but the model's name and the registry."""
    home = tmp_path_factory.mktemp("home")
    uri = default_tracking_uri(home)
    check_tracking(uri)
    client = mlflow_client(uri)
    run = client.create_run(find_experiment(client, uri), run_name="parent").info.run_id
    made = log_model_run(uri, run, model.config, folder / "weights.safetensors", model.parts, "first")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", made.uri, "--env-manager", "local"]
    log = home / "log"
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port)],
            env={**os.environ, "MLFLOW_TRACKING_URI": uri, "MLFLOW_DISABLE_TELEMETRY": "true"},
            cwd=home,
            stdout=stream,
            stderr=stream,
            start_new_session=True,
        )
    try:
        end, address = time.monotonic() + 100, f"http://127.0.0.1:{port}"
        while True:
            try:
                urlopen(f"{address}/ping", timeout=5).close()
                break
            except (URLError, OSError):
                assert process.poll() is None and time.monotonic() < end, log.read_text()[-3000:]
                time.sleep(0.2)
        yield address
    finally:
        process.kill()
        process.wait()
        end_group(process.pid)


def refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is no JSON")


def ask(url: str, document: dict[str, Any]) -> list[dict[str, Any]]:
    body = json.dumps(document).encode()
    with urlopen(Request(f"{url}/invocations", body, {"Content-Type": "application/json"}), timeout=60) as answer:
        rows: list[dict[str, Any]] = json.load(answer, parse_constant=refuse)["predictions"]
        return rows


def test_both_forms_of_input_give_scores_and_labels(url: str, model: Model) -> None:
    scores = model.score([model.prepare(image).pixels for image in IMAGES])
    labels = model.labels(scores)
    assert len(set(labels)) == 2, "one label would show nothing"
    forms = (
        {"dataframe_split": {"columns": ["image"], "data": [[text] for text in TEXTS]}},
        {"dataframe_records": [{"image": text} for text in TEXTS]},
        {"inputs": {"image": TEXTS}},
        {"inputs": [{"image": text} for text in TEXTS]},
    )
    for form in forms:
        rows = ask(url, form)
        assert [row["score"] for row in rows] == scores.tolist(), form.keys()
        assert [row["label"] for row in rows] == labels
        assert "heat_map" not in rows[0]


def test_heat_maps_on_request(url: str) -> None:
    for form in ({"dataframe_split": {"columns": ["image"], "data": [[TEXTS[1]]]}}, {"inputs": {"image": TEXTS[1:2]}}):
        (row,) = ask(url, {**form, "params": {"heat_map": True}})
        with Image.open(BytesIO(base64.b64decode(row["heat_map"]))) as picture:
            assert picture.format == "PNG" and picture.size == (64, 64) and np.ptp(np.asarray(picture)) > 50


def test_what_is_no_image_answers_for_its_own_row(url: str, model: Model) -> None:
    """In every form, with valid JSON (`ask` refuses NaN), and base64 as clients write it."""
    score = float(model.score([model.prepare(IMAGES[0]).pixels])[0])
    safe = base64.urlsafe_b64encode(IMAGES[0]).decode().rstrip("=")
    assert {"-", "_"} <= set(safe)
    good = [TEXTS[0], safe, base64.encodebytes(IMAGES[0]).decode(), f"data:image/png;base64,{TEXTS[0]}"]
    for bad in ("text", base64.b64encode(b"text").decode(), "übel", None):
        data = [*good, bad]
        forms: tuple[dict[str, Any], ...] = (
            {"dataframe_split": {"columns": ["image"], "data": [[text] for text in data]}},
            {"dataframe_records": [{"image": text} for text in data]},
            {"inputs": {"image": data}},
            {"inputs": [{"image": text} for text in data]},
        )
        for form in forms:
            *rows, last = ask(url, form)
            assert [(row["score"], row["error"]) for row in rows] == [(score, None)] * 4, (form.keys(), bad)
            assert {row["note"] for row in (*rows, last)} == {None}
            assert (last["score"], last["label"]) == (None, None) and last["error"].startswith("row 4: "), last
    with pytest.raises(HTTPError):
        ask(url, {"dataframe_split": {"columns": ["picture"], "data": [[TEXTS[0]]]}})


def test_it_agrees_with_the_pack_of_its_model(url: str, model: Model, tmp_path: Path) -> None:
    found = check_consumer(write_pack(model, tmp_path / "pack"), f"{url}/invocations")
    assert found.differing == [] and {row.difference for row in found.rows} <= {0.0, None}, found.line()

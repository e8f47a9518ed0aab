"""The same application on a real local Ray Serve."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from sctune.cli.serve import serve
from sctune.deploy.model import load_model_folder
from sctune.errors import ConfigError
from sctune.serve.ray_app import packed, unpacked
from tests.models import noise_png, write_small_model
from tests.serve.http_server import Answer, HttpServer

TOKEN = "a-token-for-replicas"
IMAGES = {f"{seed}.png": noise_png(seed, spot=seed % 2 == 1) for seed in range(4)}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_a_packed_folder_is_the_same_model(tmp_path: Path) -> None:
    folder = write_small_model(tmp_path / "model")
    files = packed(folder)
    assert set(files) >= {"config.json", "weights.safetensors", "meta.json"}
    again = load_model_folder(unpacked(files, tmp_path / "again"))
    model = load_model_folder(folder)
    pixels = [model.prepare(image).pixels for image in IMAGES.values()]
    assert again.score(pixels).tolist() == model.score(pixels).tolist() and again.threshold == model.threshold


@pytest.mark.slow
def test_what_cannot_be_is_told_in_one_line(tmp_path: Path) -> None:
    folder = write_small_model(tmp_path / "model")
    with pytest.raises(ConfigError, match="add --address local"):
        serve(str(folder), replicas=2)
    with pytest.raises(ConfigError, match="--port 0"):
        serve(str(folder), port=0, address="local")
    words = ["--address", "127.0.0.1:1", "--port", str(free_port()), "--model", str(folder)]
    done = subprocess.run(
        [sys.executable, "-m", "sctune", "serve", *words],
        capture_output=True,
        text=True,
        env={**os.environ, "SCTUNE_HOME": str(tmp_path)},
    )
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert "cannot connect to Ray at 127.0.0.1:1" in done.stderr


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_two_replicas_give_the_models_scores(tmp_path: Path) -> None:
    folder = write_small_model(tmp_path / "model")
    model = load_model_folder(folder)
    alone = {name: float(model.score([model.prepare(image).pixels])[0]) for name, image in IMAGES.items()}
    words = ["--model", folder, "--address", "local", "--replicas", 2, "--port", free_port()]
    with HttpServer(tmp_path, *words, environment={"SCTUNE_SERVE_TOKEN": TOKEN}, patience=300) as server:
        right = {"Authorization": f"Bearer {TOKEN}"}
        assert server.get("/health").json() == {"status": "ok"}
        assert server.get("/model").status == 401 and server.send(IMAGES["0.png"]).status == 401
        told = server.request("GET", "/model", headers=right).json()
        assert told["model"]["address"] == "model" and told["card"] == "# A model\n"
        assert b"Drop images here" in server.get("/").body

        answers: dict[int, Answer] = {}
        names = list(IMAGES)

        def ask(number: int) -> None:
            headers = {**right, "Content-Type": "image/png"}
            answers[number] = server.request("POST", "/predict", IMAGES[names[number % 4]], headers)

        asking = [threading.Thread(target=ask, args=(number,)) for number in range(60)]
        for one in asking:
            one.start()
        for one in asking:
            one.join()
        for number, answer in sorted(answers.items()):
            assert answer.status == 200, answer
            assert answer.json()["results"][0]["score"] == alone[names[number % 4]]
        assert len(answers) == 60

        bad = server.request("POST", "/predict", b"text", {**right, "Content-Type": "image/png"})
        assert bad.status == 400 and "not an image" in bad.json()["error"]
        large = server.request("POST", "/predict", bytes(21_000_000), {**right, "Content-Type": "image/png"})
        assert large.status == 413
        other = {**right, "Content-Type": "image/png", "Origin": "http://elsewhere.example"}
        assert server.request("POST", "/predict", IMAGES["0.png"], other).status == 403
        check_addresses(server)
        assert TOKEN.encode() not in Path(f"/proc/{server.process.pid}/cmdline").read_bytes()
        assert server.stop() == 0
        assert "Traceback" not in server.text and server.text.startswith("serving model"), server.text
        with pytest.raises(OSError):
            server.get("/health")


def check_addresses(server: HttpServer) -> None:
    """The HTTP port is open to this machine only."""
    wanted = f"{server.port:04X}"
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    listening = {place.split(":")[0] for _, place, _, state, *_ in lines if state == "0A" and place.endswith(wanted)}
    assert listening == {"0100007F"}, "the port listens elsewhere than at 127.0.0.1"

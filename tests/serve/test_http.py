"""The web application, over HTTP against the real process: forms of input, limits, tokens, other sites, the end."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sctune.cli import main
from sctune.deploy.conformance.check import check_consumer
from sctune.deploy.conformance.pack import Pack, write_pack
from sctune.deploy.model import Model, load_model_folder
from sctune.errors import ConfigError
from sctune.serve.app import Access, Service, make_app
from sctune.serve.auth import find_token
from sctune.serve.limits import Limits
from sctune.serve.metrics import score_edges
from tests.models import noise_png, write_small_model
from tests.serve.http_server import HttpServer, form_body

JSON = "application/json"
IMAGES = {f"{seed}.png": noise_png(seed, side=60 + seed, spot=seed % 2 == 1) for seed in range(5)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_model(tmp_path_factory.mktemp("models") / "detector")


@pytest.fixture(scope="module")
def model(folder: Path) -> Model:
    return load_model_folder(folder)


@pytest.fixture(scope="module")
def expected(model: Model) -> dict[str, float]:
    """Scores by file name, each image scored alone."""
    return {name: float(model.score([model.prepare(content).pixels])[0]) for name, content in IMAGES.items()}


@pytest.fixture(scope="module")
def server(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HttpServer]:
    with HttpServer(tmp_path_factory.mktemp("home"), "--model", folder) as running:
        yield running


@pytest.fixture(scope="module")
def pack(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Pack:
    return write_pack(model, tmp_path_factory.mktemp("packs") / "pack")


def test_every_form_of_input_gives_the_models_scores(server: HttpServer, expected: dict[str, float]) -> None:
    scores = list(expected.values())
    assert len(set(scores)) == 5
    form = server.form(IMAGES).json()["results"]
    assert [(one["name"], one["score"]) for one in form] == list(expected.items())
    texts = [base64.b64encode(content).decode() for content in IMAGES.values()]
    document = server.send(json.dumps({"images": texts}).encode(), kind="application/json; charset=utf-8").json()
    assert [(one["name"], one["score"]) for one in document["results"]] == [
        (f"images[{number}]", score) for number, score in enumerate(scores)
    ]
    for kind in ("image/png", "application/octet-stream", "Image/JPEG"):
        (one,) = server.send(IMAGES["3.png"], kind=kind).json()["results"]
        assert one["score"] == expected["3.png"], kind


def test_an_answer_says_what_was_found(server: HttpServer, model: Model, expected: dict[str, float]) -> None:
    answer = server.send(IMAGES["1.png"])
    document, image = answer.json(), model.prepare(IMAGES["1.png"])
    assert model.threshold is not None and document["threshold"] == model.threshold.value
    assert {key: document["model"][key] for key in ("address", "study", "trial")} == {
        "address": "detector", "study": "first", "trial": "0"
    }  # fmt: skip
    (one,) = document["results"]
    assert one["label"] == ("anomalous" if expected["1.png"] > model.threshold.value else "normal")
    assert (one["width"], one["height"]) == (61, 61)
    assert (one["brightness"], one["contrast"]) == (image.brightness, image.contrast)
    assert not {"heat_map", "error", "note"} & set(one)
    labels = {result["label"] for result in server.form(IMAGES).json()["results"]}
    assert labels == {"normal", "anomalous"}, "only one label would show nothing"


def test_heat_maps_are_pictures(server: HttpServer) -> None:
    answer = server.form({"a.png": IMAGES["1.png"], "b.txt": b"no image"}, "/predict?heat_map=true").json()
    first, second = answer["results"]
    with Image.open(BytesIO(base64.b64decode(first["heat_map"]))) as picture:
        assert (picture.format, picture.size) == ("PNG", (64, 64))
        assert np.ptp(np.asarray(picture)) > 50
    assert second["error"] and "heat_map" not in second
    assert server.send(IMAGES["1.png"], "/predict?heat_map=perhaps").status == 422


def test_a_bad_image_among_good_ones_has_its_own_error(server: HttpServer, expected: dict[str, float]) -> None:
    answer = server.form({"0.png": IMAGES["0.png"], "bad.png": b"text", "2.png": IMAGES["2.png"]})
    first, bad, last = answer.json()["results"]
    assert answer.status == 200
    assert (first["score"], last["score"]) == (expected["0.png"], expected["2.png"])
    assert set(bad) == {"name", "error"} and bad["error"].startswith("bad.png: not an image that can be read")
    alone = server.form({"bad.png": b"text"})
    assert alone.status == 400 and alone.json() == {"error": bad["error"], "results": [bad]}
    several = server.form({"a": b"text", "b": b""})
    assert several.status == 400 and several.json()["error"].startswith("none of 2 images: a: ")
    assert [(one["name"], one["error"][:3]) for one in several.json()["results"]] == [("a", "a: "), ("b", "b: ")]
    texts = json.dumps({"images": ["!", base64.b64encode(IMAGES["0.png"]).decode()]}).encode()
    mixed = server.send(texts, kind="application/json").json()["results"]
    assert "not base64" in mixed[0]["error"] and mixed[1]["score"] == expected["0.png"]


def test_base64_is_read_as_clients_write_it(server: HttpServer, expected: dict[str, float]) -> None:
    text = base64.b64encode(IMAGES["0.png"]).decode()
    forms = [
        base64.encodebytes(IMAGES["0.png"]).decode(),
        text.replace("\n", "").replace("+", "-").replace("/", "_").rstrip("="),
        f"data:image/png;base64,{text}",
    ]
    assert "\n" in forms[0] and {"-", "_"} <= set(forms[1])
    answer = server.send(json.dumps({"images": [*forms, f"data:image/png,{text}", 7, text]}).encode(), kind=JSON)
    assert answer.status == 200
    *good, plain, number, last = answer.json()["results"]
    assert [one["score"] for one in (*good, last)] == [expected["0.png"]] * 4
    assert plain["error"].startswith("images[3]: the text is not base64") and number["error"].startswith(
        "images[4]: no"
    )
    # each has a comma of its own, which is no image more
    many = server.send(json.dumps({"images": [forms[2]] * 64}).encode(), kind=JSON)
    assert many.status == 200 and len(many.json()["results"]) == 64
    assert server.send(json.dumps({"images": [forms[2]] * 65}).encode(), kind=JSON).status == 413


def test_a_server_agrees_with_the_pack_of_its_model(
    server: HttpServer, model: Model, pack: Pack, tmp_path: Path
) -> None:
    for address in (server.url, f"{server.url}/predict"):
        found = check_consumer(pack, address)
        assert found.differing == [] and {row.difference for row in found.rows} <= {0.0, None}, found.line()
    other = Model(model.method, model.config.override({"data.resize": "pad"}), model.parts)
    found = check_consumer(write_pack(other, tmp_path / "other"), server.url)
    assert found.differing and "without regard to the aspect" in found.line()
    with pytest.raises(ConfigError, match="answers 404"):
        check_consumer(pack, f"{server.url}/none")
    with pytest.raises(ConfigError, match="answers 405"):
        check_consumer(pack, f"{server.url}/model")


def test_pages_about_the_server(server: HttpServer, model: Model) -> None:
    assert server.get("/health").json() == {"status": "ok"}
    assert server.get("/ready").json() == {"status": "ready"}
    told = server.get("/model").json()
    assert model.threshold is not None
    assert told["threshold"]["value"] == model.threshold.value and told["threshold_line"] == model.threshold.line()
    assert told["card"] == "# A model\n" and told["meta"]["licence"] == "CC BY-NC-SA 4.0"
    schema = server.get("/openapi.json").json()
    assert set(schema["paths"]) == {"/predict", "/health", "/ready", "/metrics", "/model"}
    assert "multipart/form-data" in schema["paths"]["/predict"]["post"]["requestBody"]["content"]
    for path in ("/", "/docs"):
        page = server.get(path)
        text = page.body.decode()
        assert page.headers["content-type"].startswith("text/html")
        assert "default-src 'none'" in page.headers["content-security-policy"]
        assert not re.search(r"(src|href)=\"?(https?:)?//", text), "loads something from elsewhere"
    assert "/predict" in server.get("/docs").body.decode()
    assert server.get("/etc/passwd").json() == {"error": "no such page; see /docs"}
    assert server.get("/predict").status == 405


def numbers(server: HttpServer) -> dict[str, float]:
    """What /metrics says: name with labels -> value."""
    answer = server.get("/metrics")
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    values = {}
    for line in answer.body.decode().splitlines():
        assert re.fullmatch(r"# (HELP|TYPE) \w+ .+|\w+(\{[^{}]*\})? \S+", line), line
        if not line.startswith("#"):
            name, _, value = line.rpartition(" ")
            values[name] = float(value)
    return values


def test_metrics_count_what_was_asked(server: HttpServer, model: Model) -> None:
    before = numbers(server)
    server.form(IMAGES)
    server.send(IMAGES["1.png"])
    server.send(b"text")
    server.get("/nothing/here")
    after = numbers(server)

    def more(name: str) -> float:
        return after[name] - before.get(name, 0)

    scores = model.score([model.prepare(content).pixels for content in IMAGES.values()])
    scores = np.append(scores, scores[1])
    alarms = int((np.array(model.labels(scores)) == "anomalous").sum())
    assert more('sctune_requests_total{path="/predict",status="200"}') == 2
    assert more('sctune_requests_total{path="/predict",status="400"}') == 1
    assert more('sctune_requests_total{path="other",status="404"}') == 1
    assert more("sctune_alarms_total") == more('sctune_images_total{label="anomalous"}') == alarms > 0
    assert more('sctune_images_total{label="normal"}') == 6 - alarms
    assert more('sctune_images_total{label="refused"}') == 1
    assert more("sctune_predict_seconds_count") == 3 and after["sctune_waiting_images"] == 0
    assert more("sctune_score_count") == 6 and more("sctune_score_sum") == pytest.approx(scores.sum())
    for edge in score_edges(model):
        assert more(f'sctune_score_bucket{{le="{edge!r}"}}') == (scores <= edge).sum()
    assert more('sctune_score_bucket{le="+Inf"}') == 6
    (info,) = (name for name in after if name.startswith("sctune_model_info"))
    assert 'study="first"' in info


@pytest.mark.parametrize(
    ("kind", "body", "status", "words"),
    [
        ("text/plain", b"x", 415, "content type text/plain"),
        ("", b"x", 415, "content type"),
        ("application/json", b"{", 400, "no JSON"),
        ("application/json", b"\xff\xfe", 400, "no JSON"),
        ("application/json", b"[" * 1_000_000, 422, "nested"),
        ("application/json", b"[]", 422, "no list 'images'"),
        ("application/json", b'{"images": {"a": 1}}', 422, "no list 'images'"),
        ("application/json", b'{"images": [1]}', 400, "images[0]: no text"),
        ("application/json", b'{"images": [["QQ=="]]}', 400, "images[0]: no text"),
        ("application/json", b'{"images": [], "path": "/etc/passwd"}', 422, "unknown key 'path'"),
        ("application/json", b'{"images": []}', 400, "no image in the request"),
        ("application/json", b'{"images": [""]}', 400, "not an image"),
        ("application/json", b'{"images": ["' + b'QQ==","' * 64 + b'"]}', 413, "more than 64 images"),
        ("image/png", b"", 400, "no image in the request"),
        ("multipart/form-data", b"x", 400, "form cannot be read"),
        ("multipart/form-data; boundary=b", b"--b\r\n\r\nx\r\n--b--\r\n", 400, "form cannot be read"),
        ("multipart/form-data; boundary=b", b"--b--\r\n", 400, ""),
        (
            "multipart/form-data; boundary=b",
            b'--b\r\nContent-Disposition: form-data; name="files"\r\n\r\nx\r\n--b--\r\n',
            400,
            "form cannot be read",
        ),
    ],
)  # fmt: skip
def test_what_holds_no_image_is_refused_in_one_line(
    server: HttpServer, kind: str, body: bytes, status: int, words: str
) -> None:
    answer = server.send(body, kind=kind) if kind else server.request("POST", "/predict", body)
    error = answer.json()["error"]
    assert (answer.status, words in error, "\n" in error) == (status, True, False), (answer.status, error)
    assert server.get("/health").status == 200


def test_too_many_files(server: HttpServer) -> None:
    answer = server.form({f"{number}.png": IMAGES["0.png"] for number in range(65)})
    assert answer.status == 413 and "more than 64 images" in answer.json()["error"]
    assert len(server.form({f"{number}.png": IMAGES["0.png"] for number in range(64)}).json()["results"]) == 64


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://elsewhere.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},
        {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"},
        {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"},
        {"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "cors"},
        {"Host": "rebound.example"},
        {"Host": "rebound.example:80", "Origin": "http://rebound.example:80", "Sec-Fetch-Site": "same-origin"},
        {"Host": "127.0.0.1.rebound.example"},
        {"Host": ""},
    ],
)
def test_pages_of_other_sites_are_refused(server: HttpServer, headers: dict[str, str]) -> None:
    more = {"Content-Type": "image/png", **headers}
    answer = server.request("POST", "/predict", IMAGES["0.png"], more)
    assert answer.status in (400, 403), answer
    assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Origin": "http://127.0.0.1:PORT"},
        {"Host": "localhost:PORT", "Origin": "http://localhost:PORT", "Sec-Fetch-Site": "same-origin"},
        {"Host": "[::1]:PORT"},
    ],
)
def test_programs_and_its_own_page_are_answered(server: HttpServer, headers: dict[str, str]) -> None:
    filled = {name: value.replace("PORT", str(server.port)) for name, value in headers.items()}
    answer = server.request("POST", "/predict", IMAGES["0.png"], {"Content-Type": "image/png", **filled})
    assert answer.status == 200, answer
    link = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
    assert server.request("GET", "/", headers=link).status == 200


@pytest.mark.slow
def test_a_host_that_others_reach_needs_a_token(folder: Path, tmp_path: Path) -> None:
    """Refused before anything listens."""
    command = [sys.executable, "-m", "sctune", "serve", "--model", str(folder), "--port", "0"]
    environment = {**os.environ, "SCTUNE_HOME": str(tmp_path)}
    environment.pop("SCTUNE_SERVE_TOKEN", None)
    done = subprocess.run([*command, "--host", "0.0.0.0"], capture_output=True, text=True, env=environment)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert "--host 0.0.0.0" in done.stderr and "SCTUNE_SERVE_TOKEN" in done.stderr


def test_rules_of_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SCTUNE_SERVE_TOKEN", raising=False)
    for host in ("127.0.0.1", "localhost", "::1", "127.8.9.1"):
        assert find_token(host, None) is None
    for host in ("0.0.0.0", "::", "192.168.0.7", "example.org", "", "127.0.0.1.example.org"):
        with pytest.raises(ConfigError, match="no token is set"):
            find_token(host, None)
    monkeypatch.setenv("SCTUNE_SERVE_TOKEN", "a-token-of-the-environment")
    assert find_token("0.0.0.0", None) == find_token("127.0.0.1", None) == "a-token-of-the-environment"
    file = tmp_path / "token"
    file.write_text("a-token-of-the-file\n")
    assert find_token("0.0.0.0", file) == "a-token-of-the-file"
    for bad in ("", "short", "x" * 15, "with a blank in it", "ünïcödé-letters-here"):
        file.write_text(bad)
        with pytest.raises(ConfigError) as caught:
            find_token("127.0.0.1", file)
        assert str(file) in str(caught.value) and (not bad or bad not in str(caught.value))
    with pytest.raises(ConfigError, match="No such file"):
        find_token("127.0.0.1", tmp_path / "none")


def test_a_server_with_a_token_is_checked_with_it(
    folder: Path, pack: Pack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    token, file = "secret-token-5c77f1", tmp_path / "token"
    shutil.copytree(pack.folder, tmp_path / "pack")
    manifest = tmp_path / "pack/pack.json"
    about = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({**about, "files": about["files"][:2]}))
    # what is known of the host by another file takes not the token's place
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login someone password else\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))

    def check(*words: str) -> tuple[int, str]:
        command = ["sctune", "export", "--pack", str(manifest.parent), "--check", running.url, *words]
        monkeypatch.setattr(sys, "argv", command)
        with pytest.raises(SystemExit) as caught:
            main()
        told = capsys.readouterr()
        return int(caught.value.code or 0), told.out + told.err

    with HttpServer(tmp_path, "--model", folder, environment={"SCTUNE_SERVE_TOKEN": token}) as running:
        monkeypatch.delenv("SCTUNE_SERVE_TOKEN", raising=False)
        code, text = check()
        assert code == 2 and "asks for its token; give the server's in SCTUNE_SERVE_TOKEN or a --token-file" in text
        file.write_text("another-token-5c77f1")
        code, text = check("--token-file", str(file))
        assert code == 2 and "takes another token than the one that was sent" in text and "another-token-" not in text
        file.write_text(f"{token}\n")
        code, text = check("--token-file", str(file))
        assert code == 0 and "agrees with the model on all 2 files" in text and token not in text
        monkeypatch.setenv("SCTUNE_SERVE_TOKEN", token)
        assert check()[0] == 0


@pytest.mark.slow
def test_with_a_token_only_who_has_it_is_answered(folder: Path, tmp_path: Path) -> None:
    token = "secret-token-77f1c5"
    file = tmp_path / "token"
    file.write_text(token)
    with HttpServer(tmp_path, "--model", folder, "--token-file", file) as running:
        for path in ("/health", "/ready", "/", "/docs", "/openapi.json"):
            assert running.get(path).status == 200, path
        for given in (
            None,
            f"Bearer {token}x",
            f"Bearer {token[:-1]}",
            "Bearer",
            "Bearer \xe9",
            f"Basic {token}",
            token,
        ):
            headers = {"Content-Type": "image/png"} | ({} if given is None else {"Authorization": given})
            for method, path in (("POST", "/predict"), ("GET", "/model"), ("GET", "/metrics"), ("GET", "/none")):
                answer = running.request(method, path, IMAGES["0.png"] if method == "POST" else None, headers)
                assert answer.status == 401 and answer.headers["www-authenticate"].startswith("Bearer"), (given, path)
        right = {"Content-Type": "image/png", "Authorization": f"bearer {token}"}
        assert running.request("POST", "/predict", IMAGES["0.png"], right).status == 200
        assert running.request("GET", "/model", headers=right).status == 200
        command = Path(f"/proc/{running.process.pid}/cmdline").read_bytes()
        assert token.encode() not in command and token not in running.text


def test_a_port_in_use_is_told_in_one_line(server: HttpServer, folder: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sctune", "serve", "--model", str(folder), "--port", str(server.port)]
    environment = {**os.environ, "SCTUNE_HOME": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert f"--port {server.port}: something listens there already" in done.stderr


def test_a_folder_without_a_model_is_told_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["sctune", "serve", "--model", str(tmp_path), "--port", "0"])
    with pytest.raises(SystemExit) as ended:
        main()
    told = capsys.readouterr().err
    assert ended.value.code == 2 and "holds no model" in told and told.count("\n") == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_stop_lets_requests_finish(folder: Path, tmp_path: Path, number: signal.Signals) -> None:
    """A request whose body is still on its way when the signal comes is answered; then the process ends with 0."""
    body, kind = form_body(IMAGES)
    with HttpServer(tmp_path, "--model", folder) as running:
        with socket.create_connection((running.host, running.port)) as line:
            head = (
                f"POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n"
            )
            line.sendall(head.encode() + b"\r\n" + body[:1000])
            time.sleep(0.3)
            codes: list[int] = []
            stopping = threading.Thread(target=lambda: codes.append(running.stop(number)))
            stopping.start()
            time.sleep(0.5)
            with pytest.raises(OSError):
                socket.create_connection((running.host, running.port), timeout=5).close()
            line.sendall(body[1000:])
            received = b""
            while part := line.recv(65536):
                received += part
            stopping.join()
        assert received.startswith(b"HTTP/1.1 200") and received.count(b'"score"') == 5
        assert codes == [0]
        assert running.text.count("\n") == 1, running.text


def test_a_queue_that_is_full_says_when_to_come_again(model: Model) -> None:
    """In this process, with a model that waits until it is told."""
    import uvicorn

    go = threading.Event()

    class Slow(Model):
        def score(self, images: object) -> np.ndarray:
            go.wait(30)
            return super().score(images)  # type: ignore[arg-type]

    service = Service(Slow(model.method, model.config, model.parts), "slow", Limits(waiting=2, max_batch=1))
    place = socket.socket()
    place.bind(("127.0.0.1", 0))
    place.listen()
    running = uvicorn.Server(uvicorn.Config(make_app(service, Access()), log_level="error", ws="none"))
    thread = threading.Thread(target=lambda: running.run(sockets=[place]))
    thread.start()
    client = HttpServer.__new__(HttpServer)
    client.host, client.port = "127.0.0.1", place.getsockname()[1]
    try:
        statuses: list[int] = []
        waiting = [
            threading.Thread(target=lambda: statuses.append(client.send(IMAGES["0.png"]).status)) for _ in range(2)
        ]
        for one in waiting:
            one.start()
        end = time.monotonic() + 20
        while service.batcher.waiting < 2 and time.monotonic() < end:
            time.sleep(0.01)
        refused = client.send(IMAGES["0.png"])
        assert (refused.status, refused.headers["retry-after"]) == (503, "1")
        assert client.get("/ready").status == 503 and client.get("/health").status == 200
        go.set()
        for one in waiting:
            one.join()
        assert statuses == [200, 200] and client.get("/ready").status == 200
        assert client.send(IMAGES["0.png"]).status == 200
    finally:
        go.set()
        running.should_exit = True
        thread.join()

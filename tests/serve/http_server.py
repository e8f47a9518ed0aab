"""A real `sctune serve` in a process of its own, for tests."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from http.client import HTTPConnection
from pathlib import Path
from typing import Any, NamedTuple

from tests.processes import end_group


class Answer(NamedTuple):
    status: int
    body: bytes
    headers: Mapping[str, str]

    def json(self) -> dict[str, Any]:
        document: dict[str, Any] = json.loads(self.body)
        return document


class HttpServer:
    """Started in `folder` (its SCTUNE_HOME and its log) and ended with the block; words: of the command line."""

    def __init__(
        self, folder: Path, *words: object, environment: Mapping[str, str] | None = None, patience: float = 100
    ) -> None:
        self._patience = patience
        self.log = folder / "serve.log"
        command = [sys.executable, "-m", "sctune", "serve", *map(str, words)]
        if "--port" not in command:
            command += ["--port", "0"]
        self._command = command
        self._env = {**os.environ, "SCTUNE_HOME": str(folder), "OMP_NUM_THREADS": "1", **(environment or {})}

    def __enter__(self) -> HttpServer:
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                self._command, env=self._env, stdout=log, stderr=log, start_new_session=True
            )
        end = time.monotonic() + self._patience
        while (found := re.search(r"at http://(\[?[\w.:]+?\]?):(\d+)[ ,]", self.text)) is None:
            if self.process.poll() is not None or time.monotonic() > end:
                end_group(self.process.pid)
                raise RuntimeError(f"the server did not start: {self.text[-3000:]}")
            time.sleep(0.05)
        self.host, self.port = found[1], int(found[2])
        self.url = f"http://{self.host}:{self.port}"
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        end_group(self.process.pid)

    @property
    def text(self) -> str:
        return self.log.read_text()

    def request(self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None) -> Answer:
        """One request on a connection of its own."""
        connection = HTTPConnection(self.host, self.port, timeout=60)
        try:
            connection.request(method, path, body=body, headers=dict(headers or {}))
            answer = connection.getresponse()
            return Answer(answer.status, answer.read(), {k.lower(): v for k, v in answer.getheaders()})
        finally:
            connection.close()

    def get(self, path: str) -> Answer:
        return self.request("GET", path)

    def send(self, content: bytes, path: str = "/predict", kind: str = "application/octet-stream") -> Answer:
        return self.request("POST", path, content, {"Content-Type": kind})

    def form(self, files: Mapping[str, bytes], path: str = "/predict") -> Answer:
        """Files by name, as a browser sends them."""
        body, kind = form_body(files)
        return self.send(body, path, kind)

    def stop(self, number: int = signal.SIGTERM) -> int:
        """The exit code after a signal."""
        self.process.send_signal(number)
        return self.process.wait(timeout=100)

    def peak_bytes(self) -> int:
        """The most memory that the process has had so far."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        match = re.search(r"VmHWM:\s+(\d+) kB", status)
        assert match is not None
        return 1024 * int(match[1])


def form_body(files: Mapping[str, bytes]) -> tuple[bytes, str]:
    """A body and its content type."""
    boundary = b"----sctune7f3a"
    parts = b"".join(
        b"--" + boundary + b'\r\nContent-Disposition: form-data; name="files"; filename="' + name.encode()
        + b'"\r\nContent-Type: image/png\r\n\r\n' + content + b"\r\n"
        for name, content in files.items()
    )  # fmt: skip
    return parts + b"--" + boundary + b"--\r\n", f"multipart/form-data; boundary={boundary.decode()}"

"""The metadata service of a spot instance, as AWS documents it: a session token first, then the question."""

from __future__ import annotations

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

ACTION = "/latest/meta-data/spot/instance-action"


class MetadataServer:
    """On the loopback address; used as a context.

    tokens: those that are good; forget() makes them stale. asked: paths of the questions with a good token. refused:
    questions without one. body: the notice, None while there is none. broken: answers 500 to everything.
    """

    def __init__(self) -> None:
        self.tokens: list[str] = []
        self.asked: list[str] = []
        self.refused = 0
        self.body: str | None = None
        self.broken = False
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def announce(self, seconds: float, action: str = "terminate") -> None:
        moment = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + seconds))
        self.body = json.dumps({"action": action, "time": moment})

    def forget(self) -> None:
        self.tokens.clear()

    def __enter__(self) -> MetadataServer:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


def _handler(state: MetadataServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_PUT(self) -> None:
            seconds = self.headers.get("X-aws-ec2-metadata-token-ttl-seconds", "")
            if state.broken or self.path != "/latest/api/token" or not seconds.isdigit():
                return self._answer(500 if state.broken else 400)
            state.tokens.append(f"token-{time.monotonic_ns()}")
            self._answer(200, state.tokens[-1])

        def do_GET(self) -> None:
            if state.broken:
                return self._answer(500)
            if self.headers.get("X-aws-ec2-metadata-token") not in state.tokens:
                state.refused += 1
                return self._answer(401)
            state.asked.append(self.path)
            known = self.path == ACTION and state.body is not None
            self._answer(200 if known else 404, state.body if known else None)

        def _answer(self, status: int, body: str | None = None) -> None:
            content = (body or "").encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    return Handler

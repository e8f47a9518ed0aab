"""A gate before a real MLflow server, which lets it look slow, broken, or gone."""

from __future__ import annotations

import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

SLOW_S = 0.5


class _Quiet(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Nothing: clients that are killed break connections off."""


class Gate:
    """Stands before a real MLflow server at `target`.

    mode: "pass" requests on; "slow" by `SLOW_S`; "error" answers 500; "hang" accepts and never answers, until `let_go`
    is set; "refuse" breaks connections off; "lose" passes on what is asked, and breaks off instead of answering.
    """

    def __init__(self, target: str, port: int = 0) -> None:
        """port: 0 for any that is free."""
        self.mode = "pass"
        self.target = target
        self.let_go = threading.Event()
        gate = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_any(self) -> None:
                gate.handle(self, target)

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = do_any  # noqa: N815

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = _Quiet(("127.0.0.1", port), Handler)
        self.uri = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def handle(self, request: BaseHTTPRequestHandler, target: str) -> None:
        import requests

        body = request.rfile.read(int(request.headers.get("Content-Length", 0)))
        status, content = 500, b'{"error_code": "INTERNAL_ERROR", "message": "database or disk is full"}'
        if self.mode == "hang":
            # what was asked meanwhile is done then, though nobody waits for it any more
            self.let_go.wait()
        mode = self.mode
        if mode == "slow":
            time.sleep(SLOW_S)
        if mode == "refuse":
            request.close_connection = True
            return
        if mode in ("pass", "slow", "lose"):
            headers = {
                key: value for key, value in request.headers.items() if key.lower() not in ("host", "accept-encoding")
            }
            try:
                answer = requests.request(
                    request.command, target + request.path, headers=headers, data=body, timeout=30
                )
            except requests.RequestException:  # killed meanwhile
                request.close_connection = True
                return
            status, content = answer.status_code, answer.content
        if mode == "lose":
            request.close_connection = True
            return
        try:
            request.send_response(status)
            request.send_header("Content-Type", "application/json")
            request.send_header("Content-Length", str(len(content)))
            request.end_headers()
            request.wfile.write(content)
        except OSError:  # the client has given up meanwhile
            request.close_connection = True

    def close(self) -> None:
        self.let_go.set()
        self._server.shutdown()
        self._server.server_close()

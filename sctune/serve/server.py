"""`sctune serve` in this process: the port first, then the model, then uvicorn until a signal."""

from __future__ import annotations

import errno
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import uvicorn

from sctune.deploy.locate import find_version, open_model
from sctune.deploy.model import Model, heat_map_png
from sctune.errors import ConfigError, NonFiniteError
from sctune.serve.app import Access, Service, make_app
from sctune.serve.auth import find_token, is_local, token_digest
from sctune.serve.limits import Limits

GRACE_S = 30
"""Seconds that requests which are being answered have when the server is stopped."""
CONNECTIONS = 2000
"""Open connections; more are answered with 503."""


@dataclass(frozen=True)
class Asked:
    """What the command was given. port 0: any free one; token_file: None for SCTUNE_SERVE_TOKEN, or for no token."""

    model: str
    host: str = "127.0.0.1"
    port: int = 8080
    tracking_uri: str | None = None
    device: str = "auto"
    token_file: Path | None = None
    limits: Limits = field(default_factory=Limits)

    def access(self) -> Access:
        """Raises ConfigError where the host needs a token and there is none."""
        digest = token_digest(find_token(self.host, self.token_file))
        return Access(digest, (self.host,) if is_local(self.host) else None)

    def address(self) -> str:
        """The model as it is named to clients: a version instead of an alias, a folder without what is above it."""
        if not self.model.startswith("models:"):
            return Path(self.model).expanduser().absolute().name
        found = find_version(self.model, self.tracking_uri)
        return f"models:/{found.name}/{found.version}"


def serve(asked: Asked, told: Callable[[str], None]) -> None:
    """Answer until SIGTERM or SIGINT; requests in flight are finished. told: gets one line, when the server answers.

    Raises ConfigError for a port that is in use or may not be taken, and what `open_model` raises.
    """
    access = asked.access()
    with listening(asked.host, asked.port) as place:
        address = asked.address()
        # the version that was found: an alias may move meanwhile
        where = address if asked.model.startswith("models:") else asked.model
        model = open_model(where, asked.tracking_uri, asked.device)
        warm_up(model)
        app = make_app(Service(model, address, asked.limits), access)
        server = uvicorn.Server(
            uvicorn.Config(
                app,
                log_level="warning",
                access_log=False,
                server_header=False,
                proxy_headers=False,
                lifespan="on",
                ws="none",
                limit_concurrency=CONNECTIONS,
                timeout_graceful_shutdown=GRACE_S,
            )
        )
        told(line(model, address, url(asked.host, place.getsockname()[1]), access))
        with _signals_spent():
            server.run(sockets=[place])


def line(model: Model, address: str, where: str, access: Access) -> str:
    """What is served, and where."""
    token = ", with its token" if access.token_digest is not None else ""
    return f"serving {address} ({model.name}) at {where}{token} (end with Ctrl-C)"


def url(host: str, port: int) -> str:
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


@contextmanager
def listening(host: str, port: int) -> Iterator[socket.socket]:
    """A socket that listens already: whoever connects while the model is loaded waits. Raises ConfigError."""
    try:
        family, kind, proto, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError) as problem:
        reason = getattr(problem, "strerror", None) or str(problem)
        raise ConfigError(f"--host {host!r}: {reason}; give an address of this machine") from None
    with socket.socket(family, kind, proto) as made:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            made.bind(place)
            made.listen(CONNECTIONS)
        except OSError as problem:
            if problem.errno == errno.EADDRINUSE:
                raise ConfigError(f"--port {port}: something listens there already; give another one") from None
            raise ConfigError(f"cannot listen at {url(host, port)}: {problem.strerror}; give another one") from None
        yield made


def warm_up(model: Model) -> None:
    """Score a black image, so that what is loaded or compiled at first use does not delay the first request."""
    side = model.config.data.image_size
    black = np.zeros((1, side, side, 3), np.uint8)
    try:
        model.score(black)
    except NonFiniteError:  # the model may still be good for images
        return
    heat_map_png(black[0], model.heat_maps(black)[0])


@contextmanager
def _signals_spent() -> Iterator[None]:
    """Uvicorn raises the signals that ended it once more when all is done: then they end nothing else."""
    before = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

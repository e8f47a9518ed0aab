"""Who may ask: a token where the server can be reached from elsewhere, and no page of another site anywhere."""

from __future__ import annotations

import hmac
import ipaddress
import os
from collections.abc import Iterable
from hashlib import sha256
from pathlib import Path
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from sctune.errors import ConfigError

TOKEN_VARIABLE = "SCTUNE_SERVE_TOKEN"
SHORTEST = 16
"""Letters of a token at least."""
OPEN_PATHS = frozenset({"/", "/health", "/ready", "/docs", "/openapi.json"})
"""Without a token: they tell nothing of model and images."""
_LOCAL_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})


def is_local(host: str) -> bool:
    """Whether a server that listens at `host` can be reached from this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def find_token(host: str, file: Path | None) -> str | None:
    """The token from a file or from SCTUNE_SERVE_TOKEN; None where there is none and none is needed.

    Raises ConfigError where a host that others can reach has none, and for a token that is too short or no ASCII.
    """
    if file is not None:
        try:
            token = file.read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError) as problem:
            reason = getattr(problem, "strerror", None) or "it is no ASCII text"
            raise ConfigError(f"cannot read --token-file {file}: {reason}") from None
    else:
        token = os.environ.get(TOKEN_VARIABLE, "").strip()
    source = TOKEN_VARIABLE if file is None else f"--token-file {file}"
    if not token and file is None:
        if is_local(host):
            return None
        raise ConfigError(
            f"--host {host} can be reached from other machines, and no token is set; put one of {SHORTEST} letters or "
            f"more into {TOKEN_VARIABLE} or a --token-file, or leave out --host"
        )
    if len(token) < SHORTEST or not token.isascii() or not token.isprintable() or " " in token:
        raise ConfigError(
            f"{source}: a token has {SHORTEST} letters at least, ASCII without blanks; `openssl rand -hex 32` makes one"
        )
    return token


def token_digest(token: str | None) -> bytes | None:
    """What the server keeps and compares instead of the token."""
    return None if token is None else sha256(token.encode()).digest()


class Guard:
    """ASGI: refuses requests before anything else sees them.

    digest: of the token, None for none; local_names: further names (beside those of the loopback) under which a server
    that is open to this machine only may be asked, None: every name (a token is asked for then). A page of another
    site can make its visitor's browser ask the loopback, also under a name of its own that resolves to it.
    """

    def __init__(self, app: ASGIApp, digest: bytes | None, local_names: Iterable[str] | None) -> None:
        self.app = app
        self._digest = digest
        self._names = None if local_names is None else _LOCAL_NAMES | set(local_names)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refused = self._refusal(Headers(scope=scope), scope) if scope["type"] == "http" else None
        if refused is None:
            await self.app(scope, receive, send)
            return
        status, text = refused
        more = {"WWW-Authenticate": 'Bearer realm="sctune"'} if status == 401 else None
        await JSONResponse({"error": text}, status, more)(scope, receive, send)

    def _refusal(self, headers: Headers, scope: Scope) -> tuple[int, str] | None:
        host = headers.get("host", "")
        if self._names is not None and _name(host) not in self._names:
            return 403, "this server is asked as 127.0.0.1 or localhost only"
        if is_cross_site(headers, host, scope["method"]):
            return 403, "pages of other sites may not ask this server"
        if self._digest is not None and scope["path"] not in OPEN_PATHS and not self._knows(headers):
            return 401, "send the server's token as Authorization: Bearer TOKEN"
        return None

    def _knows(self, headers: Headers) -> bool:
        kind, _, token = headers.get("authorization", "").partition(" ")
        assert self._digest is not None
        given = sha256(token.strip().encode("latin-1", "replace")).digest()
        return kind.lower() == "bearer" and hmac.compare_digest(given, self._digest)


def is_cross_site(headers: Headers, host: str, method: str) -> bool:
    """Whether a browser says that a page of another site asks; programs that are no browser say nothing."""
    site = headers.get("sec-fetch-site")
    if site is not None:
        # a link from elsewhere is harmless; a form that is sent from elsewhere is a navigation too
        is_link = method == "GET" and headers.get("sec-fetch-mode") == "navigate"
        return site not in ("same-origin", "none") and not is_link
    origin = headers.get("origin")
    return origin is not None and origin.lower().partition("://")[2] != host.lower()


def _name(host: str) -> str:
    """The host of a Host header, without its port and brackets."""
    try:
        return (urlsplit(f"//{host}").hostname or "").lower()
    except ValueError:
        return ""

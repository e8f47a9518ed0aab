"""What one request, and all of them together, may take of the server; and how what is too much is refused."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from starlette.requests import ClientDisconnect, Request

from sctune.errors import ConfigError, SctuneError

RETRY_S = 1
"""Seconds after which whoever was refused for want of room may ask again (Retry-After)."""


class RequestError(SctuneError):
    """A request that is refused: an HTTP status from 400 on, and one line.

    results: what is wrong with each image, where it is refused for all of them.
    """

    def __init__(self, status: int, text: str, results: Sequence[Mapping[str, str]] = ()) -> None:
        super().__init__(text)
        self.status = status
        self.results = results


@dataclass(frozen=True)
class Limits:
    """max_bytes: of a request's body; max_images: in one request; max_batch: images that are scored together.

    waiting: images of all requests that may wait; read_s: seconds that a body may take to arrive.
    """

    max_bytes: int = 20_000_000
    max_images: int = 64
    max_batch: int = 32
    waiting: int = 1024
    read_s: float = 60.0

    def __post_init__(self) -> None:
        for name in ("max_bytes", "max_images", "max_batch", "waiting"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name.replace('_', '-')} {getattr(self, name)}: give at least 1")

    @property
    def held_bytes(self) -> int:
        """Of the bodies of all requests together, kept until their images are decoded and scored."""
        return max(16 * self.max_bytes, 256_000_000)


class Bodies:
    """The bytes of all bodies that are in memory; used within one event loop."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.held = 0

    @contextmanager
    def room(self) -> Iterator[Room]:
        """Room for one body; what it took is free again after the block."""
        taken = Room(self)
        try:
            yield taken
        finally:
            self.held -= taken.size


class Room:
    def __init__(self, bodies: Bodies) -> None:
        self.bodies = bodies
        self.size = 0

    def take(self, size: int) -> None:
        """Raises RequestError: 413 where the body is too large, 503 where all bodies together are."""
        limits = self.bodies.limits
        if self.size + size > limits.max_bytes:
            raise too_large(limits)
        if self.bodies.held + size > limits.held_bytes:
            raise RequestError(503, "the server holds as many images as it can; try again")
        self.size += size
        self.bodies.held += size


def too_large(limits: Limits) -> RequestError:
    return RequestError(413, f"the body is larger than {limits.max_bytes} bytes; send fewer or smaller images")


async def read_body(request: Request, room: Room) -> bytes:
    """The whole body, never more of it in memory than the limit. Raises RequestError 400, 408, 413 or 503.

    What Content-Length says is refused before a byte is read, and not believed where it is small.
    """
    limits = room.bodies.limits
    said = request.headers.get("content-length", "0")
    if said.isdecimal() and int(said[:20]) > limits.max_bytes:
        raise too_large(limits)
    body = bytearray()
    try:
        async with asyncio.timeout(limits.read_s):
            async for part in request.stream():
                room.take(len(part))
                body += part
    except TimeoutError:
        raise RequestError(408, f"the body did not arrive within {limits.read_s:g} s") from None
    except ClientDisconnect:
        raise RequestError(400, "the connection ended within the body") from None
    return bytes(body)

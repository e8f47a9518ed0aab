"""PID PORT...: ports of the loopback address where this is started lead to the same ones in the network of process PID.

The sockets are made first, and keep their network when the program goes over to the other one.
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from contextlib import suppress


def listening(port: int) -> socket.socket:
    made = socket.create_server(("127.0.0.1", port), backlog=64)
    made.set_inheritable(True)
    return made


async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while content := await reader.read(1 << 16):
            writer.write(content)
            await writer.drain()
    writer.close()


async def forward(handles: dict[int, int]) -> None:
    async def lead(port: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            writer.close()
            return
        await asyncio.gather(copy(reader, far_writer), copy(far_reader, writer))

    for port, handle in handles.items():
        await asyncio.start_server(
            lambda reader, writer, port=port: lead(port, reader, writer), sock=socket.socket(fileno=handle)
        )  # type: ignore[misc]
    await asyncio.Event().wait()


def main() -> None:
    if sys.argv[1] == "over":
        asyncio.run(
            forward({int(port): int(handle) for port, _, handle in (word.partition("=") for word in sys.argv[2:])})
        )
        return
    sockets = {int(port): listening(int(port)) for port in sys.argv[2:]}
    words = [f"{port}={made.fileno()}" for port, made in sockets.items()]
    os.execvp("nsenter", ["nsenter", "-t", sys.argv[1], "-n", sys.executable, __file__, "over", *words])


if __name__ == "__main__":
    main()

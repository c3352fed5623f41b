"""Servers that functions are, in tests: real sockets, nothing in between."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

Answer = Callable[["Request"], Awaitable[None]]


@dataclass
class Request:
    """One request as it came over the wire."""

    method: str
    target: str
    headers: dict[str, str]
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    connection: int

    async def body(self) -> AsyncIterator[bytes]:
        if self.headers.get("transfer-encoding") == "chunked":
            while size := int((await self.reader.readline()).split(b";")[0], 16):
                yield await self.reader.readexactly(size)
                await self.reader.readline()
            await self.reader.readline()
            return
        left = int(self.headers.get("content-length", "0"))
        while left:
            data = await self.reader.read(min(left, 65536))
            if not data:
                return
            left -= len(data)
            yield data

    async def respond(self, content: bytes, *, code: int = 200, headers: str = "") -> None:
        head = f"HTTP/1.1 {code} X\r\ncontent-length: {len(content)}\r\n{headers}\r\n"
        self.writer.write(head.encode() + content)
        await self.writer.drain()

    async def chunk(self, data: bytes) -> None:
        self.writer.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        await self.writer.drain()


@dataclass
class Upstream:
    """A running server: its endpoint for a route, and what it was asked."""

    endpoint: str
    requests: list[Request] = field(default_factory=list)
    connections: int = 0


async def echo(request: Request) -> None:
    """Say what came."""
    size = 0
    async for data in request.body():
        size += len(data)
    said = {
        "method": request.method,
        "target": request.target,
        "headers": request.headers,
        "size": size,
        "connection": request.connection,
    }
    await request.respond(json.dumps(said).encode())


async def echo_websocket(request: Request) -> None:
    """RFC 6455 with short frames of text: each is sent back."""
    key = request.headers["sec-websocket-key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
    accept = base64.b64encode(hashlib.sha1(key.encode()).digest()).decode()
    request.writer.write(
        "HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n"
        f"sec-websocket-accept: {accept}\r\n\r\n".encode()
    )
    while True:
        first, second = await request.reader.readexactly(2)
        size = second & 0x7F
        mask = await request.reader.readexactly(4)
        data = await request.reader.readexactly(size)
        plain = bytes(b ^ mask[i % 4] for i, b in enumerate(data))
        request.writer.write(bytes([first, size]) + plain)
        if first & 0x0F == 8:
            return


@asynccontextmanager
async def serve(place: Path | str, answer: Answer = echo) -> AsyncIterator[Upstream]:
    """Serve on a unix socket, or at "address:port" (0 picks one); keep-alive as HTTP/1.1 has it."""
    upstream = Upstream(f"unix:{place}")
    tasks: set[asyncio.Task[None]] = set()

    async def connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        upstream.connections += 1
        number = upstream.connections
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                first, *lines = head.decode("latin-1").strip().split("\r\n")
                method, target, _ = first.split(" ")
                headers = {
                    name.lower(): value.strip()
                    for name, _, value in (line.partition(":") for line in lines)
                }
                request = Request(method, target, headers, reader, writer, number)
                upstream.requests.append(request)
                await answer(request)
                if headers.get("upgrade"):
                    return
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.close()
            tasks.discard(task)

    if isinstance(place, Path):
        server = await asyncio.start_unix_server(connection, place, backlog=4096)
    else:
        host, _, port = place.rpartition(":")
        server = await asyncio.start_server(connection, host, int(port), backlog=4096)
        upstream.endpoint = f"tcp:{host}:{server.sockets[0].getsockname()[1]}"
    try:
        yield upstream
    finally:
        server.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if isinstance(place, Path):
            with suppress(FileNotFoundError):
                os.unlink(place)

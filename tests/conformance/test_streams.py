"""Long streams and large bodies: unbuffered, never cut while open, nothing kept in memory."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator
from contextlib import aclosing

import httpx
import pytest
import websockets

from tests.conformance.door import ENDED, Door, Json, example, id_of, state_of, until

SIZE = 50_000_000
PIECE = b"m" * 50_000

HALF = 1_000_000
# Knative's proxies (two, in Go) pass an answer of known length on when 4 KiB of it have come.
KEPT_BY_KNATIVE = 2 * 4096

# Tells how much of an upload has arrived while it is still under way, and holds a download back
# until it is told to go on.
STEPS = """# /// script
# dependencies = []
# ///
import http.server, json, threading

arrived = 0
go_on = threading.Event()

class Steps(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def send(self, value):
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self):
        global arrived
        left = int(self.headers["content-length"])
        while left:
            piece = self.rfile.read1(min(left, 65536))
            left -= len(piece)
            arrived += len(piece)
        self.send({"arrived": arrived})

    def do_GET(self):
        if self.path == "/arrived":
            self.send({"arrived": arrived})
        elif self.path == "/go-on":
            go_on.set()
            self.send({})
        else:
            self.send_response(200)
            if self.path == "/chunked":
                self.send_header("transfer-encoding", "chunked")
            else:
                self.send_header("content-length", "2000000")
            self.end_headers()
            self.half()
            go_on.wait(30)
            self.half()
            if self.path == "/chunked":
                self.wfile.write(b"0\\r\\n\\r\\n")

    def half(self):
        if self.path == "/chunked":
            self.wfile.write(b"f4240\\r\\n" + b"x" * 1000000 + b"\\r\\n")
        else:
            self.wfile.write(b"x" * 1000000)

http.server.ThreadingHTTPServer(("0.0.0.0", 8000), Steps).serve_forever()
"""

# Answers a body at once and in two parts, as servers of event streams do.
TELLS = """# /// script
# dependencies = []
# ///
import http.server, time

class Tells(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def part(self, data):
        self.wfile.write(b"%x\\r\\n%s\\r\\n" % (len(data), data))

    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        self.part(b": begun\\n\\n")
        time.sleep(0.02)
        self.part(b"data: " + body + b"\\n\\n")
        self.part(b"")

http.server.ThreadingHTTPServer(("0.0.0.0", 8000), Tells).serve_forever()
"""


async def pieces(size: int) -> AsyncIterator[bytes]:
    """Yield `size` bytes."""
    for _ in range(size // len(PIECE)):
        yield PIECE


async def test_fifty_megabytes_up_and_down(mayfly: Door) -> None:
    function = await mayfly.ready(script=example("big_files.py"))
    whole = hashlib.sha256(PIECE * (SIZE // len(PIECE))).hexdigest()
    chunked = await mayfly.call(function, method="POST", content=pieces(SIZE))
    assert chunked.json() == {"bytes": SIZE, "sha256": whole}
    sized = await mayfly.call(
        function, method="POST", content=pieces(SIZE), headers={"content-length": str(SIZE)}
    )
    assert sized.json() == {"bytes": SIZE, "sha256": whole}
    got = 0
    async with mayfly.http.stream("GET", f"/f/{id_of(function)}?bytes={SIZE}") as response:
        async for piece in response.aiter_bytes():
            got += len(piece)
    assert got == SIZE


async def test_an_upload_is_not_collected_on_the_way(mayfly: Door) -> None:
    function = await mayfly.ready(script=STEPS)
    half = 10_000_000
    seen: list[int] = []

    async def arrived() -> int | None:
        count = (await mayfly.call(function, "/arrived")).json()["arrived"]
        # What is on the way fits in the buffers of sockets and of the proxy.
        return count if count > half - 8_000_000 else None

    async def body() -> AsyncIterator[bytes]:
        async for piece in pieces(half):
            yield piece
        seen.append(await until(arrived, 15, what="the first half, while the rest is held back"))
        async for piece in pieces(half):
            yield piece

    answer = await mayfly.call(
        function, method="POST", content=body(), headers={"content-length": str(2 * half)}
    )
    assert answer.json() == {"arrived": 2 * half}
    assert seen
    assert seen[0] < 2 * half


@pytest.mark.parametrize("framing", ["chunked", "length"])
async def test_a_download_is_not_collected_on_the_way(
    mayfly: Door, driver: str, framing: str
) -> None:
    function = await mayfly.ready(script=STEPS, maxInstances=1)
    kept = KEPT_BY_KNATIVE if driver == "knative" and framing == "length" else 0
    got = 0
    told = False
    async with mayfly.http.stream("GET", f"/f/{id_of(function)}/{framing}") as response:
        async with asyncio.timeout(20):
            async for piece in response.aiter_bytes():
                got += len(piece)
                if got >= HALF - kept and not told:
                    assert got <= HALF
                    assert (await mayfly.call(function, "/go-on")).status_code == 200
                    told = True
    assert got == 2 * HALF


async def test_server_sent_events_outlast_the_idle_timeout(mayfly: Door) -> None:
    function = await mayfly.ready(script=example("live.py"), idleTimeout="2s", ttl="120s")
    numbers: list[int] = []
    began = time.monotonic()
    async with mayfly.http.stream("GET", f"/f/{id_of(function)}/events?every=0.25") as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        async with asyncio.timeout(20):
            async for line in response.aiter_lines():
                if line.startswith("data:"):
                    numbers.append(int(line.removeprefix("data:")))
                if time.monotonic() - began > 7:
                    break
    assert numbers == list(range(1, len(numbers) + 1))
    assert len(numbers) > 20
    # The stream was its use: idleness counts from its end.
    assert state_of(await mayfly.get(function)) in {"READY", "IDLE"}

    async def ended() -> Json | None:
        found = await mayfly.get(function)
        return found if state_of(found) in ENDED else None

    assert (await until(ended, 12, what="idle end", every=0.1))["endReason"] == "END_REASON_IDLE"


async def test_event_streams_that_answer_a_body_are_whole(mayfly: Door) -> None:
    # A proxy that stops reading a body when its answer begins breaks off about one in a hundred.
    function = await mayfly.ready(script=TELLS, maxInstances=1)

    async def asker(number: int) -> None:
        for turn in range(60):
            body = f"{number}.{turn}"
            answer = await mayfly.call(function, method="POST", content=body)
            assert answer.text == f": begun\n\ndata: {body}\n\n"

    await asyncio.gather(*(asker(number) for number in range(12)))


async def test_a_silent_websocket_outlasts_the_idle_timeout(mayfly: Door) -> None:
    function = await mayfly.ready(script=example("live.py"), idleTimeout="2s", ttl="120s")
    url = f"ws://{mayfly.target}/f/{id_of(function)}/echo"
    async with websockets.connect(url, ping_interval=None, proxy=None) as socket:
        await socket.send("first")
        assert await socket.recv() == "first"
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(socket.recv(), 6)
        await socket.send("later")
        assert await asyncio.wait_for(socket.recv(), 5) == "later"
        await socket.send(b"\x00\xff" * 100_000)
        assert await asyncio.wait_for(socket.recv(), 10) == b"\x00\xff" * 100_000
    assert state_of(await mayfly.get(function)) in {"READY", "IDLE"}


async def test_websocket_by_host(mayfly: Door) -> None:
    function = await mayfly.ready(script=example("live.py"))
    host = f"{id_of(function)}.localhost:{mayfly.port}"
    async with websockets.connect(
        f"ws://{host}/echo", host=mayfly.host, port=mayfly.port, proxy=None
    ) as socket:
        await socket.send("by host")
        assert await socket.recv() == "by host"


async def test_many_websockets_at_once(mayfly: Door) -> None:
    function = await mayfly.ready(script=example("live.py"))
    url = f"ws://{mayfly.target}/f/{id_of(function)}/echo"

    async def talk(word: str) -> None:
        async with websockets.connect(url, proxy=None) as socket:
            for turn in range(5):
                await socket.send(f"{word} {turn}")
                assert await socket.recv() == f"{word} {turn}"

    await asyncio.gather(*(talk(f"client {n}") for n in range(40)))


async def test_a_stream_outlasts_its_function_no_longer_than_it_must(mayfly: Door) -> None:
    function = await mayfly.ready(script=example("live.py"), ttl="120s")
    async with mayfly.http.stream("GET", f"/f/{id_of(function)}/events?every=0.1") as response:
        lines = response.aiter_lines()
        assert (await anext(lines)).startswith("id:")
        await mayfly.delete(function)
        # Streams are bounded by the lease: this one ends, well or broken off.
        try:
            async with asyncio.timeout(20), aclosing(lines):
                async for _ in lines:
                    pass
        except httpx.RemoteProtocolError:
            pass
    assert await mayfly.verified_receipt(function)


async def test_a_client_that_goes_away_is_noticed(mayfly: Door) -> None:
    function = await mayfly.ready(script=example("live.py"), idleTimeout="3s", ttl="120s")
    async with mayfly.http.stream("GET", f"/f/{id_of(function)}/events?every=0.1") as response:
        async for line in response.aiter_lines():
            if line == "data: 3":
                break

    async def ended() -> bool:
        return state_of(await mayfly.get(function)) in ENDED

    await until(ended, 15, what="the idle deadline after the client left", every=0.1)

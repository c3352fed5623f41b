"""The contract of Python handlers, over real connections to the server of `runtimes/python`."""

from __future__ import annotations

import ctypes
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from runtimes.python import status

ROOT = Path(__file__).resolve().parents[2]
RUN = (
    "import sys; sys.path.insert(0, sys.argv[1])\n"
    "from runtimes.python import server\n"
    "config = server.Config(sys.argv[2], 'fn', 5.0, 4, 1 << 20)\n"
    "sys.exit(server.run(config, *map(int, sys.argv[3:6])))\n"
)


class UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=10)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(10)
        self.sock.connect(self._path)


@dataclass
class Served:
    process: subprocess.Popen[str]
    path: str
    first: dict[str, Any]

    def connect(self) -> UnixConnection:
        return UnixConnection(self.path)

    def call(
        self, method: str = "GET", target: str = "/", body: Any = None, **headers: str
    ) -> http.client.HTTPResponse:
        connection = self.connect()
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        try:
            connection.request(method, target, body, names)
            with connection.getresponse() as response:
                response.content = response.read()  # type: ignore[attr-defined]
                return response
        finally:
            connection.close()

    def value(self, target: str = "/", method: str = "GET", body: Any = None, **h: str) -> Any:
        response = self.call(method, target, body, **h)
        assert response.status == 200
        return json.loads(response.content)  # type: ignore[attr-defined]

    def raw(self, data: bytes) -> bytes:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(10)
            sock.connect(self.path)
            sock.sendall(data)
            answer = b""
            while part := sock.recv(65536):
                answer += part
            return answer

    def end(self) -> tuple[str, str]:
        """Ask it to stop; what it has printed."""
        self.process.terminate()
        return self.process.communicate(timeout=10)


@contextmanager
def serving(directory: Path, code: str, interpreter: str) -> Iterator[Served]:
    entry = directory / "handler.py"
    entry.write_text(textwrap.dedent(code))
    listener = socket.socket(socket.AF_UNIX)
    path = str(directory / "s")
    listener.bind(path)
    listener.listen(64)
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    here.settimeout(20)
    page = os.memfd_create("page")
    os.ftruncate(page, status.page_size(4))
    fds = [listener.fileno(), there.fileno(), page]
    process = subprocess.Popen(
        [interpreter, "-c", RUN, str(ROOT), str(entry), *map(str, fds)],
        pass_fds=fds,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        there.close()
        listener.close()
        yield Served(process, path, json.loads(here.recv(65536) or b"{}"))
    finally:
        process.kill()
        process.communicate()
        here.close()
        os.close(page)


Serve = Callable[[str], Served]


def interpreters() -> list[str]:
    """This one, and older ones that functions may run on, where they are installed."""
    found = [sys.executable]
    for version in ("3.9", "3.10", "3.12", "3.13"):
        patterns = (f".pyenv/versions/{version}.*/bin/python{version}",)
        home = Path.home()
        found += [str(p) for pattern in patterns for p in sorted(home.glob(pattern))[:1]]
    return found


@pytest.fixture(params=interpreters(), ids=lambda path: Path(path).name)
def serve(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    import tempfile

    with tempfile.TemporaryDirectory(prefix="mayfly-rt-") as directory:
        opened: list[Any] = []

        def start(code: str) -> Served:
            manager = serving(Path(directory), code, request.param)
            opened.append(manager)
            return manager.__enter__()

        yield start
        for manager in opened:
            manager.__exit__(None, None, None)


ECHO = """
    def handler(event, ctx):
        body = event["body"]
        return {
            **{k: v for k, v in event.items() if k not in ("body",)},
            "body": body if isinstance(body, str) else list(body),
            "kind": type(body).__name__,
            "attribute": event.method,
            "ctx": [ctx.function_id, ctx.request_id, ctx.contract_version,
                    4 < ctx.remaining() <= 5],
        }
"""


def test_event_and_context(serve: Serve) -> None:
    served = serve(ECHO)
    value = served.value(
        "/a%20b/%2F?x=1&x=2&y=%C3%A9&z", "POST", "text é".encode(), X_Request_Id="r", A="1"
    )
    assert value["method"] == value["attribute"] == "POST"
    assert (value["path"], value["raw_path"]) == ("/a b//", "/a%20b/%2F")
    assert value["query"] == {"x": "2", "y": "é", "z": ""}
    assert value["query_pairs"] == [["x", "1"], ["x", "2"], ["y", "é"], ["z", ""]]
    assert value["raw_query"] == "x=1&x=2&y=%C3%A9&z"
    assert value["headers"]["a"] == "1"
    assert (value["body"], value["kind"]) == ("text é", "str")
    assert value["ctx"] == ["fn", "r", "1", True]
    assert served.value("/", "PUT", b"\xff\x00")["kind"] == "bytes"
    assert served.value()["body"] == ""
    made = served.value()["ctx"][1]
    assert len(made) == 36


RESULTS = """
    class Own:
        status_code = 203
        headers = {"x-a": "b"}
        content = b"own"
    RESULTS = {
        "/dict": {"a": [1, None, True]}, "/list": [1], "/none": None, "/number": 1.5,
        "/text": "grüß", "/bytes": b"\\x00\\xff", "/created": ({"id": 1}, 201),
        "/headers": ("<p>", 202, {"Content-Type": "text/html", "x-b": 7}),
        "/pair": (1, 2, 3), "/own": Own(), "/empty": ("", 204),
    }
    def handler(event, ctx):
        if event["path"] == "/ctx":
            return ctx.response({"a": 1}, 418, {"x-c": "d"})
        return RESULTS[event["path"]]
"""


def test_results(serve: Serve) -> None:
    served = serve(RESULTS)
    json_type, text = "application/json", "text/plain; charset=utf-8"
    for path, status_code, kind, body in (
        ("/dict", 200, json_type, b'{"a":[1,null,true]}'),
        ("/list", 200, json_type, b"[1]"),
        ("/none", 200, json_type, b"null"),
        ("/number", 200, json_type, b"1.5"),
        ("/text", 200, text, "grüß".encode()),
        ("/bytes", 200, "application/octet-stream", b"\x00\xff"),
        ("/created", 201, json_type, b'{"id":1}'),
        ("/headers", 202, "text/html", b"<p>"),
        ("/pair", 200, json_type, b"[1,2,3]"),
        ("/own", 203, "application/octet-stream", b"own"),
        ("/ctx", 418, json_type, b'{"a":1}'),
        ("/empty", 204, text, b""),
    ):
        response = served.call(target=path)
        got = (response.status, response.getheader("content-type"), response.content)  # type: ignore[attr-defined]
        assert (path, *got) == (path, status_code, kind, body)
    assert served.call(target="/headers").getheader("x-b") == "7"
    head = served.call("HEAD", "/text")
    assert head.getheader("content-length") == str(len("grüß".encode()))


FAILURES = """
    import sys
    def inner():
        raise ValueError("no luck")
    def stream():
        yield "some"
        inner()
    def handler(event, ctx):
        path = event["path"]
        if path == "/raise": inner()
        if path == "/exit": sys.exit(3)
        if path == "/set": return {1, 2}
        if path == "/nan": return float("nan")
        if path == "/loop":
            a = []; a.append(a); return a
        if path == "/header": return "x", 200, {"bad\\r\\nname": "v"}
        if path == "/status": return "x", 99
        if path == "/length": return "x", 200, {"Content-Length": "5"}
        if path == "/stream": return stream()
        return "fine"
"""


def test_failures_are_500_for_the_caller_and_plain_in_the_log(serve: Serve) -> None:
    served = serve(FAILURES)
    for path in ("/raise", "/exit", "/set", "/nan", "/loop", "/header", "/status", "/length"):
        response = served.call(target=path, X_Request_Id="r1")
        assert (path, response.status) == (path, 500)
        assert json.loads(response.content) == {"error": "internal", "request_id": "r1"}  # type: ignore[attr-defined]
    with pytest.raises(http.client.IncompleteRead):
        served.call(target="/stream")
    assert served.call().content == b"fine"  # type: ignore[attr-defined]
    _, log = served.end()
    assert "request r1: the handler raised" in log
    assert "ValueError: no luck" in log
    assert "in inner" in log
    assert "runtimes/python" not in log
    assert "it holds a set" in log
    assert "99 is no status" in log
    assert "the stream raised" in log


ASYNC = """
    import asyncio
    loops = set()
    async def stream():
        for i in range(3):
            await asyncio.sleep(0)
            yield {"i": i}
    async def handler(event, ctx):
        loops.add(id(asyncio.get_running_loop()))
        await asyncio.sleep(0.01)
        if event["path"] == "/stream": return stream()
        if event["path"] == "/raise": raise KeyError("gone")
        return len(loops)
"""


def test_async_handlers_share_one_loop(serve: Serve) -> None:
    served = serve(ASYNC)
    assert [served.value() for _ in range(3)] == [1, 1, 1]
    response = served.call(target="/stream")
    assert response.content == b'{"i":0}\n{"i":1}\n{"i":2}\n'  # type: ignore[attr-defined]
    assert served.call(target="/raise").status == 500


STREAM = """
    import threading
    step = threading.Event()
    closed = threading.Event()
    def items():
        try:
            yield b"one"
            step.wait(5)
            yield "two"
            while True:
                yield "more" * 1000
        finally:
            closed.set()
    def handler(event, ctx):
        if event["path"] == "/step": step.set(); return "ok"
        if event["path"] == "/closed": return closed.wait(5)
        return items(), 200, {"content-type": "text/event-stream"}
"""


def test_streams_go_out_as_they_come_and_end_with_the_caller(serve: Serve) -> None:
    served = serve(STREAM)
    connection = served.connect()
    connection.request("GET", "/")
    response = connection.getresponse()
    assert response.getheader("content-type") == "text/event-stream"
    assert response.read1(100) == b"one"
    served.call(target="/step")
    assert response.read1(3) == b"two"
    connection.close()
    response.close()
    assert served.value("/closed") is True


def test_bodies(serve: Serve) -> None:
    served = serve("def handler(event, ctx):\n    return len(event['body'])\n")
    chunked = served.connect()
    chunked.request("POST", "/", iter([b"abc", b"de"]), encode_chunked=True)
    assert chunked.getresponse().read() == b"5"
    chunked.request("POST", "/", b"again")  # the connection is kept
    assert chunked.getresponse().read() == b"5"
    chunked.close()
    expecting = served.raw(
        b"POST / HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 0\r\n"
        b"connection: close\r\n\r\n"
    )
    assert expecting.startswith(b"HTTP/1.1 200")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(10)
        sock.connect(served.path)
        sock.sendall(b"POST / HTTP/1.1\r\nexpect: 100-continue\r\ncontent-length: 3\r\n\r\n")
        assert sock.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        sock.sendall(b"xyz")
        assert b"HTTP/1.1 200" in sock.recv(1000)
    assert served.call("POST", "/", bytes(2 << 20)).status == 413


@pytest.mark.parametrize(
    ("raw", "wanted"),
    [
        (b"nonsense\r\n\r\n", b"400"),
        (b"GET / HTTP/2.0\r\n\r\n", b"505"),
        (b"GET / HTTP/1.1\r\nbad header\r\n\r\n", b"400"),
        (b"POST / HTTP/1.1\r\ncontent-length: -1\r\n\r\n", b"400"),
        (b"POST / HTTP/1.1\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n", b"400"),
        (b"POST / HTTP/1.1\r\ntransfer-encoding: gzip\r\n\r\n", b"501"),
        (
            b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\ncontent-length: 1\r\n\r\n",
            b"400",
        ),
        (b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n", b"400"),
        (b"GET / HTTP/1.1\r\nx: " + b"y" * 70000, b"431"),
    ],
)
def test_malformed_requests(raw: bytes, wanted: bytes) -> None:
    import tempfile

    with (
        tempfile.TemporaryDirectory(prefix="mayfly-rt-") as directory,
        serving(Path(directory), "def handler(e, c): return 1\n", sys.executable) as served,
    ):
        assert served.raw(raw).split(b" ")[1] == wanted
        assert served.value() == 1


def test_what_is_in_flight_is_finished_when_it_is_told_to_end(serve: Serve) -> None:
    code = """
        import threading
        go = threading.Event()
        def handler(event, ctx):
            if event["path"] == "/go":
                go.set()
                return "went"
            print("waiting", flush=True)
            go.wait(5)
            return "finished"
    """
    served = serve(code)
    slow, second = served.connect(), served.connect()
    slow.request("GET", "/")
    assert served.process.stdout is not None
    assert served.process.stdout.readline() == "waiting\n"
    second.request("GET", "/go")
    assert second.getresponse().read() == b"went"
    served.process.terminate()
    assert slow.getresponse().read() == b"finished"
    slow.close()
    second.close()
    assert served.process.wait(5) == 0


def test_it_ends_whichever_thread_has_the_signal(serve: Serve) -> None:
    """Python's handlers run in the main thread, which waits for its turn here: it would not run
    them, as where the signal comes just before it begins to wait."""
    served = serve("def handler(event, ctx):\n    return 'fine'\n")
    tasks = Path(f"/proc/{served.process.pid}/task")
    polling: list[int] = []
    deadline = time.monotonic() + 5
    while not polling or served.process.pid in polling:
        assert time.monotonic() < deadline
        # After each request it may be another thread that waits for connections.
        assert served.call().content == b"fine"  # type: ignore[attr-defined]
        polling = [int(t.name) for t in tasks.iterdir() if "poll" in (t / "wchan").read_text()]
    assert ctypes.CDLL(None).tgkill(served.process.pid, polling[0], signal.SIGTERM) == 0
    assert served.process.wait(5) == 0


def test_import_failure_is_told(serve: Serve) -> None:
    served = serve("import json\n\nraise RuntimeError('at import')\n")
    failed = served.first["failed"]
    assert failed["reason"] == "HANDLER_IMPORT_FAILED"
    assert failed["message"] == "RuntimeError: at import"
    assert any("line 3" in line for line in failed["trace"])
    assert not any("runtimes/python" in line for line in failed["trace"])

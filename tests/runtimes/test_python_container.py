"""The Python runtime as a container runs it, over real connections to a real process."""

from __future__ import annotations

import http.client
import json
import shutil
import socket
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROBE = {"mayfly-probe": "1"}


@dataclass
class Container:
    process: subprocess.Popen[str]
    port: int

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)

    def get(self, path: str = "/", headers: dict[str, str] | None = None) -> tuple[int, str]:
        with closing(self.connect()) as connection:
            connection.request("GET", path, headers=headers or {})
            answer = connection.getresponse()
            return answer.status, answer.read().decode()

    def wait(self) -> None:
        """Until it listens or has ended."""
        for _ in range(2000):
            try:
                socket.create_connection(("127.0.0.1", self.port), 5).close()
            except ConnectionRefusedError:
                try:
                    self.process.wait(0.01)
                except subprocess.TimeoutExpired:
                    continue
            return
        raise AssertionError("it does not listen")

    def end(self) -> tuple[int, str, str]:
        self.process.terminate()
        out, err = self.process.communicate(timeout=10)
        return self.process.returncode, out, err


@contextmanager
def container(folder: Path, code: str, **environ: str) -> Iterator[Container]:
    runtime = folder / "any-name"
    runtime.mkdir()
    for file in (ROOT / "runtimes" / "python").glob("*.py"):
        shutil.copy(file, runtime)
    function = folder / "fn"
    function.mkdir()
    (function / "handler.py").write_text(textwrap.dedent(code))
    (function / "beside.py").write_text("value = 'beside'\n")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, str(runtime / "container.py")],
        env={
            "PORT": str(port),
            "MAYFLY_HANDLER": str(function / "handler.py"),
            "MAYFLY_FUNCTION": "fn-1",
            "MAYFLY_TIMEOUT": "5",
            **environ,
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    started = Container(process, port)
    try:
        started.wait()
        yield started
    finally:
        process.kill()
        process.communicate()


Run = Callable[..., Container]


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    with ExitStack() as stack:
        yield lambda code, **environ: stack.enter_context(container(tmp_path, code, **environ))


def test_it_serves_the_contract_with_what_lies_beside_the_handler(run: Run) -> None:
    one = run(
        """
        import sys
        import beside

        def handler(event, ctx):
            shadowed = [name for name in ("status", "server", "contract") if name in sys.modules]
            return {"path": event.path, "id": ctx.function_id, "beside": beside.value,
                    "shadowed": shadowed}
        """
    )
    status, text = one.get("/a%20b?x=1")
    assert status == 200
    assert json.loads(text) == {
        "path": "/a b",
        "id": "fn-1",
        "beside": "beside",
        "shadowed": [],
    }


def test_as_a_module_it_is_the_same(tmp_path: Path) -> None:
    (tmp_path / "handler.py").write_text("raise KeyError('no')\n")
    done = subprocess.run(
        [sys.executable, "-m", "runtimes.python.container"],
        cwd=ROOT,
        env={"MAYFLY_HANDLER": str(tmp_path / "handler.py"), "PORT": "0"},
        capture_output=True,
        text=True,
        timeout=20,
    )
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    name, _, failure = lines[-1].partition(": ")
    assert name == "mayfly-failure"
    assert json.loads(failure) == {"reason": "HANDLER_IMPORT_FAILED", "message": "KeyError: 'no'"}


def test_probes_are_answered_while_the_handler_is_busy_and_paths_stay_its_own(run: Run) -> None:
    one = run(
        """
        import threading
        gate = threading.Event()

        def handler(event, ctx):
            if event.path == "/open":
                gate.set()
            elif event.path == "/wait":
                gate.wait(10)
            return event.path
        """,
        MAYFLY_CONCURRENCY="2",
    )
    with closing(one.connect()) as waiting:
        waiting.request("GET", "/wait")
        assert one.get("/healthz") == (200, "/healthz")
        with closing(one.connect()) as second:
            second.request("GET", "/wait")
            assert one.get("/healthz", PROBE) == (200, '{"status": "ok"}')
            assert one.get("/readyz", PROBE) == (200, '{"status": "ok"}')


def test_at_most_concurrency_requests_are_in_the_handler_and_all_are_answered(run: Run) -> None:
    one = run(
        """
        import threading, time
        lock, now, most = threading.Lock(), 0, 0

        def handler(event, ctx):
            global now, most
            with lock:
                now += 1
                most = max(most, now)
            time.sleep(0.02)
            with lock:
                now -= 1
            return {"most": most}
        """,
        MAYFLY_CONCURRENCY="3",
    )
    answers: list[tuple[int, str]] = []
    threads = [threading.Thread(target=lambda: answers.append(one.get())) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [status for status, _ in answers] == [200] * 20
    assert max(json.loads(text)["most"] for _, text in answers) == 3


def test_keep_alive_serves_further_requests_on_one_connection(run: Run) -> None:
    one = run("import os\ndef handler(event, ctx):\n    return {'path': event.path}\n")
    with closing(one.connect()) as connection:
        for path in ("/1", "/2", "/3"):
            connection.request("GET", path)
            local = connection.sock.getsockname()
            assert json.loads(connection.getresponse().read()) == {"path": path}
            assert connection.sock.getsockname() == local


def test_sigterm_ends_what_is_open_and_then_the_process(run: Run) -> None:
    one = run(
        """
        import sys, threading
        begun = threading.Event()

        def handler(event, ctx):
            if event.path == "/begun":
                begun.wait(10)
                return "begun"
            if event.path == "/long":
                begun.set()
                def items():
                    yield "first;"
                    while open(event.query["gate"]).read() == "":
                        threading.Event().wait(0.01)
                    yield "last"
                return items()
            print("a line")
            return "short"
        """,
        MAYFLY_CONCURRENCY="4",
    )
    gate = Path(one.process.args[1]).parent.parent / "gate"  # type: ignore[index]
    gate.write_text("")
    with closing(one.connect()) as idle, closing(one.connect()) as long:
        idle.request("GET", "/")
        assert idle.getresponse().read() == b"short"
        long.request("GET", f"/long?gate={gate}")
        assert one.get("/begun") == (200, "begun")
        answer = long.getresponse()
        assert answer.read(6) == b"first;"
        one.process.terminate()
        # The idle connection is closed, the busy one is served to its end.
        assert idle.sock.recv(1) == b""
        with pytest.raises(ConnectionRefusedError):
            one.get()
        gate.write_text("open")
        assert answer.read() == b"last"
    out, err = one.process.communicate(timeout=10)
    assert one.process.returncode == 0, err
    assert out == "a line\n"


def test_an_overdue_request_is_504_and_the_process_is_replaced(run: Run) -> None:
    one = run(
        """
        import os, threading, time
        started = time.time_ns()

        def handler(event, ctx):
            if event.path == "/hang":
                threading.Event().wait()
            return {"started": started, "pid": os.getpid()}
        """,
        MAYFLY_TIMEOUT="0.3",
    )
    before = json.loads(one.get()[1])
    status, text = one.get("/hang")
    assert (status, json.loads(text)["error"]["reason"]) == (504, "FUNCTION_TIMEOUT")
    after = _fresh(one, before["started"])
    assert after["pid"] == before["pid"] == one.process.pid
    code, _, err = one.end()
    assert code == 0
    assert "did not begin its response" in err


def test_a_handler_out_of_memory_is_a_500_and_the_process_is_replaced(run: Run) -> None:
    one = run(
        """
        import time
        started = time.time_ns()

        def handler(event, ctx):
            if event.path == "/more":
                raise MemoryError
            return {"started": started}
        """
    )
    before = json.loads(one.get()[1])
    assert one.get("/more")[0] == 500
    _fresh(one, before["started"])


def _fresh(one: Container, before: int) -> dict[str, int]:
    """The first answer of the next process; nobody is refused until then."""
    for _ in range(200):
        status, text = one.get()
        assert status == 200
        if json.loads(text)["started"] > before:
            return json.loads(text)
    raise AssertionError("the process was not replaced")

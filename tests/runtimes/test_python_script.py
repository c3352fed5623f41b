"""What runs a script in a container, as a real process over real connections."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from runtimes import container_files
from runtimes.python.relay import ROOM, Relay, own_addresses
from runtimes.python.script import complaint, own_inodes, sockets

SERVE = """
    import os, signal, socket, threading
    def serve(connection):
        with connection:
            while data := connection.recv(65536):
                connection.sendall(data)
            connection.sendall(b"end")
    family = socket.AF_INET6 if ":" in HOST else socket.AF_INET
    listener = socket.create_server((HOST, int(os.environ["PORT"])), family=family)
    print("listening", flush=True)
    while True:
        threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()
"""


def free_port() -> int:
    with socket.create_server(("", 0)) as free:
        return free.getsockname()[1]


@dataclass
class Running:
    process: subprocess.Popen[str]
    port: int

    def connect(self, address: str = "127.0.0.1") -> socket.socket:
        """Connect as soon as it listens."""
        deadline = time.monotonic() + 10
        while True:
            try:
                return socket.create_connection((address, self.port), 10)
            except ConnectionRefusedError:
                assert time.monotonic() < deadline, "it does not listen"
                assert self.process.poll() is None, "it has ended"

    def end(self) -> tuple[int, str, str]:
        """Wait until it has ended by itself."""
        out, err = self.process.communicate(timeout=15)
        return self.process.returncode, out, err


@contextmanager
def running(folder: Path, code: str, host: str = "", **environ: str) -> Generator[Running]:
    runtime, function = folder / "any-name", folder / "fn"
    for path, content in container_files.of_scripts().items():
        (runtime / path).parent.mkdir(parents=True, exist_ok=True)
        (runtime / path).write_bytes(content)
    function.mkdir()
    (function / "script.py").write_text(textwrap.dedent(code).replace("HOST", repr(host)))
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", str(runtime / "script.py"), "script.py"],
        cwd=function,
        env={"PORT": str(port), "MAYFLY_TIMEOUT": "5", **environ},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield Running(process, port)
    finally:
        # As in a container: with the first process go all others.
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        shutil.rmtree(folder)


Run = Callable[..., Running]


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    with ExitStack() as stack:

        def started(code: str, host: str = "", **environ: str) -> Running:
            return stack.enter_context(running(tmp_path / "one", code, host, **environ))

        yield started


def said(err: str) -> dict[str, str]:
    """What it says of itself on stderr."""
    (line,) = [each for each in err.splitlines() if each.startswith("mayfly-failure: ")]
    return json.loads(line.removeprefix("mayfly-failure: "))


def test_its_exit_code_is_the_scripts(run: Run) -> None:
    code, out, err = run("import sys; print('oh no'); sys.exit(3)").end()
    assert (code, out, err) == (3, "oh no\n", "")


def test_a_signal_is_told_from_a_code(tmp_path: Path) -> None:
    with running(tmp_path / "one", "import os; os.kill(os.getpid(), 11)") as one:
        assert one.end()[0] == 128 + 11


def test_what_never_listens_is_named_and_ended(run: Run) -> None:
    code, _, err = run("import time; time.sleep(60)", MAYFLY_START_TIMEOUT="0.3").end()
    assert code == 128 + signal.SIGKILL
    # Other programs listen on this machine; a pod has its own network.
    assert said(err)["reason"] in ("SCRIPT_NEVER_LISTENED", "SCRIPT_LISTENS_ELSEWHERE")


def test_where_else_it_listens_is_named() -> None:
    assert complaint({}, 8000, 5)["reason"] == "SCRIPT_NEVER_LISTENED"
    told = complaint({9000: {"0.0.0.0"}, 9001: {"::"}}, 8000, 5)
    assert told["reason"] == "SCRIPT_LISTENS_ELSEWHERE"
    assert "9000, 9001 instead of 8000" in told["message"]
    assert "9000" in told["fix"]


def test_the_sockets_of_other_containers_are_not_its_own() -> None:
    with socket.create_server(("", 0)) as listener:
        port, number = listener.getsockname()[1], os.fstat(listener.fileno()).st_ino
        assert str(number) in own_inodes()
        assert port in sockets("0A", {str(number)})
        assert port in sockets("0A")
        assert port not in sockets("0A", own_inodes() - {str(number)})


def test_sigterm_comes_when_nobody_is_connected_any_more(run: Run) -> None:
    one = run(SERVE)
    with one.connect() as caller:
        caller.sendall(b"before")
        assert caller.recv(100) == b"before"
        one.process.terminate()
        with pytest.raises(subprocess.TimeoutExpired):
            one.process.wait(0.3)
        caller.sendall(b"after")
        assert caller.recv(100) == b"after"
    assert one.end()[0] == 128 + signal.SIGTERM


def test_a_connection_that_stays_does_not_keep_it_for_ever(run: Run) -> None:
    one = run(SERVE, MAYFLY_TIMEOUT="1")
    with one.connect() as caller:
        caller.sendall(b"before")
        assert caller.recv(100) == b"before"
        one.process.terminate()
        assert one.end()[0] == 128 + signal.SIGTERM


def test_open_files_are_limited_and_cannot_be_raised(run: Run) -> None:
    code = """
        import resource
        print(resource.getrlimit(resource.RLIMIT_NOFILE))
    """
    assert run(code, MAYFLY_OPEN_FILES="77").end()[1] == "(77, 77)\n"


def far() -> str:
    addresses = own_addresses()
    if not addresses:
        pytest.skip("this machine has no address but loopback")
    return addresses[0]


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_loopback_is_carried_on_to(run: Run, host: str) -> None:
    one = run(SERVE, host)
    with one.connect(far()) as caller:
        caller.sendall(b"hello")
        assert caller.recv(100) == b"hello"
        # The end of one direction is passed on, and the other goes on.
        caller.shutdown(socket.SHUT_WR)
        assert caller.recv(100) == b"end"
        assert caller.recv(100) == b""


def test_nothing_is_carried_on_where_whoever_connects_is_beside_it(run: Run) -> None:
    one = run(SERVE, "127.0.0.1", MAYFLY_REACHED_BY="loopback", MAYFLY_START_TIMEOUT="2")
    one.connect().close()
    with pytest.raises(subprocess.TimeoutExpired):
        one.process.wait(3)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((far(), one.port), 5)


def test_what_it_said_last_is_delivered_though_it_has_ended(run: Run) -> None:
    code = """
        import os, socket
        with socket.create_server((HOST, int(os.environ["PORT"]))) as listener:
            connection, _ = listener.accept()
        connection.sendall(b"x" * 200_000)
        connection.close()
    """
    one = run(code, "127.0.0.1")
    with one.connect(far()) as caller:
        assert one.process.poll() is None
        whole = b""
        while data := caller.recv(65536):
            whole += data
    assert len(whole) == 200_000
    assert one.end()[0] == 0


@contextmanager
def relayed() -> Generator[tuple[socket.socket, tuple[str, int]]]:
    """A relay from 127.0.0.2 to a listener on 127.0.0.1; the listener, and where to connect."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        relay = Relay(["127.0.0.2"], port, "127.0.0.1")
        relay.start()
        try:
            yield listener, ("127.0.0.2", port)
        finally:
            relay.finish(5)


def test_whoever_does_not_read_holds_the_sender_and_nobody_else() -> None:
    with (
        relayed() as (listener, address),
        socket.create_connection(address, 5) as slow,
        listener.accept()[0] as sender,
    ):
        sender.settimeout(0.5)
        sent = sent_until_it_waits(sender)
        assert sent > ROOM
        with socket.create_connection(address, 5) as other, listener.accept()[0] as script:
            script.sendall(b"to the other")
            assert other.recv(100) == b"to the other"
        sender.close()
        received = 0
        while data := slow.recv(1 << 20):
            received += len(data)
        assert received == sent


def sent_until_it_waits(sender: socket.socket) -> int:
    """How many bytes are taken before none is for as long as its time limit."""
    sent = 0
    while sent < 1 << 28:
        try:
            sent += sender.send(b"x" * 65536)
        except TimeoutError:
            return sent
    raise AssertionError("nothing holds the sender")


def test_a_reset_is_one_for_the_other_side() -> None:
    with relayed() as (listener, address), socket.create_connection(address, 5) as caller:
        script, _ = listener.accept()
        script.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        script.close()
        with pytest.raises(ConnectionResetError):
            caller.recv(100)


def test_many_at_once_get_their_own_bytes() -> None:
    def serve(listener: socket.socket, count: int) -> None:
        def echo(connection: socket.socket) -> None:
            with connection:
                while data := connection.recv(65536):
                    connection.sendall(data)

        for _ in range(count):
            threading.Thread(target=echo, args=(listener.accept()[0],)).start()

    def call(address: tuple[str, int], number: int, done: list[int]) -> None:
        body = bytes([number]) * 300_000
        with closing(socket.create_connection(address, 10)) as caller:
            threading.Thread(
                target=lambda: (caller.sendall(body), caller.shutdown(socket.SHUT_WR))
            ).start()
            whole = b""
            while data := caller.recv(65536):
                whole += data
        if whole == body:
            done.append(number)

    with relayed() as (listener, address):
        server = threading.Thread(target=serve, args=(listener, 20))
        server.start()
        done: list[int] = []
        callers = [threading.Thread(target=call, args=(address, n, done)) for n in range(20)]
        for each in callers:
            each.start()
        for each in [*callers, server]:
            each.join()
    assert sorted(done) == list(range(20))

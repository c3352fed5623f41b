"""The Go template as a container runs it: on PORT, with probes. Needs a Go toolchain."""

from __future__ import annotations

import http.client
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

TEMPLATE = Path(__file__).resolve().parents[2] / "runtimes" / "go" / "template"
FUNCTION = """package main

import "os"

func Handle(e Event, c Context) (any, error) {
	if e.Path == "/wait" {
		pipe, err := os.Open(os.Getenv("GATE"))
		if err != nil {
			return nil, err
		}
		pipe.Close()
	}
	return e.Path, nil
}
"""


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    go = shutil.which("go")
    if go is None:
        pytest.skip("no Go toolchain")
    folder = tmp_path_factory.mktemp("go")
    shutil.copytree(TEMPLATE, folder, dirs_exist_ok=True)
    (folder / "function.go").write_text(FUNCTION)
    environ = {**os.environ, "CGO_ENABLED": "0", "GOPROXY": "off", "GOTOOLCHAIN": "local"}
    build = [go, "build", "-trimpath", "-o", "function", "."]
    subprocess.run(build, cwd=folder, env=environ, check=True, capture_output=True)
    return folder / "function"


@pytest.fixture
def served(program: Path, tmp_path: Path) -> Iterator[tuple[subprocess.Popen[bytes], int, Path]]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    process = subprocess.Popen(
        [str(program)],
        env={"PORT": str(port), "MAYFLY_CONCURRENCY": "1", "GATE": str(gate)},
    )
    try:
        for _ in range(1000):
            try:
                socket.create_connection(("127.0.0.1", port), 5).close()
                break
            except ConnectionRefusedError:
                with pytest.raises(subprocess.TimeoutExpired):
                    process.wait(0.01)
        yield process, port, gate
    finally:
        process.kill()
        process.wait()


def get(port: int, path: str, **headers: str) -> tuple[int, bytes]:
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=10)) as connection:
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request("GET", path, headers=names)
        answer = connection.getresponse()
        return answer.status, answer.read()


def test_probes_are_answered_while_the_handler_is_busy_and_sigterm_lets_it_end(
    served: tuple[subprocess.Popen[bytes], int, Path],
) -> None:
    process, port, gate = served
    assert get(port, "/readyz") == (200, b"/readyz")
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=10)) as busy:
        busy.request("GET", "/wait")
        with gate.open("w"):  # opens when the handler does, and keeps it no longer
            assert get(port, "/readyz", mayfly_probe="1") == (200, b'{"status":"ok"}')
        assert busy.getresponse().read() == b"/wait"
        busy.request("GET", "/wait")
        descriptor = os.open(gate, os.O_WRONLY)
        process.terminate()
        os.close(descriptor)
        assert busy.getresponse().read() == b"/wait"
    assert process.wait(10) == 0

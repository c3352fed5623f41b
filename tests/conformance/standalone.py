"""A Mayfly of this checkout, started as a process of its own."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import httpx

ROOT = Path(__file__).resolve().parents[2]


class StartFailed(Exception):
    """The platform did not become healthy; the message holds the end of its log."""


def free_port() -> int:
    """Return a TCP port of the loopback interface that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Standalone:
    """`python -m services.standalone` on a data directory and a port of its own."""

    def __init__(
        self, data_dir: Path, *, port: int | None = None, env: Mapping[str, str] | None = None
    ) -> None:
        self.data_dir = data_dir
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log_path = data_dir.parent / f"{data_dir.name}.log"
        self._env = dict(env or {})
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The process id; raises `RuntimeError` when it was not started."""
        if self._process is None:
            raise RuntimeError("not started")
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether the process is alive."""
        return self._process is not None and self._process.poll() is None

    def environment(self) -> dict[str, str]:
        """Return the environment that the process gets."""
        ours = {
            "MAYFLY_LISTEN": f"127.0.0.1:{self.port}",
            "MAYFLY_DATA_DIR": str(self.data_dir),
            "MAYFLY_PUBLIC_URL": self.url,
            "PYTHONUNBUFFERED": "1",
        }
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("MAYFLY_")}
        return inherited | ours | self._env

    def launch(self) -> None:
        """Start the process and return at once."""
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "services.standalone"],
                cwd=ROOT,
                env=self.environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def start(self, seconds: float = 90.0) -> None:
        """Start the process and wait until it is healthy. Raises `StartFailed`."""
        self.launch()
        self.wait_healthy(seconds)

    def wait_healthy(self, seconds: float = 90.0) -> None:
        """Wait until `/healthz` answers 200. Raises `StartFailed`."""
        deadline = time.monotonic() + seconds
        answer = "nothing"
        while time.monotonic() < deadline:
            if not self.running:
                raise StartFailed(f"it ended with {self.wait(1)}:\n{self.log_tail()}")
            try:
                response = httpx.get(f"{self.url}/healthz", timeout=2)
            except httpx.TransportError as error:
                answer = repr(error)
            else:
                if response.status_code == 200:
                    return
                answer = f"{response.status_code} {response.text}"
            time.sleep(0.05)
        raise StartFailed(f"/healthz last said {answer}:\n{self.log_tail()}")

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process alone, not to its children."""
        os.kill(self.pid, number)

    def wait(self, seconds: float) -> int:
        """Wait for the end; return the exit code, minus the signal's number when killed."""
        if self._process is None:
            raise RuntimeError("not started")
        return self._process.wait(timeout=seconds)

    def stop(self, seconds: float = 30.0) -> int:
        """End it with SIGTERM and return the exit code; killed when it does not end in time."""
        if self.running:
            self.signal(signal.SIGTERM)
        try:
            return self.wait(seconds)
        except subprocess.TimeoutExpired:
            os.killpg(self.pid, signal.SIGKILL)
            self.wait(10)
            raise

    def log_tail(self, lines: int = 60) -> str:
        """Return the last lines that the process wrote."""
        if not self.log_path.exists():
            return ""
        return "\n".join(self.log_path.read_text(errors="replace").splitlines()[-lines:])

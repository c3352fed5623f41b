"""A Mayfly whose parts can be killed one by one: as one process, and as one process a service."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import httpx

from tests.conformance.standalone import ROOT, Standalone, StartFailed, free_port
from tests.faults.world import Looker

MARK = "FAULTS_MARK"
HEALTHY_SECONDS = 60.0
# Children that every form has: how they are found among the processes of the data directory.
CHILDREN = {
    "postgres": ("postgres", " -D "),
    "envoy": ("envoy", " -c "),
    "supervisor": ("process.supervisor",),
    "zygote": ("_mayfly_sandbox.zygote",),
}


class Platform(Protocol):
    """What the loop of kills needs."""

    url: str
    looker: Looker

    def start(self) -> None:
        """Start everything and wait until it is healthy."""
        ...

    def victims(self) -> list[str]:
        """Return the names of what can be killed."""
        ...

    def kill(self, victim: str) -> bool:
        """kill -9 one part; returns whether there was one."""
        ...

    def recover(self, victim: str) -> None:
        """Start what a service manager would start again, and wait until all is healthy."""
        ...

    def stop(self) -> None:
        """End everything with SIGTERM."""
        ...

    def log_tail(self) -> str:
        """Return the end of the logs."""
        ...


def new_looker(data_dir: Path) -> Looker:
    """Return a looker with a mark of its own."""
    return Looker(data_dir, mark=f"{MARK}={secrets.token_hex(8)}")


def kill_child(looker: Looker, child: str) -> bool:
    """kill -9 the topmost process of a kind; returns whether there was one."""
    pid = find_child(looker, child)
    if pid is not None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return pid is not None


def find_child(looker: Looker, child: str) -> int | None:
    """Return the topmost process of a kind."""
    world = looker.look()
    pids = world.pids(*CHILDREN[child])
    # PostgreSQL's workers and Envoy's shim carry the same words: the topmost has no such parent.
    parents = {p.pid: p.parent for p in world.processes}
    tops = [pid for pid in pids if parents[pid] not in pids]
    return tops[0] if tops else None


class OneProcess:
    """`services.standalone`, with PostgreSQL, Envoy, supervisor and zygotes as its children."""

    def __init__(self, data_dir: Path, env: Mapping[str, str] | None = None) -> None:
        self.looker = new_looker(data_dir)
        name, _, value = self.looker.mark.partition("=")
        self._standalone = Standalone(data_dir, env={name: value, **(env or {})})
        self.url = self._standalone.url

    def start(self) -> None:
        """Start it and wait until it is healthy."""
        self._standalone.start(HEALTHY_SECONDS)

    def victims(self) -> list[str]:
        """Return the process itself and its children."""
        return ["standalone", *CHILDREN]

    def kill(self, victim: str) -> bool:
        """kill -9 one part."""
        if victim != "standalone":
            return kill_child(self.looker, victim)
        self._standalone.signal(signal.SIGKILL)
        self._standalone.wait(10)
        return True

    def recover(self, victim: str) -> None:
        """Start the process again when it was killed; its children it restarts itself."""
        if victim == "standalone":
            # Whatever it had dies with it, without anybody's help.
            self.looker.wait_until(lambda w: not w.processes and not w.mounts, 10, "all is gone")
            self._standalone.start(HEALTHY_SECONDS)
        else:
            self._standalone.wait_healthy(HEALTHY_SECONDS)

    def stop(self) -> None:
        """End it with SIGTERM."""
        code = self._standalone.stop()
        assert code == 0, f"it ended with {code}:\n{self.log_tail()}"

    def log_tail(self) -> str:
        """Return the end of its log."""
        return self._standalone.log_tail()


class FourProcesses:
    """Each service a process of its own, and PostgreSQL beside them."""

    SERVICES = ("builder", "deployer", "janitor", "gateway")

    def __init__(self, data_dir: Path, env: Mapping[str, str] | None = None) -> None:
        self.looker = new_looker(data_dir)
        self._data_dir = data_dir
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        name, _, value = self.looker.mark.partition("=")
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("MAYFLY_")}
        self._env = inherited | {
            name: value,
            "MAYFLY_LISTEN": f"127.0.0.1:{port}",
            "MAYFLY_DATA_DIR": str(data_dir),
            "MAYFLY_PUBLIC_URL": self.url,
            "MAYFLY_LOG_LEVEL": "WARNING",
            "MAYFLY_GATEWAY_NAME": "faults",
            "MAYFLY_REPLICA": "faults",
            "PYTHONUNBUFFERED": "1",
            **(env or {}),
        }
        for service in self.SERVICES[:3]:
            address = f"unix:{data_dir}/sockets/{service}"
            self._env[f"MAYFLY_{service.upper()}_LISTEN"] = address
            self._env[f"MAYFLY_{service.upper()}_ADDRESS"] = address
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._log = data_dir.parent / f"{data_dir.name}.log"

    def start(self) -> None:
        """Start PostgreSQL, then the services, and wait until all are healthy."""
        self._data_dir.mkdir(parents=True, exist_ok=True)
        self._data_dir.chmod(0o711)
        (self._data_dir / "sockets").mkdir(mode=0o700, exist_ok=True)
        address = self._data_dir / "database-url"
        address.unlink(missing_ok=True)
        self._spawn("postgres", "tests.faults.postgres_process", str(self._data_dir))
        deadline = time.monotonic() + HEALTHY_SECONDS
        while not address.exists():
            assert time.monotonic() < deadline, f"PostgreSQL did not start:\n{self.log_tail()}"
            time.sleep(0.05)
        self._env["MAYFLY_DATABASE_URL"] = address.read_text()
        for service in self.SERVICES:
            self._spawn(service, f"services.{service}")
        self._wait_healthy()

    def victims(self) -> list[str]:
        """Return the services and their children."""
        return [*self.SERVICES, *CHILDREN]

    def kill(self, victim: str) -> bool:
        """kill -9 one part."""
        if victim in CHILDREN:
            return kill_child(self.looker, victim)
        self._processes[victim].kill()
        self._processes[victim].wait(10)
        return True

    def recover(self, victim: str) -> None:
        """Start a killed service again; children are restarted by their parents."""
        for service in self.SERVICES:
            if self._processes[service].poll() is not None:
                self._spawn(service, f"services.{service}")
        self._wait_healthy()

    def stop(self) -> None:
        """End everything with SIGTERM, what depends on others first."""
        for name in (*reversed(self.SERVICES), "postgres"):
            process = self._processes.pop(name)
            process.terminate()
            try:
                code = process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                raise
            assert code == 0, f"{name} ended with {code}:\n{self.log_tail()}"

    def abandon(self) -> None:
        """Kill what is left."""
        for process in self._processes.values():
            process.kill()
            process.wait(10)

    def log_tail(self) -> str:
        """Return the end of the common log."""
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-60:])

    def _spawn(self, name: str, module: str, *arguments: str) -> None:
        with self._log.open("ab") as log:
            self._processes[name] = subprocess.Popen(
                [sys.executable, "-m", module, *arguments],
                cwd=ROOT,
                env=self._env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _wait_healthy(self) -> None:
        deadline = time.monotonic() + HEALTHY_SECONDS
        answer = "nothing"
        while time.monotonic() < deadline:
            for name, process in self._processes.items():
                if process.poll() is not None:
                    raise StartFailed(f"{name} ended: {process.returncode}\n{self.log_tail()}")
            try:
                response = httpx.get(f"{self.url}/healthz", timeout=5)
            except httpx.TransportError as error:
                answer = repr(error)
            else:
                if response.status_code == 200:
                    return
                answer = response.text
            time.sleep(0.1)
        raise StartFailed(f"/healthz last said {answer}\n{self.log_tail()}")

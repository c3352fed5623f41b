"""The supervisor's side of zygotes: starts them, asks them to fork, hears who ended."""

from __future__ import annotations

import array
import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import runtimes.python
from services.deployer.drivers.process import sandbox
from services.deployer.drivers.process.sandbox import kernel

_START_SECONDS = 20.0
_MAX_MESSAGE = 1 << 18
_PACKAGE_PARENT = Path(sandbox.__file__).resolve().parent.parent
_RUNTIME = Path(runtimes.python.__file__).resolve().parent
_LAUNCH = (
    f"import sys; sys.path.insert(0, {str(_PACKAGE_PARENT)!r}); "
    "from sandbox.launch import main; main(sys.argv[1:])"
)


class ZygoteFailed(Exception):
    """No instance can be forked; the message says why."""


@dataclass(frozen=True)
class Forked:
    """A new instance, seen from outside its namespaces."""

    pid: int
    pidfd: int


Exited = Callable[[str, int], None]
Lost = Callable[["Zygote"], None]


def receive(channel: socket.socket) -> tuple[bytes, list[int]]:
    """One message of a SOCK_SEQPACKET socket and its descriptors; BlockingIOError without one."""
    fds = array.array("i")
    data, ancillary, _flags, _address = channel.recvmsg(
        _MAX_MESSAGE, socket.CMSG_SPACE(16 * fds.itemsize), socket.MSG_CMSG_CLOEXEC
    )
    for level, kind, payload in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(payload[: len(payload) - len(payload) % fds.itemsize])
    return data, list(fds)


def pid_of(pidfd: int) -> int:
    """The process's id as this process sees it; -1 when it has ended."""
    with open(f"/proc/self/fdinfo/{pidfd}", encoding="ascii") as file:
        for line in file:
            if line.startswith("Pid:"):
                return int(line.split()[1])
    raise ZygoteFailed("the kernel does not say which process a pidfd is")


class Zygote:
    """One running zygote. Made by `start`."""

    launching: ClassVar[set[int]] = set()
    """Processes that `start` waits for itself."""

    def __init__(
        self, interpreter: Path, channel: socket.socket, exited: Exited, lost: Lost
    ) -> None:
        self.interpreter = interpreter
        self.pid = -1
        self.alive = True
        self.instances = 0
        self._channel = channel
        self._exited = exited
        self._lost = lost
        self._loop = asyncio.get_running_loop()
        self._forks: dict[str, asyncio.Future[Forked]] = {}
        self._started: asyncio.Future[str] = self._loop.create_future()

    @classmethod
    async def start(
        cls,
        interpreter: Path,
        *,
        root: Path,
        data_dir: Path,
        marker: str,
        scratch_bytes: int,
        exited: Exited,
        lost: Lost,
    ) -> Zygote:
        """Raises ZygoteFailed."""
        here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in (here, there):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        zygote = cls(interpreter, here, exited, lost)
        with there:
            launcher = subprocess.Popen(  # noqa: ASYNC220 - vfork and exec, a millisecond
                [
                    sys.executable,
                    *("-I", "-S", "-B", "-c", _LAUNCH),
                    *(str(there.fileno()), str(interpreter), str(root), str(data_dir), marker),
                    *(str(_RUNTIME), str(scratch_bytes)),
                ],
                pass_fds=[there.fileno()],
                stdin=subprocess.DEVNULL,
            )
        cls.launching.add(launcher.pid)
        here.setblocking(False)
        zygote._loop.add_reader(here, zygote._on_readable)
        try:
            async with asyncio.timeout(_START_SECONDS):
                code = await _wait(launcher)
                if code != 0:
                    raise ZygoteFailed(f"the sandbox for {interpreter} was not built ({code})")
                here.send(b'{"op":"start"}')
                await zygote._started
        except TimeoutError:
            zygote.close()
            raise ZygoteFailed(f"{interpreter} did not start in {_START_SECONDS:g} s") from None
        except BaseException:
            zygote.close()
            raise
        return zygote

    async def fork(self, spec: dict[str, Any], fds: list[int]) -> Forked:
        """Raises ZygoteFailed. The descriptors stay the caller's."""
        name = spec["instance"]
        future = self._forks[name] = self._loop.create_future()
        message = json.dumps({"op": "spawn", "spec": spec}).encode()
        rights = array.array("i", fds).tobytes()
        try:
            self._channel.sendmsg([message], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
            return await future
        except OSError as error:
            raise ZygoteFailed(f"the zygote of {self.interpreter}: {error}") from error
        finally:
            self._forks.pop(name, None)

    def _on_readable(self) -> None:
        while self.alive:
            try:
                data, fds = receive(self._channel)
            except BlockingIOError:
                return
            except OSError as error:
                self._end(str(error))
                return
            if not data:
                self._end("it ended")
                return
            self._take(json.loads(data), fds)

    def _take(self, message: dict[str, Any], fds: list[int]) -> None:
        if "started" in message:
            self._started.set_result(message["started"])
        elif "spawned" in message:
            self.instances += 1
            future = self._forks.get(message["spawned"])
            if future is not None and not future.done():
                future.set_result(Forked(pid_of(fds[0]), fds[0]))
            else:
                signal.pidfd_send_signal(fds[0], signal.SIGKILL)
                os.close(fds[0])
        elif "refused" in message:
            future = self._forks.get(message["refused"])
            if future is not None and not future.done():
                future.set_exception(ZygoteFailed(message["message"]))
        elif "exited" in message:
            self.instances -= 1
            self._exited(message["exited"], message["code"])

    def _end(self, reason: str) -> None:
        error = ZygoteFailed(f"the zygote of {self.interpreter}: {reason}")
        self.close()
        for future in (self._started, *self._forks.values()):
            if not future.done():
                future.set_exception(error)
                # Whoever started it may have given up already; then nobody asks for it.
                future.exception()
        self._lost(self)

    def close(self) -> None:
        """End it; the kernel ends every instance with it, they live in its pid namespace."""
        if not self.alive:
            return
        self.alive = False
        self._loop.remove_reader(self._channel)
        self._channel.close()


async def _wait(launcher: subprocess.Popen[bytes]) -> int:
    """Wait for a child without a thread or a signal handler."""
    pidfd = kernel.pidfd_open(launcher.pid)
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    loop.add_reader(pidfd, ended.set)
    try:
        await ended.wait()
    finally:
        loop.remove_reader(pidfd)
        os.close(pidfd)
    code = launcher.wait()
    Zygote.launching.discard(launcher.pid)
    return code

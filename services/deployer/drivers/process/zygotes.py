"""The supervisor's side of zygotes: starts them, asks them to fork, hears who ended."""

from __future__ import annotations

import array
import asyncio
import json
import os
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import runtimes.python
from services.deployer.drivers.process import sandbox
from services.deployer.drivers.process.sandbox import kernel

_START_SECONDS = 20.0
_MAX_MESSAGE = 1 << 18
# A child is forked ahead when nothing else was wanted for this long, in seconds.
_SPARE_DELAY = 0.015
_PACKAGE_PARENT = Path(sandbox.__file__).resolve().parent.parent
_RUNTIME = Path(runtimes.python.__file__).resolve().parent
_LAUNCH = (
    f"import sys; sys.path.insert(0, {str(_PACKAGE_PARENT)!r}); "
    "from sandbox.launch import main; main(sys.argv[1:])"
)


class ZygoteFailed(Exception):
    """No instance can be forked; the message says why."""


class ZygoteLost(ZygoteFailed):
    """It has ended; another one may be started."""


@dataclass(frozen=True)
class Child:
    """A forked process, seen from outside its namespaces. It waits for a specification."""

    number: int
    pid: int
    pidfd: int
    channel: socket.socket

    def become(self, spec: dict[str, Any], fds: list[int]) -> None:
        """Let it be an instance. Raises OSError; the descriptors stay the caller's."""
        rights = array.array("i", fds).tobytes()
        with self.channel:
            self.channel.sendmsg(
                [json.dumps(spec).encode()], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)]
            )

    def discard(self) -> None:
        self.channel.close()
        os.close(self.pidfd)


Exited = Callable[["Zygote", int, int], None]
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
        self._asked: deque[asyncio.Future[Child]] = deque()
        self._spare: Child | None = None
        self._spare_asked = False
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

    async def child(self) -> Child:
        """The child that was forked ahead, or a new one. Raises ZygoteFailed."""
        self._loop.call_later(_SPARE_DELAY, self._ask_spare)
        if self._spare is not None:
            child, self._spare = self._spare, None
            return child
        future: asyncio.Future[Child] = self._loop.create_future()
        self._asked.append(future)
        self._ask(rehearse=False)
        return await future

    def _ask(self, *, rehearse: bool) -> None:
        if not self.alive:
            raise ZygoteLost(f"the zygote of {self.interpreter} has ended")
        try:
            self._channel.send(json.dumps({"op": "fork", "rehearse": rehearse}).encode())
        except OSError as error:
            raise ZygoteLost(f"the zygote of {self.interpreter}: {error}") from error

    def _ask_spare(self) -> None:
        """Have one forked ahead, unless others are wanted at this moment."""
        if self.alive and self._spare is None and not self._spare_asked and not self._asked:
            self._spare_asked = True
            self._ask(rehearse=True)

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
            self._ask_spare()
        elif "forked" in message:
            self.instances += 1
            channel = socket.socket(fileno=fds[0])
            self._give(Child(message["forked"], pid_of(fds[1]), fds[1], channel))
        elif "refused" in message:
            self._spare_asked = False
            if self._asked:
                _fail(self._asked.popleft(), ZygoteFailed(message["refused"]))
        elif "exited" in message:
            self.instances -= 1
            number = message["exited"]
            if self._spare is not None and self._spare.number == number:
                self._spare.discard()
                self._spare = None
            else:
                self._exited(self, number, message["code"])

    def _give(self, child: Child) -> None:
        while self._asked:
            future = self._asked.popleft()
            if not future.done():
                future.set_result(child)
                return
        self._spare_asked = False
        if self._spare is None:
            self._spare = child
        else:
            child.discard()

    @property
    def is_used(self) -> bool:
        return self.instances > (1 if self._spare is not None else 0)

    def _end(self, reason: str) -> None:
        error = ZygoteLost(f"the zygote of {self.interpreter}: {reason}")
        self.close()
        for future in (self._started, *self._asked):
            _fail(future, error)
        self._lost(self)

    def close(self) -> None:
        """End it; the kernel ends every instance with it, they live in its pid namespace."""
        if not self.alive:
            return
        self.alive = False
        self._loop.remove_reader(self._channel)
        self._channel.close()
        if self._spare is not None:
            self._spare.discard()
            self._spare = None


def _fail(future: asyncio.Future[Any], error: ZygoteFailed) -> None:
    if not future.done():
        future.set_exception(error)
        future.exception()  # whoever asked may have given up; then nobody looks at it


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
